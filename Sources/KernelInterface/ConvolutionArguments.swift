// The operands of causal convolutions and of gated norms. Strides count elements.

/// Tokens of one sequence to convolve, channel by channel: y_t = f(b + Σ_j w_j · x_{t − width + 1 + j}).
///
/// Inputs before the sequence are those of the state, whose last row is the one before token 0.
public struct ConvolveArguments {
    /// Row 0 is the sequence's first token. The stride is negative for a sequence that runs backwards.
    public var x: RowOperand
    /// Row 0 is the sequence's first token. Not the memory of `x`.
    public var y: RowTarget
    /// Tokens of the sequence.
    public var tokens: Int
    /// The tokens to convolve, `first..<end`.
    public var first = 0
    public var end: Int
    public var channels: Int
    /// Taps: at least 1.
    public var width: Int
    /// `[width, channels]`; row 0 meets the oldest input.
    public var weight: UnsafePointer<Float>
    /// `channels` floats, or nil for 0.
    public var bias: UnsafePointer<Float>?
    /// f(v) = v / (1 + e⁻ᵛ), or v.
    public var appliesSiLU: Bool
    /// `[width − 1, channels]`, the inputs before the sequence, oldest first.
    public var state: UnsafeMutableRawPointer
    public var stateType: StorageType
    /// Replaces the state by the last `width` − 1 inputs, after the tokens.
    public var storesState = true

    public init(
        x: RowOperand, y: RowTarget, tokens: Int, channels: Int, width: Int, weight: UnsafePointer<Float>,
        bias: UnsafePointer<Float>?, appliesSiLU: Bool, state: UnsafeMutableRawPointer, stateType: StorageType
    ) {
        self.x = x
        self.y = y
        self.tokens = tokens
        end = tokens
        self.channels = channels
        self.width = width
        self.weight = weight
        self.bias = bias
        self.appliesSiLU = appliesSiLU
        self.state = state
        self.stateType = stateType
    }
}

/// Rows to normalise within groups of adjacent channels, with a gate.
///
/// With g = z / (1 + e⁻ᶻ): u = x ⊙ g, y = u / √(mean u² + ε) · weight; or u = x, and the result times g.
public struct GatedNormArguments {
    public var x: RowOperand
    public var z: RowOperand
    /// `y` may be the memory of `x` or of `z`, with the same stride and type.
    public var y: RowTarget
    public var rows: Int
    /// Groups of a row, at least 1.
    public var groups: Int
    /// Channels of a group, at least 1.
    public var channels: Int
    public var epsilon: Float
    public var gatesBefore: Bool
    /// `groups` · `channels` floats.
    public var weight: UnsafePointer<Float>

    public init(
        x: RowOperand, z: RowOperand, y: RowTarget, rows: Int, groups: Int, channels: Int, epsilon: Float,
        gatesBefore: Bool, weight: UnsafePointer<Float>
    ) {
        self.x = x
        self.z = z
        self.y = y
        self.rows = rows
        self.groups = groups
        self.channels = channels
        self.epsilon = epsilon
        self.gatesBefore = gatesBefore
        self.weight = weight
    }

    /// Floats of scratch: the channels of a group, filled up to whole vectors of every level.
    public static func scratchFloats(channels: Int) -> Int { (channels + 15) / 16 * 16 }
}
