public import SparseKernels

/// The sizes of the video model, from the `config.json` beside its weights.
///
/// Keys that are absent have the values of `video-dit`. Keys that request arithmetic which `VideoTransformer` does not do are
/// errors, because the result would be that of another model.
public struct VideoTransformerConfiguration: Hashable, Sendable {
    /// Frames of the video, each of which is one plane of tokens.
    public let frames: Int
    /// Rows and columns of a frame, in pixels.
    public let imageSize: Int
    /// Rows and columns of a patch, in pixels.
    public let patchSize: Int
    /// Text tokens, which come before the video tokens.
    public let textTokens: Int
    /// Text tokens that the model knows.
    public let textVocabulary: Int
    public let hiddenSize: Int
    public let layers: Int
    public let heads: Int
    public let headDim: Int
    /// Width of the inner layer of the MLP.
    public let innerSize: Int
    /// Channels of a head that are rotated by frame, row and column: even, and `headDim` together.
    public let rotaryAxes: [Int]
    public let ropeTheta: Double
    /// ε of the RMSNorm of queries and keys.
    public let normEpsilon: Float
    /// Factor on the time, which is from 0 to 1, in its embedding.
    public let timeScale: Double

    /// ε of the LayerNorm before attention, MLP and output. Files do not name it.
    public static let layerNormEpsilon: Float = 1e-5
    /// Red, green and blue.
    public static let colourChannels = 3

    /// Rows and columns of patches in a frame.
    public var grid: Int { imageSize / patchSize }
    public var videoTokens: Int { frames * grid * grid }
    /// Text and video tokens, over which attention goes.
    public var tokens: Int { textTokens + videoTokens }
    /// Values of a patch, in the order channel, row, column.
    public var patchChannels: Int { Self.colourChannels * patchSize * patchSize }

    /// - Throws: `.inputOutput` when the file cannot be read; `.malformedFile`, naming the key, when a size is missing or
    ///   impossible, or the file requests something that `VideoTransformer` does not do.
    public init(path: String) throws(SparseKernelsError) {
        let file = try ConfigurationFile(path: path)
        frames = try file.integer("frames", in: 1...4096)
        imageSize = try file.integer("image_size", in: 1...1 << 14)
        patchSize = try file.integer("patch_size", in: 1...64)
        guard imageSize.isMultiple(of: patchSize) else {
            throw file.failure(
                "patch_size", expected: "a divisor of image_size (\(imageSize))", actual: "\(patchSize)")
        }
        textTokens = try file.integer("text_tokens", in: 0...4096)
        textVocabulary = try file.integer("text_vocab")
        hiddenSize = try file.integer("hidden_size")
        layers = try file.integer("num_layers", in: 1...4096)
        heads = try file.integer("num_heads", in: 1...4096)
        headDim = try file.integer("head_dim", in: 1...AttentionShape.maximumHeadDim)
        guard heads * headDim == hiddenSize else {
            throw file.failure(
                "head_dim", expected: "hidden_size / num_heads (\(hiddenSize) / \(heads))", actual: "\(headDim)")
        }
        innerSize = try file.integer("mlp_ratio", in: 1...64, default: 4) * hiddenSize
        rotaryAxes = try file.integers("rope_axes_dim", in: 0...AttentionShape.maximumHeadDim)
        guard rotaryAxes.count == 3, rotaryAxes.allSatisfy({ $0.isMultiple(of: 2) }), rotaryAxes.reduce(0, +) == headDim else {
            throw file.failure(
                "rope_axes_dim", expected: "three even numbers for frame, row and column, with the sum head_dim (\(headDim))",
                actual: "\(rotaryAxes)")
        }
        ropeTheta = try file.positive("rope_theta", default: 10_000)
        normEpsilon = Float(try file.positive("qk_norm_eps", orZero: true, default: 1e-6))
        timeScale = try file.positive("time_scale", default: 1000)
        let (imageSize, patchSize, frames, textTokens) = (imageSize, patchSize, frames, textTokens)
        let grid = imageSize / patchSize
        // Sizes that follow from others must agree, as they would if the model were the one that is meant.
        for (key, value) in [
            ("grid", grid), ("video_tokens", frames * grid * grid), ("patch_dim", Self.colourChannels * patchSize * patchSize),
        ] {
            let stated = try file.integer(key, in: 1...1 << 40, default: value)
            guard stated == value else {
                throw file.failure(key, expected: "\(value), as the other sizes say", actual: "\(stated)")
            }
        }
        let limit = 1 << 20
        guard frames * grid * grid + textTokens <= limit else {
            throw file.failure("frames", expected: "at most \(limit) tokens", actual: "\(frames * grid * grid + textTokens)")
        }
    }
}
