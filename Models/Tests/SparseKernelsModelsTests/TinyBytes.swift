import Foundation
import SparseKernels
import SparseKernelsReference

/// A folder with a language model over bytes: two layers, random weights, and heads of 16 channels. It is removed when the test
/// ends.
final class TinyBytes {
    let folder = NSTemporaryDirectory() + "sparsekernels-bytes-\(UUID().uuidString)"

    init() throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let (vocabulary, hidden, intermediate, queryHeads, kvHeads, headDim, layers) = (256, 64, 128, 4, 2, 16, 2)
        let configuration = """
            {"model_type": "llama", "vocab_size": \(vocabulary), "hidden_size": \(hidden), "intermediate_size": \(intermediate),
             "num_hidden_layers": \(layers), "num_attention_heads": \(queryHeads), "num_key_value_heads": \(kvHeads),
             "head_dim": \(headDim), "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}
            """
        try Data(configuration.utf8).write(to: URL(fileURLWithPath: folder + "/config.json"))
        var shapes = ["model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden]]
        for layer in 0..<layers {
            let block = "model.layers.\(layer)."
            shapes[block + "self_attn.q_proj.weight"] = [queryHeads * headDim, hidden]
            shapes[block + "self_attn.k_proj.weight"] = [kvHeads * headDim, hidden]
            shapes[block + "self_attn.v_proj.weight"] = [kvHeads * headDim, hidden]
            shapes[block + "self_attn.o_proj.weight"] = [hidden, queryHeads * headDim]
            shapes[block + "mlp.gate_proj.weight"] = [intermediate, hidden]
            shapes[block + "mlp.up_proj.weight"] = [intermediate, hidden]
            shapes[block + "mlp.down_proj.weight"] = [hidden, intermediate]
            shapes[block + "input_layernorm.weight"] = [hidden]
            shapes[block + "post_attention_layernorm.weight"] = [hidden]
        }
        var writer = SafetensorsWriter()
        for (index, name) in shapes.keys.sorted().enumerated() {
            let scale: Float = name.hasSuffix("norm.weight") ? 1 : 0.2
            try writer.add(name, Tensor<Float>.normal(shapes[name]!, seed: UInt64(index), scale: scale))
        }
        try writer.write(to: folder + "/model.safetensors")
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }
}
