import Foundation
import SparseKernels
import TestSupport
import Testing

@Suite struct SafetensorsRoundTripTests {
    // MARK: - Element types

    @Test(arguments: ElementType.allCases)
    func bytesOfEveryType(_ type: ElementType) throws {
        // Eight elements of any type fill whole bytes.
        let bytes = try (0..<#require(type.bitCount)).map { UInt8($0 * 3 + 1) }
        var writer = SafetensorsWriter()
        try writer.add("x", elementType: type, shape: [2, 4], bytes: bytes)
        let file = try SafetensorsFile(bytes: writer.encoded())
        let entry = try file.entry(named: "x")
        #expect(entry.elementType == type && entry.shape == [2, 4] && entry.count == 8)
        let read = try file.bytes("x").withUnsafeBytes { Array($0) }
        #expect(read == bytes)
    }

    private func roundTrip<Element: TensorElement & Equatable>(_ elements: [Element]) throws {
        let tensor = try Tensor<Element>([1, elements.count, 1], elements)
        var writer = SafetensorsWriter()
        try writer.add("narrow", try Tensor<UInt8>([3], [1, 2, 3]))
        try writer.add("x", tensor)
        let file = try SafetensorsFile(bytes: writer.encoded())
        #expect(try file.tensor("x", as: Element.self) == tensor)
        let span = try file.span("x", as: Element.self)
        let view = try file.tensorView("x", as: Element.self, layout: .nhd)
        #expect(view.heads == elements.count && view.tokens == 1 && view.channels == 1)
        for i in elements.indices {
            #expect(span[i] == elements[i])
            #expect(view[i, 0, 0] == elements[i])
        }
    }

    @Test func elementsOfEveryType() throws {
        try roundTrip([Double.pi, -0.0, .infinity, .leastNonzeroMagnitude])
        try roundTrip([Float.pi, -1, .greatestFiniteMagnitude])
        try roundTrip([BFloat16(1.5), BFloat16(-3e38)])
        try roundTrip([Int64.min, .max, 0])
        try roundTrip([Int32.min, .max, 0])
        try roundTrip([Int16.min, .max, 0])
        try roundTrip([Int8.min, .max, 0])
        try roundTrip([UInt64.max, 1])
        try roundTrip([UInt32.max, 1])
        try roundTrip([UInt16.max, 1])
        try roundTrip([UInt8.max, 1])
        #if !(os(macOS) && arch(x86_64))
            try roundTrip([Float16.pi, -0.0, .infinity])
        #endif
    }

    @Test func tensorsOfAnotherFile() throws {
        let directory = try TemporaryDirectory()
        var writer = SafetensorsWriter()
        try writer.add("x", try Tensor<BFloat16>([3], [BFloat16(1), BFloat16(2), BFloat16(-3)]))
        try writer.add("none", try Tensor<Float>(zeros: [2, 0]))
        try writer.write(to: "\(directory.path)/a")
        let source = try SafetensorsFile(path: "\(directory.path)/a")
        var copy = SafetensorsWriter()
        try copy.add("x", from: source)
        try copy.add("none", from: source)
        #expect(try copy.encoded() == directory.bytes("a"))
        try copy.add("y", from: source, named: "x")
        try copy.write(to: "\(directory.path)/b")
        // The new file may replace the file that it reads.
        try copy.write(to: "\(directory.path)/a")
        #expect(directory.bytes("a") == directory.bytes("b"))
        let file = try SafetensorsFile(path: "\(directory.path)/a")
        #expect(try file.tensor("y", as: BFloat16.self) == source.tensor("x", as: BFloat16.self))
        let missing = try #require(throws: SparseKernelsError.self) { try copy.add("z", from: source) }
        #expect(missing.code == .notFound)
        let taken = try #require(throws: SparseKernelsError.self) { try copy.add("x", from: source) }
        #expect(taken.code == .invalidArgument && taken.argument == "tensor name")
    }

    @Test func scalarsAndEmptyTensors() throws {
        var writer = SafetensorsWriter()
        try writer.add("scalar", try Tensor<Double>([], [2.5]))
        try writer.add("none", try Tensor<Double>(zeros: [0]))
        try writer.add("hollow", try Tensor<Float>(zeros: [4, 0, 7]))
        let file = try SafetensorsFile(bytes: writer.encoded())
        #expect(try file.tensor("scalar", as: Double.self).elements == [2.5])
        #expect(try file.tensor("scalar", as: Double.self).shape == [])
        #expect(try file.tensor("none", as: Double.self).elements == [])
        #expect(try file.floatTensor("hollow").shape == [4, 0, 7])
        #expect(try file.span("hollow", as: Float.self).isEmpty)
        let view = try file.tensorView("hollow", as: Float.self)
        #expect(view.heads == 4 && view.tokens == 0 && view.channels == 7)
    }

    @Test func fileWithoutAnything() throws {
        let file = try SafetensorsFile(bytes: SafetensorsWriter().encoded())
        #expect(file.tensors.isEmpty && file.metadata.isEmpty)
        #expect(try SafetensorsFile(bytes: fileBytes("{}")).tensors.isEmpty)
        #expect(try SafetensorsFile(bytes: fileBytes("{\"__metadata__\":{}}   ")).tensors.isEmpty)
    }

    @Test func boolsAreReadAsBytes() throws {
        var writer = SafetensorsWriter()
        try writer.add("mask", elementType: .bool, shape: [4], bytes: [0, 1, 2, 255])
        let file = try SafetensorsFile(bytes: writer.encoded())
        #expect(try file.tensor("mask", as: UInt8.self).elements == [0, 1, 2, 255])
        #expect(try file.span("mask", as: UInt8.self)[3] == 255)
    }

    // MARK: - Text

    @Test func metadataAndNamesKeepTheirText() throws {
        let text = "quote \" backslash \\ slash / tab \t newline \n bell \u{7} nul \0 del \u{7f} é 漢字 😀 e\u{301}"
        var writer = SafetensorsWriter(metadata: [text: text, "": "", "plain": "x"])
        try writer.add(text, try Tensor<Float>([1], [7]))
        try writer.add("", try Tensor<Float>([1], [8]))
        let file = try SafetensorsFile(bytes: writer.encoded())
        #expect(file.metadata == writer.metadata)
        #expect(try file.floatTensor(text).elements == [7])
        #expect(try file.floatTensor("").elements == [8])
    }

    @Test func everyEscapeIsResolved() throws {
        let header = #"{"__metadata__":{"\"\\\/\b\f\n\r\t\u00e9\u6f22\ud83d\uDE00\u0000":"\u0041"}}"#
        let file = try SafetensorsFile(bytes: fileBytes(header))
        #expect(file.metadata == ["\"\\/\u{8}\u{c}\n\r\té漢😀\0": "A"])
    }

    @Test func orderOfKeysAndWhiteSpaceAreFree() throws {
        let header =
            "{ \"b\" : { \"data_offsets\" : [ 4 , 6 ] , \"shape\" : [ 2 ] , \"dtype\" : \"U8\" } ,\r\n\t"
            + "\"a\":{\"shape\":[],\"dtype\":\"F32\",\"data_offsets\":[0,4]} } "
        let file = try SafetensorsFile(bytes: fileBytes(header, data: 6))
        #expect(file.tensors.map(\.name) == ["a", "b"])
        #expect(file["b"]?.byteRange == 4..<6)
    }

    // MARK: - Float conversion

    @Test func everyHalfWidensExactly() throws {
        let bits = (0...UInt16.max).map { $0 }
        var writer = SafetensorsWriter()
        let bytes = bits.flatMap { [UInt8(truncatingIfNeeded: $0), UInt8(truncatingIfNeeded: $0 >> 8)] }
        try writer.add("half", elementType: .float16, shape: [bits.count], bytes: bytes)
        try writer.add("brain", elementType: .bfloat16, shape: [bits.count], bytes: bytes)
        let file = try SafetensorsFile(bytes: writer.encoded())
        let (half, brain) = (try file.floatTensor("half").elements, try file.floatTensor("brain").elements)
        for i in bits.indices {
            let expected = valueOfHalf(bits[i])
            let isEqual = half[i].isNaN ? expected.isNaN : half[i] == expected && half[i].sign == expected.sign
            if !isEqual { Issue.record("half 0x\(String(bits[i], radix: 16)): \(half[i]), expected \(expected)") }
            if brain[i].bitPattern != UInt32(bits[i]) << 16 { Issue.record("bfloat16 0x\(String(bits[i], radix: 16))") }
        }
    }

    /// The definition: sign, 5 bits of exponent, 10 bits of mantissa.
    private func valueOfHalf(_ bits: UInt16) -> Float {
        let (exponent, mantissa) = (Int(bits >> 10 & 31), Float(bits & 1023))
        let magnitude =
            exponent == 31
            ? (mantissa == 0 ? Float.infinity : .nan)
            : exponent == 0
                ? mantissa * 0x1p-24
                : (1024 + mantissa) * Float(sign: .plus, exponent: exponent - 25, significand: 1)
        return bits >> 15 == 1 ? -magnitude : magnitude
    }

    // MARK: - Layout of the file

    @Test func bytesDependOnContentsOnly() throws {
        let names = ["q", "k", "v", "a", "z", "m"]
        func encode(_ names: [String]) throws -> [UInt8] {
            var writer = SafetensorsWriter()
            for name in names { writer.metadata[name] = name }
            for name in names { try writer.add(name, try Tensor<Float>([2], [1, 2])) }
            return try writer.encoded()
        }
        #expect(try encode(names) == encode(names.reversed()))
    }

    @Test func dataIsAlignedAndWideElementsComeFirst() throws {
        for padding in 0..<70 {
            var writer = SafetensorsWriter(metadata: ["p": String(repeating: "x", count: padding)])
            try writer.add("a", try Tensor<UInt8>([3], [1, 2, 3]))
            try writer.add("b", try Tensor<UInt16>([3], [1, 2, 3]))
            try writer.add("d", try Tensor<Double>([1], [1]))
            try writer.add("c", try Tensor<Float>([3], [1, 2, 3]))
            let bytes = try writer.encoded()
            #expect((8 + Int(bytes[0]) + Int(bytes[1]) << 8) % 64 == 0)
            let file = try SafetensorsFile(bytes: bytes)
            #expect(file.tensors.map(\.name) == ["d", "c", "b", "a"])
            #expect(try file.span("c", as: Float.self)[2] == 3)
        }
    }

    @Test func theWriterRefusesWhatAFileCannotHold() throws {
        var writer = SafetensorsWriter()
        let tensor = try Tensor<Float>([2], [1, 2])
        try writer.add("x", tensor)
        expectError(.invalidArgument, describing: "\"x\" again") { try writer.add("x", tensor) }
        expectError(.invalidArgument, describing: "__metadata__") { try writer.add("__metadata__", tensor) }
        expectError(.invalidShape, describing: "8 bytes for F32 [2]") {
            try writer.add("y", elementType: .float32, shape: [2], bytes: [1, 2, 3])
        }
        expectError(.invalidShape, describing: "63 bits") {
            try writer.add("y", elementType: .float32, shape: [.max, 2], bytes: [])
        }
        expectError(.invalidShape, describing: "0 or more") {
            try writer.add("y", elementType: .float32, shape: [-1], bytes: [])
        }
        let marked = "a" + String(repeating: "\u{301}", count: 31)
        expectError(.invalidArgument, describing: "30 combining marks") { try writer.add(marked, tensor) }
        expectError(.invalidArgument, describing: "metadata key") {
            _ = try SafetensorsWriter(metadata: [marked: ""]).encoded()
        }
        #expect(try SafetensorsFile(bytes: writer.encoded()).tensors.map(\.name) == ["x"])
    }
}
