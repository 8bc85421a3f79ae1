// The operands of mixtures of experts: router logits, and rows of expert outputs. Strides count elements.

/// Rows of router logits, of each of which the strongest experts are chosen.
///
///     score = softmax(logits) or sigmoid(logits)        key = score + bias, or the logit where there is no bias
///     ids = the `chosen` largest keys, descending       weights = scale · score, or scale · score / (Σ chosen scores + 10⁻²⁰)
public struct RouteTokensArguments {
    /// `tokens` rows of `experts` finite logits.
    public var logits: RowOperand
    public var tokens: Int
    public var experts: Int
    public var chosen: Int
    public var isSigmoid: Bool
    /// [experts], part of the key and not of the weight; nil for none.
    public var bias: UnsafePointer<Float>?
    /// Equal groups of adjacent experts. Only those of the `keptGroups` strongest may be chosen.
    public var groups = 1
    public var keptGroups = 1
    /// Whether the strength of a group is the sum of its two largest values of score + bias, or the largest alone.
    public var sumsTwo = false
    /// Whether weights are divided by their sum.
    public var normalizes = false
    public var scale: Float = 1
    /// [tokens, chosen].
    public var ids: UnsafeMutablePointer<Int32>
    public var weights: UnsafeMutablePointer<Float>
    /// `scratchFloats` floats.
    public var scratch: UnsafeMutablePointer<Float>

    public init(
        logits: RowOperand, tokens: Int, experts: Int, chosen: Int, isSigmoid: Bool, bias: UnsafePointer<Float>?,
        ids: UnsafeMutablePointer<Int32>, weights: UnsafeMutablePointer<Float>, scratch: UnsafeMutablePointer<Float>
    ) {
        self.logits = logits
        self.tokens = tokens
        self.experts = experts
        self.chosen = chosen
        self.isSigmoid = isSigmoid
        self.bias = bias
        self.ids = ids
        self.weights = weights
        self.scratch = scratch
    }

    /// Floats of a row of experts, filled up to whole vectors of every level.
    public static func paddedExperts(_ experts: Int) -> Int { (experts + 15) / 16 * 16 }

    /// Logits, scores and keys of a token, and the strengths of the groups.
    public static func scratchFloats(experts: Int) -> Int { 4 * paddedExperts(experts) }
}

/// Rows of y = Σ_i weight_i · row_i, in the order of i: first the listed rows, then one row of every block.
public struct CombineRowsArguments {
    /// Rows of floats that `places` count.
    public var rows: UnsafePointer<Float>
    public var stride: Int
    /// [tokens, listed].
    public var places: UnsafePointer<Int32>
    public var weights: UnsafePointer<Float>
    public var listed: Int
    /// Row t of each of `blocks` blocks is added to row t of y. Blocks are `blockStride` floats apart, their rows `extraStride`.
    public var extra: UnsafePointer<Float>
    public var extraStride = 0
    public var blocks = 0
    public var blockStride = 0
    public var y: RowTarget
    public var tokens: Int
    public var channels: Int

    public init(
        rows: UnsafePointer<Float>, stride: Int, places: UnsafePointer<Int32>, weights: UnsafePointer<Float>, listed: Int,
        y: RowTarget, tokens: Int, channels: Int
    ) {
        self.rows = rows
        self.stride = stride
        self.places = places
        self.weights = weights
        self.listed = listed
        extra = rows
        self.y = y
        self.tokens = tokens
        self.channels = channels
    }
}
