internal import SparseKernels

/// How the two directions of a layer become one output.
public enum STORMCombination: String, Hashable, Sendable, CaseIterable {
    /// y = (forward + backward) · silu(z), each with a convolution and a scan of its own. The default.
    case sumSeparate
    /// The same with the parameters of the forward direction for both.
    case sumShared
    /// y = ½ (forward + backward) · silu(z), with separate parameters.
    case average
    /// The gated directions side by side, and an output projection of twice the width.
    case concatenation
    /// No backward direction: tokens may come in parts, as in a stream.
    case forwardOnly

    /// Whether there is a backward direction.
    public var isBidirectional: Bool { self != .forwardOnly }
    /// Whether the backward direction has parameters of its own.
    public var hasBackwardWeights: Bool { self != .forwardOnly && self != .sumShared }
}

/// The sizes of the temporal encoder, and what the paper leaves open about it.
public struct STORMConfiguration: Hashable, Sendable {
    /// Channels of a visual token.
    public var width: Int
    /// Layers. The paper does not say how many.
    public var layers: Int
    /// States of a channel of the scan.
    public var stateSize: Int
    /// Channels of the scan per channel of a token.
    public var expansion: Int
    /// The rank of the projection to the step sizes.
    public var dtRank: Int
    /// Tokens that the causal convolution sees.
    public var convolutionWidth: Int
    public var combination: STORMCombination
    /// ε of the layer norms.
    public var epsilon: Float

    /// - Parameters:
    ///   - width: channels of a visual token.
    ///   - layers: number of layers.
    ///   - stateSize: 16 in Mamba.
    ///   - expansion: 2 in Mamba.
    ///   - dtRank: nil means ⌈width / 16⌉, as in Mamba.
    ///   - convolutionWidth: 4 in Mamba.
    ///   - combination: of the directions.
    ///   - epsilon: ε of the layer norms.
    public init(
        width: Int, layers: Int = 1, stateSize: Int = 16, expansion: Int = 2, dtRank: Int? = nil, convolutionWidth: Int = 4,
        combination: STORMCombination = .sumSeparate, epsilon: Float = 1e-5
    ) {
        self.width = width
        self.layers = layers
        self.stateSize = stateSize
        self.expansion = expansion
        self.dtRank = dtRank ?? max(1, (width &+ 15) / 16)
        self.convolutionWidth = convolutionWidth
        self.combination = combination
        self.epsilon = epsilon
    }

    /// Channels of the scan.
    public var innerWidth: Int { width * expansion }

    func check() throws(SparseKernelsError) {
        for (name, value) in [
            ("width", width), ("layers", layers), ("stateSize", stateSize), ("expansion", expansion), ("dtRank", dtRank),
            ("convolutionWidth", convolutionWidth),
        ] {
            try require(
                value >= 1 && value <= 1 << 24, .invalidArgument, name, expected: "from 1 to 2²⁴", actual: "\(value)")
        }
    }
}
