/// The sizes of a layer of a vision transformer, and the function of its MLP.
public struct VisionLayerConfiguration: Hashable, Sendable {
    /// A function of one number between the two linear layers of the MLP.
    public enum Activation: String, Hashable, Sendable, CaseIterable {
        /// x · Φ(x), by the error function.
        case gelu
        /// GELU by its tanh approximation, as SigLIP has it.
        case geluTanh
        /// x / (1 + e^(−1.702·x)), as CLIP has it.
        case quickGELU
    }

    /// Channels of a token.
    public var width: Int
    public var heads: Int
    /// Channels of a head. heads · headDim is mostly `width`, and need not be.
    public var headDim: Int
    /// Channels between the two linear layers of the MLP.
    public var hidden: Int
    /// ε of the LayerNorms before attention and MLP.
    public var epsilon: Float
    /// ε of the LayerNorms of queries and keys, in layers that have them.
    public var headEpsilon: Float
    public var activation: Activation

    /// - Parameter headDim: nil means `width` / `heads`.
    public init(
        width: Int, heads: Int, headDim: Int? = nil, hidden: Int, epsilon: Float = 1e-6, headEpsilon: Float = 1e-5,
        activation: Activation = .geluTanh
    ) {
        self.width = width
        self.heads = heads
        self.headDim = headDim ?? width / max(1, heads)
        self.hidden = hidden
        self.epsilon = epsilon
        self.headEpsilon = headEpsilon
        self.activation = activation
    }

    /// Channels of all heads together.
    public var innerWidth: Int { heads * headDim }

    /// - Throws: `.invalidShape` naming the extent that is below 1 or too large.
    func validate() throws(SparseKernelsError) {
        for (name, extent, most) in [
            ("width", width, Self.mostChannels), ("heads", heads, Self.mostChannels),
            ("headDim", headDim, AttentionShape.maximumHeadDim), ("hidden", hidden, Self.mostChannels),
        ] {
            try require(
                extent >= 1 && extent <= most, .invalidShape, name, expected: "1 to \(most)", actual: "\(extent)")
        }
        try require(
            innerWidth <= Self.mostChannels, .invalidShape, "heads · headDim", expected: "at most \(Self.mostChannels)",
            actual: "\(heads) · \(headDim)")
    }

    /// Below this no product of two extents comes near an overflow.
    private static let mostChannels = 1 << 20
}

/// The arithmetic of the four linear layers of a vision layer. Everything else is in single precision.
public enum VisionLinearFormat: String, Hashable, Sendable, CaseIterable {
    case float32
    /// Weights rounded to half precision, and activations in single precision.
    case float16
    /// Weights rounded to bfloat16, and activations in single precision.
    case bfloat16
    /// Weights of 8 bits with a scale per output channel, and activations of 8 bits with a scale per token.
    case w8a8
}
