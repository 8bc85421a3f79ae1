import Foundation
import NemotronH
import SparseKernelsReference
import Testing

/// The snippets of Docs/Papers/NemotronH.md.
@Suite("Snippets of the NemotronH guide")
struct NemotronHSnippets {
    @Test("a layer of a checkpoint: a prompt, then steps")
    func layer() throws {
        let path = NSTemporaryDirectory() + "nemotron-h-\(UUID().uuidString).safetensors"
        defer { try? FileManager.default.removeItem(atPath: path) }
        var writer = SafetensorsWriter()
        let shapes = [
            "in_proj.weight": [196, 48], "out_proj.weight": [48, 64], "conv1d.weight": [128, 1, 4], "conv1d.bias": [128],
            "dt_bias": [4], "A_log": [4], "D": [4], "norm.weight": [64],
        ]
        for (name, shape) in shapes { try writer.add("backbone.layers.0.mixer." + name, Tensor<Float>.normal(shape, seed: 1)) }
        try writer.write(to: path)
        let prompt = try Tensor<Float>.normal([30, 48], seed: 2)
        let next = try Tensor<Float>.normal([1, 48], seed: 3)

        let file = try SafetensorsFile(path: path)
        let configuration = try Mamba2Configuration(heads: 4, headDim: 16, groups: 2, stateSize: 16)
        let layer = try Mamba2Layer(file: file, prefix: "backbone.layers.0.mixer", configuration)
        let states = try Mamba2States(slots: 8, configuration)
        // Two prompts of 20 and 10 tokens, one behind the other, and a step of the second.
        let y = try layer(prompt, batch: PackedSequences(lengths: [20, 10], slots: [0, 1]), states: states)
        let step = try layer(next, batch: PackedSequences(stepOf: [1]), states: states)

        #expect(y.shape == [30, 48] && step.shape == [1, 48])
    }

    @Test("patterns, and the layers that stay in 16 bits")
    func pattern() throws {
        let pattern = try HybridPattern("M-M*-M-M*-M-M-")
        for (layer, kind) in pattern.layers.enumerated() where kind == .attention {
            print(layer, pattern.ordinal(of: layer))  // 3 0, then 8 1
        }
        let rule = BFloat16Layers(first: 1, last: 1)
        print(pattern.layers.indices.filter { rule.contains($0, of: pattern.layers.count) })  // [0, 13]

        #expect(pattern.count(of: .attention) == 2 && rule.contains(13, of: 14))
    }
}
