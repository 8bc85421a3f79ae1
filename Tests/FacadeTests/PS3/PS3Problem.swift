import PS3
import SparseKernels
import SparseKernelsReference

/// Random weights of a small encoder under the names of a checkpoint.
struct PS3Problem {
    var sides = [42, 84, 168]
    var width = 12
    var heads = 2
    var depth = 2
    var channels = 3
    var hasDetail = true
    var hasResiduals = true

    static let patch = 14

    /// Tensors by their names, without a prefix.
    func tensors() throws -> [(name: String, tensor: Tensor<Float>)] {
        var result: [(name: String, tensor: Tensor<Float>)] = []
        func add(_ name: String, _ shape: [Int], scale: Float = 0.2, around center: Float = 0) throws {
            let noise = try Tensor<Float>.normal(shape, seed: UInt64(result.count + 1), scale: scale)
            result.append((name, try Tensor(shape) { noise[flat: $0] + center }))
        }
        func affine(_ name: String, _ shape: [Int], around center: Float = 0) throws {
            try add(name + ".weight", shape, around: center)
            try add(name + ".bias", [shape[0]], scale: 0.1)
        }
        let (patch, high, inner) = (Self.patch, sides.count - 1, 2 * width)
        try affine("trunk.patch_embed.proj", [width, channels, patch, patch])
        try add("trunk.pos_embed", [1, sides[0] / patch * (sides[0] / patch), width])
        for layer in 0..<depth {
            let path = "trunk.blocks.\(layer)"
            try affine("\(path).norm1", [width], around: 1)
            try affine("\(path).attn.qkv", [3 * width, width])
            try affine("\(path).attn.proj", [width, width])
            try affine("\(path).norm2", [width], around: 1)
            try affine("\(path).mlp.fc1", [inner, width])
            try affine("\(path).mlp.fc2", [width, inner])
        }
        try affine("selection_feature_proj.fc1", [inner, inner])
        try affine("selection_feature_proj.norm", [inner], around: 1)
        try affine("selection_feature_proj.fc2", [high * width, inner])
        try add("prior_prompt", [width], scale: 1)
        if hasResiduals {
            for scale in 1...high {
                try add("pos_emb_residual.\(scale - 1)", [1, sides[scale] / patch * (sides[scale] / patch), width])
            }
        }
        if hasDetail {
            let path = "highres_selection_feature_module"
            try affine("\(path).stem.0", [8, channels, 28, 28])
            try affine("\(path).stem.1", [8], around: 1)
            try affine("\(path).blocks.0.conv_dw", [8, 1, 7, 7])
            try affine("\(path).blocks.0.norm", [8], around: 1)
            try affine("\(path).blocks.0.mlp.fc1", [32, 8])
            try affine("\(path).blocks.0.mlp.fc2", [8, 32])
            try add("\(path).blocks.0.weight", [8])
            try affine("\(path).out_proj", [6, 8, 1, 1])
            try affine("prompt_proj_for_highres", [6 * high, width])
        }
        return result
    }

    /// The weights as a file whose names have a prefix.
    func file(prefix: String = "vision_model.", omitting omitted: String? = nil) throws -> SafetensorsFile {
        var writer = SafetensorsWriter()
        for (name, tensor) in try tensors() where name != omitted { try writer.add(prefix + name, tensor) }
        return try SafetensorsFile(bytes: writer.encoded())
    }

    var configuration: PS3Configuration {
        get throws {
            let scales = try PS3Scales(sides)
            return PS3Configuration(
                scales: scales, budget: try PS3Budget(30, scales), heads: heads, selectionLayers: [0, depth - 1],
                detailSide: 140)
        }
    }

    func encoder(_ set: InstructionSet? = nil) throws -> PS3Encoder {
        let weights = try PS3Weights(file())
        return try PS3Encoder(weights, configuration, instructionSet: set)
    }

    static func pixels(_ rows: Int, _ columns: Int, seed: UInt64 = 9) throws -> Tensor<Float> {
        try .normal([3, rows, columns], seed: seed)
    }
}
