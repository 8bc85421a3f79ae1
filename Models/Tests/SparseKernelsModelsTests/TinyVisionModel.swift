import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference

/// A tiny SigLIP or CLIP model in a folder, with the names of checkpoints, and a description of it in `Double`.
final class TinyVisionModel {
    let folder: String
    let isCLIP: Bool
    private(set) var weights: [String: Tensor<Float>] = [:]
    /// What tensors of the tower begin with.
    let prefix: String

    static let (width, hidden, layers, patch, image) = (24, 40, 3, 6, 20)
    static let projection = 10

    static func configuration(isCLIP: Bool, changes: [String: String?] = [:]) -> String {
        var keys: [String: String] = [
            "hidden_size": "24", "intermediate_size": "40", "num_hidden_layers": "3", "num_attention_heads": "2",
            "image_size": "20", "patch_size": "6", "num_channels": "3", "layer_norm_eps": isCLIP ? "1e-5" : "1e-6",
            "hidden_act": isCLIP ? "\"quick_gelu\"" : "\"gelu_pytorch_tanh\"",
            "model_type": isCLIP ? "\"clip_vision_model\"" : "\"siglip_vision_model\"", "projection_dim": "10",
        ]
        for (key, value) in changes { keys[key] = value }
        return "{\(keys.sorted { $0.key < $1.key }.map { "\"\($0.key)\": \($0.value)" }.joined(separator: ", "))}"
    }

    init(isCLIP: Bool = false, prefix: String = "vision_model.", changes: [String: String?] = [:]) throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("vision-\(UUID().uuidString)").path
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        self.isCLIP = isCLIP
        self.prefix = prefix
        try write(text: Self.configuration(isCLIP: isCLIP, changes: changes), to: "config.json")
        let (d, h, side) = (Self.width, Self.hidden, Self.patch)
        func add(_ name: String, _ shape: [Int], beside: Bool = false) throws {
            let isNorm = name.contains("norm") && name.hasSuffix("weight")
            let depth = Float(max(1, shape.dropFirst().reduce(1, *)))
            var tensor = try Tensor<Float>.normal(
                shape, seed: UInt64(weights.count) + 31, scale: isNorm ? 0.1 : shape.count == 1 ? 0.2 : 1 / depth.squareRoot())
            if isNorm { tensor.update { _, element in element += 1 } }
            weights[(beside ? "" : prefix) + name] = tensor
        }
        func layer(_ name: String, _ rows: Int, _ columns: Int) throws {
            try add(name + ".weight", [rows, columns])
            try add(name + ".bias", [rows])
        }
        func norm(_ name: String) throws {
            try add(name + ".weight", [d])
            try add(name + ".bias", [d])
        }
        try add("embeddings.patch_embedding.weight", [d, 3, side, side])
        let patches = (Self.image / side) * (Self.image / side)
        try add("embeddings.position_embedding.weight", [patches + (isCLIP ? 1 : 0), d])
        if isCLIP {
            try add("embeddings.class_embedding", [d])
            try norm("pre_layrnorm")
            try add("visual_projection.weight", [Self.projection, d], beside: true)
        } else {
            try add("embeddings.patch_embedding.bias", [d])
            try add("head.probe", [1, 1, d])
            try add("head.attention.in_proj_weight", [3 * d, d])
            try add("head.attention.in_proj_bias", [3 * d])
            try layer("head.attention.out_proj", d, d)
            try norm("head.layernorm")
            try layer("head.mlp.fc1", h, d)
            try layer("head.mlp.fc2", d, h)
        }
        for number in 0..<Self.layers {
            let prefix = "encoder.layers.\(number)."
            for part in ["q", "k", "v", "out"] { try layer(prefix + "self_attn.\(part)_proj", d, d) }
            try norm(prefix + "layer_norm1")
            try norm(prefix + "layer_norm2")
            try layer(prefix + "mlp.fc1", h, d)
            try layer(prefix + "mlp.fc2", d, h)
        }
        try norm("post_layernorm")
        try write()
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    func write(text: String, to name: String) throws {
        try Data(text.utf8).write(to: URL(fileURLWithPath: folder + "/" + name))
    }

    /// Writes the weights to one file, without one of them or with another in its place.
    func write(replacing name: String? = nil, by tensor: Tensor<Float>? = nil) throws {
        var writer = SafetensorsWriter()
        for (other, weight) in weights.sorted(by: { $0.key < $1.key }) where other != name { try writer.add(other, weight) }
        if let name, let tensor { try writer.add(name, tensor) }
        try writer.write(to: folder + "/model.safetensors")
    }

    /// Writes the weights to two files and an index, and removes the one file.
    func shard() throws {
        let names = weights.keys.sorted()
        var entries: [String] = []
        for part in 0..<2 {
            var writer = SafetensorsWriter()
            let file = "model-0000\(part + 1)-of-00002.safetensors"
            for (index, name) in names.enumerated() where index % 2 == part {
                try writer.add(name, weights[name]!.converted(to: Float16.self))
                entries.append("\"\(name)\": \"\(file)\"")
            }
            try writer.write(to: folder + "/" + file)
        }
        try write(text: "{\"weight_map\": {\(entries.joined(separator: ", "))}}", to: "model.safetensors.index.json")
        try FileManager.default.removeItem(atPath: folder + "/model.safetensors")
    }

    // MARK: - In Double

    private func affine(_ name: String) -> VisionLayerWeights.Affine {
        VisionLayerWeights.Affine(weight: weights[prefix + name + ".weight"]!, bias: weights[prefix + name + ".bias"])
    }

    func layer(_ number: Int) throws -> VisionLayerWeights {
        let name = "encoder.layers.\(number)."
        return VisionLayerWeights(
            attentionNorm: affine(name + "layer_norm1"),
            queryKeyValue: try .stacking(["q", "k", "v"].map { affine(name + "self_attn.\($0)_proj") }),
            projection: affine(name + "self_attn.out_proj"), mlpNorm: affine(name + "layer_norm2"),
            up: affine(name + "mlp.fc1"), down: affine(name + "mlp.fc2"))
    }

    var layerConfiguration: VisionLayerConfiguration {
        VisionLayerConfiguration(
            width: Self.width, heads: 2, hidden: Self.hidden, epsilon: isCLIP ? 1e-5 : 1e-6,
            activation: isCLIP ? .quickGELU : .geluTanh)
    }

    struct Reference {
        /// The tokens that enter the first layer, and those after each.
        var hidden: [BoundedMatrix]
        var tokens: BoundedMatrix
        var pooled: BoundedMatrix
        var projected: BoundedMatrix?
    }

    /// The model for one picture, `[3, rows, columns]`, with a grid of the size of the table.
    func reference(_ picture: Tensor<Float>) throws -> Reference {
        let (d, side) = (Self.width, Self.patch)
        let (rows, columns) = (picture.shape[1], picture.shape[2])
        var patches: [Double] = []
        for row in 0..<rows / side {
            for column in 0..<columns / side {
                for line in 0..<3 * side {
                    for x in 0..<side {
                        patches.append(Double(picture[line / side, row * side + line % side, column * side + x]))
                    }
                }
            }
        }
        let c = layerConfiguration
        func oracle(_ number: Int) throws -> ReferenceVisionLayer { ReferenceVisionLayer(c, try layer(number)) }
        let any = try oracle(0)
        let depth = 3 * side * side
        let weight = weights[prefix + "embeddings.patch_embedding.weight"]!
        let embedding = VisionLayerWeights.Affine(
            weight: try Tensor([d, depth], weight.elements), bias: weights[prefix + "embeddings.patch_embedding.bias"])
        var x = any.affine(
            BoundedMatrix(rows: patches.count / depth, columns: depth, values: patches), embedding)
        if isCLIP {
            let first = weights[prefix + "embeddings.class_embedding"]!
            x = BoundedMatrix(rows: 1, columns: d, values: first.elements.map(Double.init)).appendingRows(of: x)
        }
        x = x.plus(BoundedMatrix(weights[prefix + "embeddings.position_embedding.weight"]!))
        if isCLIP { x = any.normalized(x, affine("pre_layrnorm"), epsilon: c.epsilon) }
        var hidden = [x]
        for number in 0..<Self.layers { hidden.append(try oracle(number)(hidden.last!).output) }
        let last = hidden.last!
        if isCLIP {
            var first = BoundedMatrix(rows: 1, columns: d, values: Array(last.values[..<d]))
            first.errors = Array(last.errors[..<d])
            let pooled = any.normalized(first, affine("post_layernorm"), epsilon: c.epsilon)
            let projection = VisionLayerWeights.Affine(weight: weights["visual_projection.weight"]!)
            return Reference(hidden: hidden, tokens: last, pooled: pooled, projected: any.affine(pooled, projection))
        }
        let tokens = any.normalized(last, affine("post_layernorm"), epsilon: c.epsilon)
        return Reference(hidden: hidden, tokens: tokens, pooled: pool(tokens, any), projected: nil)
    }

    private func pool(_ tokens: BoundedMatrix, _ any: ReferenceVisionLayer) -> BoundedMatrix {
        let c = layerConfiguration
        let (d, name) = (Self.width, prefix + "head.")
        let weight = BoundedMatrix(weights[name + "attention.in_proj_weight"]!)
        let bias = weights[name + "attention.in_proj_bias"]!.elements.map(Double.init)
        func project(_ x: BoundedMatrix, _ part: Int) -> BoundedMatrix {
            let rows = BoundedMatrix(rows: d, columns: d, values: Array(weight.values[part * d * d..<(part + 1) * d * d]))
            return x.timesTransposed(rows).adding(row: Array(bias[part * d..<(part + 1) * d]))
        }
        let probe = weights[name + "probe"]!.elements.map(Double.init)
        let query = project(BoundedMatrix(rows: 1, columns: d, values: probe), 0)
        let (key, value) = (project(tokens, 1), project(tokens, 2))
        let heads = (0..<c.heads).map { head -> BoundedMatrix in
            let range = head * c.headDim..<(head + 1) * c.headDim
            let scores = query.columns(range).timesTransposed(key.columns(range))
                .times(1 / Double(c.headDim).squareRoot())
            return scores.softmaxOfRows().times(value.columns(range))
        }
        let pooled = any.affine(BoundedMatrix(joiningColumns: heads), affine("head.attention.out_proj"))
        let normed = any.normalized(pooled, affine("head.layernorm"), epsilon: c.epsilon)
        let inner = any.affine(normed, affine("head.mlp.fc1")).mapped(slope: 1.2) {
            (ReferenceRows.activation(.geluTanh, $0), ReferenceRows.activationError(.geluTanh, $0))
        }
        return pooled.plus(any.affine(inner, affine("head.mlp.fc2")))
    }
}
