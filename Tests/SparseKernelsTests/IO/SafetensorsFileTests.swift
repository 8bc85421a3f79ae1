import Foundation
import HostileFiles
import SparseKernels
import TestSupport
import Testing

@Suite struct SafetensorsFileTests {
    // MARK: - Asking for the wrong thing

    private func sample() throws -> SafetensorsFile {
        var writer = SafetensorsWriter()
        try writer.add("layers.0.key", try Tensor<Float>([2, 3, 4]) { Float($0) })
        try writer.add("layers.0.value", try Tensor<Float>([6, 4]) { Float($0) })
        try writer.add("layers.1.key", try Tensor<BFloat16>([2]) { BFloat16(Float($0)) })
        try writer.add("mask", elementType: .bool, shape: [2], bytes: [1, 0])
        try writer.add("tiny", elementType: .float8E4M3, shape: [2], bytes: [1, 0])
        return try SafetensorsFile(bytes: writer.encoded(), named: "sample.safetensors")
    }

    @Test func unknownNamesListSimilarOnes() throws {
        let file = try sample()
        expectError(
            .notFound, describing: "sample.safetensors, tensor \"layers.0.kez\"",
            "one of its 5 tensors, such as \"layers.0.key\""
        ) {
            _ = try file.span("layers.0.kez", as: Float.self).count
        }
        expectError(.notFound, describing: "\"layers.1.key\"") { _ = try file.tensor("layers.2.key", as: Float.self) }
        expectError(.notFound, describing: "such as") { _ = try file.bytes("").byteCount }
        #expect(file["nothing"] == nil)
        let empty = try SafetensorsFile(bytes: SafetensorsWriter().encoded())
        expectError(.notFound, describing: "which has no tensors") { _ = try empty.entry(named: "x") }
    }

    @Test func otherTypesAreRefused() throws {
        let file = try sample()
        expectError(.invalidElementType, describing: "\"layers.0.key\" must be read as F32", "got I32 (Int32)") {
            _ = try file.span("layers.0.key", as: Int32.self).count
        }
        expectError(.invalidElementType, describing: "read as BF16") { _ = try file.tensor("layers.1.key", as: Float.self) }
        expectError(.invalidElementType, describing: "read as BOOL, which the file holds, in UInt8, got I8") {
            _ = try file.tensor("mask", as: Int8.self)
        }
        expectError(.invalidElementType, describing: "F32, F16 or BF16, got BOOL") { _ = try file.floatTensor("mask") }
        expectError(.invalidElementType, describing: "read as F8_E4M3") { _ = try file.tensor("tiny", as: UInt8.self) }
    }

    @Test func operandsFollowTheLayout() throws {
        let file = try sample()
        let heads = try file.tensorView("layers.0.key", as: Float.self, layout: .hnd)
        #expect(heads.heads == 2 && heads.tokens == 3 && heads.channels == 4 && heads[1, 2, 3] == 23)
        let tokens = try file.tensorView("layers.0.key", as: Float.self, layout: .nhd)
        #expect(tokens.heads == 3 && tokens.tokens == 2 && tokens.channels == 4 && tokens[1, 1, 0] == 16)
        let one = try file.tensorView("layers.0.value", as: Float.self)
        #expect(one.heads == 1 && one.tokens == 6 && one[0, 5, 3] == 23)
        expectError(.invalidShape, describing: "rank 1, [2]") {
            _ = try file.tensorView("layers.1.key", as: BFloat16.self).heads
        }
    }

    // MARK: - Alignment

    @Test(arguments: 0..<8)
    func misalignedTensorsCanBeCopied(_ spaces: Int) throws {
        let header =
            #"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"# + String(repeating: " ", count: spaces)
        var bytes = fileBytes(header)
        for value: Float in [1.5, -2] {
            for i in 0..<4 { bytes.append(UInt8(truncatingIfNeeded: value.bitPattern >> (8 * UInt32(i)))) }
        }
        let file = try SafetensorsFile(bytes: bytes)
        #expect(try file.tensor("x", as: Float.self).elements == [1.5, -2])
        #expect(try file.floatTensor("x").elements == [1.5, -2])
        if (8 + header.utf8.count) % 4 == 0 {
            #expect(try file.span("x", as: Float.self)[1] == -2)
        } else {
            expectError(
                .misalignedData, describing: "aligned to 4 bytes", "`tensor(_:as:)`", "file offset \(8 + header.utf8.count)"
            ) {
                _ = try file.span("x", as: Float.self).count
            }
        }
    }

    @Test func misalignedTypesOfEverySize() throws {
        // The odd size of the first tensor moves the second one to an odd address.
        for (type, size) in [("F16", 2), ("BF16", 2), ("I64", 8)] {
            let header =
                #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"#
                + #""b":{"dtype":"\#(type)","shape":[1],"data_offsets":[1,\#(1 + size)]}}"#
            let padding = String(repeating: " ", count: (8 - header.utf8.count % 8) % 8)
            try readEverything(fileBytes(header + padding, data: 1 + size), rewrites: true)
        }
    }

    // MARK: - Files on disk

    @Test func readsWhatItWrote() throws {
        let directory = try TemporaryDirectory()
        var writer = SafetensorsWriter(metadata: ["a": "b"])
        try writer.add("x", try Tensor<Float>([100, 1000]) { Float($0) })
        try writer.add("y", elementType: .bool, shape: [3], bytes: [1, 0, 1])
        try writer.write(to: "\(directory.path)/f.safetensors")
        #expect(directory.contents == ["f.safetensors"])
        #expect(try directory.bytes("f.safetensors") == writer.encoded())
        let file = try SafetensorsFile(path: "\(directory.path)/f.safetensors")
        #expect(try file.span("x", as: Float.self)[99_999] == 99_999)
        #expect(file.metadata == ["a": "b"])
        #expect(file.name == "\(directory.path)/f.safetensors")
    }

    @Test func anOpenFileSurvivesItsReplacement() throws {
        let directory = try TemporaryDirectory()
        let path = "\(directory.path)/f.safetensors"
        for value: Float in [1, 2] {
            let open = value == 2 ? try SafetensorsFile(path: path) : nil
            var writer = SafetensorsWriter()
            try writer.add("x", try Tensor<Float>([1], [value]))
            try writer.write(to: path)
            if let open { #expect(try open.floatTensor("x").elements == [1]) }
            #expect(try SafetensorsFile(path: path).floatTensor("x").elements == [value])
        }
    }

    @Test func unreadablePaths() throws {
        let directory = try TemporaryDirectory()
        expectError(.inputOutput, describing: "/none.safetensors", "No such file or directory") {
            _ = try SafetensorsFile(path: "\(directory.path)/none.safetensors")
        }
        expectError(.inputOutput, describing: "a regular file, got a directory") {
            _ = try SafetensorsFile(path: directory.path)
        }
        expectError(.inputOutput, describing: "got an empty string") { _ = try SafetensorsFile(path: "") }
        expectError(.inputOutput, describing: "without zero bytes") { _ = try SafetensorsFile(path: "/tmp\0/x") }
        #expect(FileManager.default.createFile(atPath: "\(directory.path)/empty", contents: nil))
        expectError(.malformedFile, describing: "/empty must be a safetensors file, got an empty file") {
            _ = try SafetensorsFile(path: "\(directory.path)/empty")
        }
        let pipe = "\(directory.path)/pipe"
        if mkfifo(pipe, 0o600) == 0 {
            expectError(.inputOutput, describing: "got a pipe, socket or device") { _ = try SafetensorsFile(path: pipe) }
        }
    }
}
