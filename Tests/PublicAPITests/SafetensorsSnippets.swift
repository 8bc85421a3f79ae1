import Foundation
import SparseKernels
import Testing

/// The snippets of Docs/Safetensors.md.
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
