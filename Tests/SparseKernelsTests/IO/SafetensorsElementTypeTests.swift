import HostileFiles
import SparseKernels
import Testing

/// Types of files in which nothing here computes. A tensor of such a type is not readable, and all others are.
@Suite("Element types of later files")
struct SafetensorsElementTypeTests {
    /// A file with a readable tensor on either side of one with the given type.
    private func file(_ type: String, _ shape: [Int], bytes: Int, more: String = "") throws -> SafetensorsFile {
        let header = """
            {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},\
            "z":{"dtype":"\(type)","shape":\(shape),"data_offsets":[8,\(8 + bytes)]\(more)},\
            "b":{"dtype":"I32","shape":[1],"data_offsets":[\(8 + bytes),\(12 + bytes)]}}
            """
        var contents = fileBytes(header)
        for value: Float in [1, 2] { withUnsafeBytes(of: value.bitPattern.littleEndian) { contents.append(contentsOf: $0) } }
        contents += (0..<bytes).map { UInt8(truncatingIfNeeded: $0 * 7 + 1) } + [9, 0, 0, 0]
        return try SafetensorsFile(bytes: contents, named: "new.safetensors")
    }

    private static let types: [(name: String, shape: [Int], bytes: Int, bits: Int?)] = [
        ("C64", [1], 8, 64), ("C64", [], 8, 64), ("F8_E8M0", [8], 8, 8), ("F8_E4M3FNUZ", [2, 3], 6, 8),
        ("F8_E5M2FNUZ", [5], 5, 8),
        ("F4", [16], 8, 4), ("F4", [3, 2], 3, 4), ("F4", [0, 3], 0, 4), ("F6_E2M3", [4], 3, 6), ("F6_E3M2", [2, 4], 6, 6),
        ("F6_E3M2", [3, 0], 0, 6), ("Q4_0", [32], 18, nil), ("f32", [2], 8, nil), ("F8_E4M3FN", [3], 1000, nil),
        ("I2", [7], 2, nil), ("nothing", [1 << 40], 0, nil), ("a name with spaces (v2)", [], 3, nil),
    ]

    @Test("the tensors beside it are read, and it is offered as bytes with its type's name", arguments: types)
    func neighbours(_ type: (name: String, shape: [Int], bytes: Int, bits: Int?)) throws {
        let file = try file(type.name, type.shape, bytes: type.bytes)
        #expect(try file.floatTensor("a").elements == [1, 2])
        #expect(try file.tensor("b", as: Int32.self).elements == [9])
        let entry = try file.entry(named: "z")
        #expect(entry.elementType.rawValue == type.name && entry.elementType == ElementType(rawValue: type.name))
        #expect(entry.elementType.bitCount == type.bits && entry.shape == type.shape && entry.count == type.shape.reduce(1, *))
        let bytes = try file.bytes("z").withUnsafeBytes { Array($0) }
        #expect(bytes == (0..<type.bytes).map { UInt8(truncatingIfNeeded: $0 * 7 + 1) })
    }

    @Test("reading it as numbers is an error that names tensor and type", arguments: types)
    func numbers(_ type: (name: String, shape: [Int], bytes: Int, bits: Int?)) throws {
        let file = try file(type.name, type.shape, bytes: type.bytes)
        func expect(_ body: () throws -> Void) {
            let error = #expect(throws: SparseKernelsError.self) { try body() }
            #expect(error?.code == .invalidElementType && error!.argument.contains("\"z\""))
            #expect(error!.description.contains(type.name), "\(error!)")
        }
        expect { _ = try file.floatTensor("z") }
        expect { _ = try file.tensor("z", as: UInt8.self) }
        expect { _ = try file.tensor("z", as: E4M3.self) }
        expect { _ = try file.span("z", as: Float.self).count }
        expect { _ = try file.tensorView("z", as: BFloat16.self).heads }
    }

    @Test("it goes from file to file bit for bit, and leaves the others aligned", arguments: types)
    func copies(_ type: (name: String, shape: [Int], bytes: Int, bits: Int?)) throws {
        let file = try file(type.name, type.shape, bytes: type.bytes)
        var writer = SafetensorsWriter()
        for name in ["a", "z", "b"] { try writer.add(name, from: file) }
        try writer.add("renamed", from: file, named: "z")
        try file.bytes("z").withUnsafeBytes { bytes in
            try writer.add(
                "again", elementType: ElementType(rawValue: type.name), shape: type.shape, bytes: Array(bytes))
        }
        let copy = try SafetensorsFile(bytes: writer.encoded())
        for name in ["z", "renamed", "again"] {
            let entry = try copy.entry(named: name)
            #expect(entry.elementType.rawValue == type.name && entry.shape == type.shape)
            let (old, new) = (try file.bytes("z"), try copy.bytes(name))
            let isSame = old.isEqual(to: new)
            #expect(isSame)
        }
        let (floats, integers) = (try copy.span("a", as: Float.self), try copy.span("b", as: Int32.self))
        #expect(floats[1] == 2 && integers[0] == 9)
    }

    @Test("names and cases agree, also where somebody makes a case of a known name")
    func names() throws {
        for type in ElementType.allCases {
            #expect(ElementType(rawValue: type.rawValue) == type && type != .other("?"))
            if case .other = ElementType(rawValue: type.rawValue) { Issue.record("\(type) is not known by its name") }
            #expect(type == .other(type.rawValue) && type.hashValue == ElementType.other(type.rawValue).hashValue)
        }
        #expect(Set(ElementType.allCases).count == ElementType.allCases.count)
        #expect(ElementType.float4.byteCount == nil && ElementType.float6E2M3.byteCount == nil)
        #expect(ElementType.complex64.byteCount == 8 && ElementType.other("x").byteCount == nil)
        // A size that contradicts a known name is refused, however the name was given.
        var writer = SafetensorsWriter()
        let error = #expect(throws: SparseKernelsError.self) {
            try writer.add("x", elementType: .other("F32"), shape: [2], bytes: [1, 2, 3])
        }
        #expect(error?.code == .invalidShape)
        for name in ["", "ä", "a\n", String(repeating: "x", count: 65)] {
            let error = #expect(throws: SparseKernelsError.self) {
                try writer.add("x", elementType: .other(name), shape: [2], bytes: [1, 2, 3])
            }
            #expect(error?.code == .invalidElementType)
        }
        let odd = #expect(throws: SparseKernelsError.self) {
            try writer.add("x", elementType: .float4, shape: [3], bytes: [1, 2])
        }
        #expect(odd?.code == .invalidShape)
    }

    // MARK: - Types that the reference implementation accepts

    @Test(
        "other keys in an entry, whatever their values",
        arguments: [
            "null", "1.5e3", "-0.0", "1e999", #"{"a":[1,{"b":null}],"c":"\u00e9"}"#, "[]", "{}", " [ 1 , 2 ] ", "false",
            #""text""#,
            #"1,"more":2"#, #"{"dtype":"F64"}"#,
        ])
    func extraKeys(_ value: String) throws {
        let file = try file("F16", [1], bytes: 2, more: #","more":\#(value)"#)
        #expect(try file.floatTensor("a").elements == [1, 2])
        #expect(try file.entry(named: "z").elementType == .float16)
        let first = #"{"x":{"more":\#(value),"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#
        #expect(try SafetensorsFile(bytes: fileBytes(first)).tensors.map(\.name) == ["x"])
    }

    @Test(
        "white space around the header and null as metadata",
        arguments: [("", ""), ("", "\n"), (" \t\r\n", "\n\r\t "), ("\n", ""), ("", "    \n")])
    func whiteSpace(_ before: String, _ after: String) throws {
        let header = #"{"__metadata__":null,"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#
        let file = try SafetensorsFile(bytes: fileBytes(before + header + after, data: 2))
        #expect(file.metadata == [:] && file.tensors.count == 1)
        #expect(try file.tensor("x", as: UInt8.self).elements == [0, 0])
        #expect(try SafetensorsFile(bytes: fileBytes(before + "{}" + after)).tensors.isEmpty)
        #expect(try SafetensorsFile(bytes: fileBytes(before + #"{ "__metadata__" : null }"# + after)).metadata.isEmpty)
    }
}
