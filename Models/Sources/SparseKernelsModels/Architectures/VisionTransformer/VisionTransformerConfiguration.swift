public import SparseKernels

/// The sizes of a vision transformer of the SigLIP or CLIP family, from the `config.json` of a checkpoint or given by hand.
///
/// Keys that are absent have the defaults of the library that writes such files. Keys that request arithmetic which
/// `VisionTransformer` does not do are errors, because the result would be that of another model.
public struct VisionTransformerConfiguration: Hashable, Sendable {
    /// What stands around the layers.
    public enum Family: String, Hashable, Sendable, CaseIterable {
        /// A biased patch embedding, and a head that pools by attention.
        case siglip
        /// A class token, a norm before the layers, and a projection of the class token.
        case clip
    }

    public var family: Family
    /// Rows and columns, in pixels, of the pictures that the position table was made for.
    public var imageSize: Int
    /// Rows and columns of a patch, in pixels.
    public var patchSize: Int
    public var layer: VisionLayerConfiguration
    public var layers: Int
    /// Whether a SigLIP model has the head that pools.
    public var hasPoolingHead: Bool
    /// Channels of CLIP's projection of the class token; nil for none.
    public var projectionSize: Int?

    /// Red, green and blue.
    public static let colourChannels = 3

    /// A SigLIP model.
    public init(
        imageSize: Int, patchSize: Int, layer: VisionLayerConfiguration, layers: Int, hasPoolingHead: Bool = false
    ) {
        family = .siglip
        self.imageSize = imageSize
        self.patchSize = patchSize
        self.layer = layer
        self.layers = layers
        self.hasPoolingHead = hasPoolingHead
        projectionSize = nil
    }

    /// SigLIP so400m with patches of 14 pixels: 27 layers of width 1152, 16 heads of 72 channels, MLP 4304.
    /// - Parameter imageSize: 224, 378 or 448 pixels for released models.
    public static func so400m(imageSize: Int = 378) -> Self {
        Self(
            imageSize: imageSize, patchSize: 14, layer: VisionLayerConfiguration(width: 1152, heads: 16, hidden: 4304),
            layers: 27)
    }

    public var width: Int { layer.width }
    /// Patches of a picture for which the position table was made.
    public var grid: GridSize { GridSize(side: imageSize / patchSize) }
    /// Tokens before those of the patches.
    public var classTokens: Int { family == .clip ? 1 : 0 }

    /// What a sample of 0…1 is reduced by, for red, green and blue.
    public var mean: [Float] { family == .clip ? [0.48145466, 0.4578275, 0.40821073] : [0.5, 0.5, 0.5] }
    /// What it is divided by after that.
    public var deviation: [Float] { family == .clip ? [0.26862954, 0.26130258, 0.27577711] : [0.5, 0.5, 0.5] }

    /// Throws `.invalidShape` or `.invalidArgument` for sizes that no model has.
    func validate() throws(SparseKernelsError) {
        for (name, value, range) in [
            ("imageSize", imageSize, 1...1 << 14), ("patchSize", patchSize, 1...256), ("layers", layers, 0...4096),
        ] where !range.contains(value) {
            throw SparseKernelsError(
                .invalidShape, name, expected: "\(range.lowerBound) to \(range.upperBound)", actual: "\(value)")
        }
        guard imageSize >= patchSize else {
            throw SparseKernelsError(
                .invalidShape, "imageSize", expected: "at least patchSize (\(patchSize))", actual: "\(imageSize)")
        }
    }

    // MARK: - Files

    /// Reads the `config.json` of a SigLIP or CLIP model, or of its vision tower alone.
    ///
    /// - Throws: `.inputOutput` when the file cannot be read; `.malformedFile`, naming the key, when a size is impossible, or the file
    ///   requests something that `VisionTransformer` does not do.
    public init(path: String) throws(SparseKernelsError) {
        let file = try ConfigurationFile(path: path)
        let type = try file.text("model_type") ?? ""
        let vision: ConfigurationFile
        switch type {
        case "siglip", "clip":
            // Such a file has the keys of its vision tower in an object, and without it all of them have defaults.
            guard let object = try file.object("vision_config") else {
                throw file.failure("vision_config", expected: "an object with the sizes", actual: "no such key")
            }
            vision = object
        case "siglip_vision_model", "clip_vision_model": vision = file
        default:
            throw file.failure(
                "model_type", expected: "siglip, siglip_vision_model, clip or clip_vision_model",
                actual: type.isEmpty ? "no such key" : type)
        }
        family = type.hasPrefix("clip") ? .clip : .siglip
        let isCLIP = family == .clip
        imageSize = try vision.integer("image_size", in: 1...1 << 14, default: 224)
        patchSize = try vision.integer("patch_size", in: 1...256, default: isCLIP ? 32 : 16)
        guard patchSize <= imageSize else {
            throw vision.failure("patch_size", expected: "at most image_size (\(imageSize))", actual: "\(patchSize)")
        }
        let channels = try vision.integer("num_channels", default: Self.colourChannels)
        guard channels == Self.colourChannels else {
            throw vision.failure("num_channels", expected: "3: red, green and blue", actual: "\(channels)")
        }
        layers = try vision.integer("num_hidden_layers", in: 1...4096, default: 12)
        let width = try vision.integer("hidden_size", default: 768)
        let heads = try vision.integer("num_attention_heads", in: 1...4096, default: 12)
        guard width % heads == 0, width / heads <= AttentionShape.maximumHeadDim else {
            throw vision.failure(
                "num_attention_heads",
                expected:
                    "a divisor of hidden_size (\(width)), with heads of at most \(AttentionShape.maximumHeadDim) channels",
                actual: "\(heads)")
        }
        let activations: [String: VisionLayerConfiguration.Activation] = [
            "gelu": .gelu, "gelu_pytorch_tanh": .geluTanh, "gelu_new": .geluTanh, "quick_gelu": .quickGELU,
        ]
        let name = try vision.text("hidden_act") ?? (isCLIP ? "quick_gelu" : "gelu_pytorch_tanh")
        guard let activation = activations[name] else {
            throw vision.failure(
                "hidden_act", expected: "one of \(activations.keys.sorted().joined(separator: ", "))", actual: name)
        }
        layer = VisionLayerConfiguration(
            width: width, heads: heads, hidden: try vision.integer("intermediate_size", default: 3072),
            epsilon: Float(try vision.positive("layer_norm_eps", orZero: true, default: isCLIP ? 1e-5 : 1e-6)),
            activation: activation)
        hasPoolingHead = try isCLIP ? false : vision.flag("vision_use_head") ?? true
        projectionSize = nil
        // A tower that was saved alone has its projection, too, where it was made with one; the weights decide.
        if isCLIP {
            let own = vision.has("projection_dim") ? vision : file
            projectionSize = try own.integer("projection_dim", default: 512)
        }
    }
}
