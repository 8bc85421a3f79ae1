public import SparseKernels
internal import SparseKernelsReference

/// The weights of a vision transformer: those of a checkpoint, with the names of Hugging Face transformers, or random ones.
///
/// Tensors are read when they are asked for, so that a model can be made layer by layer without all of them in memory.
public struct VisionTransformerWeights: Sendable {
    public typealias Affine = VisionLayerWeights.Affine
    public let configuration: VisionTransformerConfiguration
    private let source: Source

    private enum Source: Sendable {
        case random(seed: UInt64)
        /// What the names of the tower begin with.
        case files(ModelFiles, prefix: String)
    }

    /// Independent normal weights. A seed gives the same ones on every machine.
    ///
    /// Matrices have the deviation 1/√inFeatures, and positions are small beside patches, so that tokens of similar patches stay
    /// similar from layer to layer, as they do in trained models.
    /// - Throws: `.invalidShape` for sizes that no model has.
    public init(_ configuration: VisionTransformerConfiguration, seed: UInt64) throws(SparseKernelsError) {
        try configuration.validate()
        self.configuration = configuration
        source = .random(seed: seed)
    }

    /// Opens `model.safetensors`, or the files of its index, and `config.json` of a folder: of a whole SigLIP or CLIP model, or of its
    /// vision tower.
    ///
    /// - Throws: `.inputOutput` and `.malformedFile` for files that cannot be read, and `.notFound` for a file without a vision tower.
    public init(folder: String) throws(SparseKernelsError) {
        configuration = try VisionTransformerConfiguration(path: folder + "/config.json")
        let files = try ModelFiles(folder: folder)
        let name = "embeddings.patch_embedding.weight"
        guard let prefix = ["vision_model.", "", "vision_tower.vision_model."].first(where: { files.has($0 + name) }) else {
            throw SparseKernelsError(
                .notFound, "\(files.name), tensor \"vision_model.\(name)\"",
                expected: "there, as in models with a vision tower",
                actual: "no tensor of that name")
        }
        source = .files(files, prefix: prefix)
    }

    // MARK: - Tensors

    private func tensor(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
        switch source {
        case .files(let files, let prefix): return try files.tensor(prefix + name, shape)
        case .random(let seed):
            // The seed of a tensor is made from its name, so that it does not depend on the other tensors.
            var hash = seed &* 0x9e37_79b9_7f4a_7c15
            for byte in name.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
            if name.hasSuffix("bias") { return try .normal(shape, seed: hash, scale: 0.02) }
            if shape.count == 1 && name != "embeddings.class_embedding" {
                return try Tensor(shape, Array(repeating: 1, count: shape[0]))
            }
            if name.hasPrefix("embeddings.position") { return try .normal(shape, seed: hash, scale: 0.1) }
            let inFeatures = shape.dropFirst().reduce(1, *)
            return try .normal(shape, seed: hash, scale: 1 / Float(inFeatures).squareRoot())
        }
    }

    private func affine(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Affine {
        Affine(weight: try tensor(name + ".weight", shape), bias: try tensor(name + ".bias", [shape[0]]))
    }

    private func has(_ name: String) -> Bool {
        guard case .files(let files, let prefix) = source else { return true }
        return files.has(prefix + name)
    }

    private var width: Int { configuration.width }

    /// `[width, 3, patchSize, patchSize]`; CLIP has no bias.
    public func patchEmbedding() throws(SparseKernelsError) -> Affine {
        let shape = [
            width, VisionTransformerConfiguration.colourChannels, configuration.patchSize, configuration.patchSize,
        ]
        if configuration.family == .siglip { return try affine("embeddings.patch_embedding", shape) }
        return Affine(weight: try tensor("embeddings.patch_embedding.weight", shape))
    }

    /// `[width]`; nil for SigLIP.
    public func classEmbedding() throws(SparseKernelsError) -> Tensor<Float>? {
        configuration.family == .clip ? try tensor("embeddings.class_embedding", [width]) : nil
    }

    /// `[classTokens + patches, width]`.
    public func positions() throws(SparseKernelsError) -> Tensor<Float> {
        let rows = configuration.classTokens + configuration.grid.count
        return try tensor("embeddings.position_embedding.weight", [rows, width])
    }

    /// The norm before the layers; nil for SigLIP. Its name has a slip of the pen that all such files share.
    public func preNorm() throws(SparseKernelsError) -> Affine? {
        configuration.family == .clip ? try affine("pre_layrnorm", [width]) : nil
    }

    /// The norm after the layers.
    public func postNorm() throws(SparseKernelsError) -> Affine { try affine("post_layernorm", [width]) }

    /// The weights of a layer, 0 to `layers` − 1.
    public func layer(_ number: Int) throws(SparseKernelsError) -> VisionLayerWeights {
        let (c, prefix) = (configuration.layer, "encoder.layers.\(number).")
        let inner = c.innerWidth
        var parts: [Affine] = []
        for name in ["q", "k", "v"] { parts.append(try affine(prefix + "self_attn.\(name)_proj", [inner, c.width])) }
        return VisionLayerWeights(
            attentionNorm: try affine(prefix + "layer_norm1", [c.width]), queryKeyValue: try .stacking(parts),
            projection: try affine(prefix + "self_attn.out_proj", [c.width, inner]),
            mlpNorm: try affine(prefix + "layer_norm2", [c.width]), up: try affine(prefix + "mlp.fc1", [c.hidden, c.width]),
            down: try affine(prefix + "mlp.fc2", [c.width, c.hidden]))
    }

    /// The head that pools by attention; nil for models without one.
    func poolingHead() throws(SparseKernelsError) -> VisionPoolingHead.Weights? {
        guard configuration.hasPoolingHead else { return nil }
        let c = configuration.layer
        return VisionPoolingHead.Weights(
            probe: try tensor("head.probe", [1, 1, width]),
            input: Affine(
                weight: try tensor("head.attention.in_proj_weight", [3 * width, width]),
                bias: try tensor("head.attention.in_proj_bias", [3 * width])),
            output: try affine("head.attention.out_proj", [width, width]), norm: try affine("head.layernorm", [width]),
            up: try affine("head.mlp.fc1", [c.hidden, width]), down: try affine("head.mlp.fc2", [width, c.hidden]))
    }

    /// CLIP's projection of the class token, `[projectionSize, width]`; nil for models without one.
    func projection() throws(SparseKernelsError) -> Tensor<Float>? {
        guard let size = configuration.projectionSize else { return nil }
        guard case .files(let files, _) = source else { return try tensor("visual_projection.weight", [size, width]) }
        // It stands beside the tower, and a tower alone need not have it.
        return files.has("visual_projection.weight") ? try files.tensor("visual_projection.weight", [size, width]) : nil
    }
}
