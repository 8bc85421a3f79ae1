import Foundation
import SVDQuant
import SparseKernels
import Testing

/// The snippets of Docs/Operators/QuantizeTool.md.
@Suite("Snippets: the quantising tool")
struct QuantizeToolSnippets {
    @Test("a calibration file")
    func calibration() throws {
        let path = NSTemporaryDirectory() + "snippet-\(UUID().uuidString).safetensors"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let inputs = ["blocks.0.up": try Tensor<Float>([4, 3]) { Float($0) }]

        var writer = SafetensorsWriter(metadata: ["source": "64 prompts, 8 tokens of each"])
        for (layer, input) in inputs {
            try writer.add(layer, input.converted(to: BFloat16.self))  // [tokens, inFeatures]
        }
        try writer.write(to: path)

        #expect(try SafetensorsFile(path: path).floatTensor("blocks.0.up") == inputs["blocks.0.up"])
    }

    @Test("the layers of the output")
    func layers() throws {
        let output = NSTemporaryDirectory() + "snippet-\(UUID().uuidString).safetensors"
        defer { try? FileManager.default.removeItem(atPath: output) }
        var model = SafetensorsWriter()
        let codes = try Tensor<UInt8>([2, 32]) { UInt8($0) }
        let scales = try Tensor<Float>([2, 1], [0.5, 0.25])
        let weight = try QuantizedWeight(format: .svdQuantInt4, inFeatures: 64, codes: codes, scales: scales)
        try SVDQuantLinear(weight: weight).write(to: &model, prefix: "blocks.0.up")
        try model.write(to: output)

        let file = try SafetensorsFile(path: output)
        for name in try SVDQuantLinear.layers(in: file) {
            let layer = try SVDQuantLinear(file: file, prefix: name)
            print(name, layer.outFeatures, layer.inFeatures, layer.rank)
        }

        #expect(try SVDQuantLinear.layers(in: file) == ["blocks.0.up"])
    }
}
