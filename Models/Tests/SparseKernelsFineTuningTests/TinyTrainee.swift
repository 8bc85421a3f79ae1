import Foundation
import SparseKernels
import SparseKernelsReference

/// A folder with a small model of the Llama type and random weights in single precision: 2 layers, hidden size 24, 4 query and 2 KV heads of 8
/// channels. It is removed when the test ends.
final class TinyTrainee {
    static let (vocabulary, hidden, inner, heads, kvHeads, headDim, layers) = (40, 24, 48, 4, 2, 8, 2)
    let folder = NSTemporaryDirectory() + "sparsekernels-trainee-\(UUID().uuidString)"
    private(set) var weights: [String: Tensor<Float>] = [:]

    /// - Parameters:
    ///   - seed: of the weights.
    ///   - hasBias: whether queries, keys and values have biases.
    ///   - fields: other fields of `config.json`.
    init(seed: UInt64 = 1, hasBias: Bool = false, fields: [String: Any] = [:]) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        var all: [String: Any] = [
            "vocab_size": 40, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 100.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "hidden_act": "silu", "model_type": hasBias ? "qwen2" : "llama",
        ]
        all.merge(fields) { _, new in new }
        try JSONSerialization.data(withJSONObject: all).write(to: URL(fileURLWithPath: folder + "/config.json"))
        var shapes = ["model.embed_tokens.weight": [Self.vocabulary, Self.hidden], "model.norm.weight": [Self.hidden]]
        let (queries, keys) = (Self.heads * Self.headDim, Self.kvHeads * Self.headDim)
        for layer in 0..<Self.layers {
            let block = "model.layers.\(layer)."
            shapes[block + "input_layernorm.weight"] = [Self.hidden]
            shapes[block + "post_attention_layernorm.weight"] = [Self.hidden]
            shapes[block + "self_attn.q_proj.weight"] = [queries, Self.hidden]
            shapes[block + "self_attn.k_proj.weight"] = [keys, Self.hidden]
            shapes[block + "self_attn.v_proj.weight"] = [keys, Self.hidden]
            shapes[block + "self_attn.o_proj.weight"] = [Self.hidden, queries]
            shapes[block + "mlp.gate_proj.weight"] = [Self.inner, Self.hidden]
            shapes[block + "mlp.up_proj.weight"] = [Self.inner, Self.hidden]
            shapes[block + "mlp.down_proj.weight"] = [Self.hidden, Self.inner]
            guard hasBias else { continue }
            for (name, count) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
                shapes[block + "self_attn.\(name).bias"] = [count]
            }
        }
        var writer = SafetensorsWriter()
        for (index, name) in shapes.keys.sorted().enumerated() {
            let isNorm = name.hasSuffix("norm.weight")
            var tensor = try Tensor<Float>.normal(shapes[name]!, seed: seed &+ UInt64(index), scale: isNorm ? 0.2 : 0.3)
            if isNorm { tensor.update { _, element in element += 1 } }
            weights[name] = tensor
            try writer.add(name, tensor)
        }
        try writer.write(to: folder + "/model.safetensors")
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }
}

/// A folder for the files of a run, which is removed when the test ends.
final class RunFolder {
    let path = NSTemporaryDirectory() + "sparsekernels-run-\(UUID().uuidString)"

    deinit { try? FileManager.default.removeItem(atPath: path) }
}
