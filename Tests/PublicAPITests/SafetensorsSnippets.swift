import Foundation
import SparseKernels
import Testing

/// The snippets of Docs/Operators/Safetensors.md.
@Suite("Snippets: safetensors")
struct SafetensorsSnippets {
    @Test("writing, reading, viewing in place")
    func roundTrip() throws {
        let path = NSTemporaryDirectory() + "snippet-\(UUID().uuidString).safetensors"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let keys = try Tensor<Float>([2, 5, 8]) { Float($0) }

        var writer = SafetensorsWriter(metadata: ["layout": "[heads, tokens, headDim]", "softmaxScale": "0.125"])
        try writer.add("key", keys)
        try writer.write(to: path)

        let file = try SafetensorsFile(path: path)
        let view = try file.tensorView("key", as: Float.self)  // the file's own memory
        let copy = try file.floatTensor("key")  // a copy; F16 and BF16 are widened exactly
        print(view.heads, view.tokens, view.channels, copy.shape)  // 2 5 8 [2, 5, 8]
        print(file.metadata["softmaxScale"] ?? "none", file.tensors.map(\.name))

        #expect(view[1, 4, 7] == 79 && copy == keys)
    }

    @Test("a tensor of a type that is not known")
    func laterTypes() throws {
        var writer = SafetensorsWriter()
        try writer.add("weight", try Tensor<Float>([2], [1, 2]))
        try writer.add("scales", elementType: .float8E8M0, shape: [4], bytes: [127, 128, 129, 126])
        let download = try writer.encoded()

        let file = try SafetensorsFile(bytes: download, named: "quantised.safetensors")
        let scales = try file.entry(named: "scales")
        print(scales.elementType.rawValue, scales.elementType.bitCount ?? 0, scales.shape)  // F8_E8M0 8 [4]
        let bytes = try file.bytes("scales")  // of any type, in place
        let weight = try file.floatTensor("weight")  // its neighbour

        var copy = SafetensorsWriter(metadata: file.metadata)
        for entry in file.tensors { try copy.add(entry.name, from: file) }

        #expect(try bytes.byteCount == 4 && weight.elements == [1, 2] && copy.encoded() == download)
    }

    @Test("what a broken file says")
    func errors() throws {
        let bytes: [UInt8] = [255, 255, 255, 255, 0, 0, 0, 0]

        do {
            _ = try SafetensorsFile(bytes: bytes, named: "upload.safetensors")
        } catch {
            // Typed: `error` is a SparseKernelsError.
            print(error.code, error.argument, error.expected, error.actual, separator: " | ")
        }

        let error = #expect(throws: SparseKernelsError.self) { try SafetensorsFile(bytes: bytes, named: "upload.safetensors") }
        let start = "malformed file: upload.safetensors, header length must be at most the 0 bytes "
        #expect(error?.description.hasPrefix(start) == true)
    }
}
