import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference

/// A folder with a language model of one layer, with random weights, in the sizes of Llama 3 8B. The vocabulary is small, so that a
/// pass is the layer. The folder is removed with the object.
final class LayerModel {
    static let (hidden, inner, queryHeads, kvHeads, headDim, vocabulary) = (4096, 14_336, 32, 8, 128, 256)

    /// The linear layers as a pass calls them: outputs side by side, and input features.
    static let linears = [
        (name: "query, key, value", outFeatures: (queryHeads + 2 * kvHeads) * headDim, inFeatures: hidden),
        (name: "output", outFeatures: hidden, inFeatures: queryHeads * headDim),
        (name: "gate, up", outFeatures: 2 * inner, inFeatures: hidden),
        (name: "down", outFeatures: hidden, inFeatures: inner),
    ]

    let folder = NSTemporaryDirectory() + "sparsekernels-layer-\(UUID().uuidString)"

    init(context: Int) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let text = """
            {"model_type": "llama", "vocab_size": \(Self.vocabulary), "hidden_size": \(Self.hidden), "intermediate_size": \
            \(Self.inner), "num_hidden_layers": 1, "num_attention_heads": \(Self.queryHeads), "num_key_value_heads": \
            \(Self.kvHeads), "head_dim": \(Self.headDim), "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu", \
            "tie_word_embeddings": true, "max_position_embeddings": \(context)}
            """
        try Data(text.utf8).write(to: URL(fileURLWithPath: folder + "/config.json"))
        var writer = SafetensorsWriter()
        for (index, (name, shape)) in Self.weights.enumerated() {
            try writer.add(name, Self.random(shape, seed: UInt64(index)))
        }
        try writer.write(to: folder + "/model.safetensors")
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    /// Numbers of about the size of trained weights; those of norms are 1.
    static func random(_ shape: [Int], seed: UInt64) throws -> Tensor<Float16> {
        if shape.count == 1 { return try Tensor<Float16>(shape) { _ in 1 } }
        return try Tensor<Float>.normal(shape, seed: seed, scale: 0.02).converted(to: Float16.self)
    }

    private static var weights: [(String, [Int])] {
        let prefix = "model.layers.0."
        let (queries, keys) = (queryHeads * headDim, kvHeads * headDim)
        return [
            ("model.embed_tokens.weight", [vocabulary, hidden]), ("model.norm.weight", [hidden]),
            (prefix + "input_layernorm.weight", [hidden]), (prefix + "post_attention_layernorm.weight", [hidden]),
            (prefix + "self_attn.q_proj.weight", [queries, hidden]), (prefix + "self_attn.k_proj.weight", [keys, hidden]),
            (prefix + "self_attn.v_proj.weight", [keys, hidden]), (prefix + "self_attn.o_proj.weight", [hidden, queries]),
            (prefix + "mlp.gate_proj.weight", [inner, hidden]), (prefix + "mlp.up_proj.weight", [inner, hidden]),
            (prefix + "mlp.down_proj.weight", [hidden, inner]),
        ]
    }
}
