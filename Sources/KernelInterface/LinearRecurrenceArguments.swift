/// Where the decays of a recurrence come from.
public enum DecayKind: UInt8, Sendable {
    /// One logarithm per head, for all tokens: `rates`.
    case perHead
    /// One logarithm per token and head: `steps`.
    case perToken
    /// One logarithm per token, head and channel of a key: `steps`.
    case perChannel
    /// rate · Δ, with Δ = softplus(step + bias) cut to a range. The values are multiplied by Δ.
    case discretized
}

/// Tokens of one sequence, in some value heads that read one key head:
///
///     S ← decay ∘ S + k vᵀ        y = scale · Sᵀ q + skip · v
///
/// `recurChunks` computes a chunk of tokens at a time, and `recurSteps` one token at a time. Strides count elements.
public struct LinearRecurrenceArguments {
    /// Rows of `keyDim` channels, of which row 0 is the first token.
    public var query: RowOperand
    public var key: RowOperand
    /// Rows of `valueDim` channels of the first head.
    public var value: RowOperand
    public var valueHeadStride: Int
    /// Rows of `valueDim` channels of the first head. They are no memory of the other operands.
    public var output: RowTarget
    public var outputHeadStride: Int
    public var decay: DecayKind
    /// `perToken` and `discretized`: a row per token, with an element per head. `perChannel`: a row of `keyDim` channels per token,
    /// of the first head. A positive logarithm counts as 0.
    public var steps: RowOperand
    /// For `perChannel`.
    public var stepHeadStride = 0
    /// Per head: the logarithm for `perHead`, and the negative rate for `discretized`.
    public var rates: UnsafePointer<Float>
    /// Per head: what is added to the steps of `discretized`.
    public var biases: UnsafePointer<Float>
    /// Per head: the factor of the values that are added to the output.
    public var skips: UnsafePointer<Float>
    /// The range of Δ.
    public var leastStep: Float = 0
    public var largestStep = Float.infinity
    public var scale: Float
    /// `[heads, keyDim, valueDim]`, adjacent, read and written.
    public var state: UnsafeMutableRawPointer
    public var stateType: StorageType
    /// At most the heads for which the scratch was made.
    public var heads: Int
    public var tokens: Int
    public var keyDim: Int
    public var valueDim: Int
    /// Tokens that are computed at once.
    public var chunk: Int
    /// `LinearRecurrenceScratch.byteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        query: RowOperand, key: RowOperand, value: RowOperand, valueHeadStride: Int, output: RowTarget, outputHeadStride: Int,
        decay: DecayKind, steps: RowOperand, rates: UnsafePointer<Float>, biases: UnsafePointer<Float>,
        skips: UnsafePointer<Float>, scale: Float, state: UnsafeMutableRawPointer, stateType: StorageType, heads: Int,
        tokens: Int, keyDim: Int, valueDim: Int, chunk: Int, scratch: UnsafeMutableRawPointer
    ) {
        self.query = query
        self.key = key
        self.value = value
        self.valueHeadStride = valueHeadStride
        self.output = output
        self.outputHeadStride = outputHeadStride
        self.decay = decay
        self.steps = steps
        self.rates = rates
        self.biases = biases
        self.skips = skips
        self.scale = scale
        self.state = state
        self.stateType = stateType
        self.heads = heads
        self.tokens = tokens
        self.keyDim = keyDim
        self.valueDim = valueDim
        self.chunk = chunk
        self.scratch = scratch
    }
}

/// The offsets of the scratch of `recurChunks` and `recurSteps`, in floats.
public struct LinearRecurrenceScratch: Sendable {
    /// Tokens of a block of rows that decays per channel are multiplied along.
    public static let channelBlock = 16
    /// The most tokens of a chunk.
    public static let maximumChunk = 256
    /// A decay whose logarithm is below this is 0 in single precision, so sums of logarithms need not go further.
    public static let leastLogDecay: Float = -1000
    /// Decays below about 2⁻¹⁰⁰ between tokens of a chunk count as 0: products with them might be subnormal, which processors compute
    /// a hundred times slower.
    public static let leastPairLogDecay: Float = -69

    /// Tokens of a chunk, filled up to whole vectors of every level.
    public let tokens: Int
    /// Floats from a staged row of queries or keys, or of weights of pairs of tokens, to the next one: the longest row, and 16 more, so
    /// that rows do not meet in one set of a cache. Kernels have it as a literal, so that rows of a tile are at constant distances.
    public static let rowStride = 272
    /// Floats of a staged row with the zeros behind it, which tiles of rows of a state may read.
    public let keyWidth: Int
    /// Rows of a panel of a state, `keyDim` filled up to whole tiles.
    public let stateRows: Int
    /// Floats of the state of a head, as panels [stateRows][width].
    public let stateCount: Int

    public let query: Int
    public let key: Int
    /// Decays of channels: their factors [tokens][rowStride], queries of a block of tokens, and vectors of channels.
    public let channelDecays: Int
    public let blockQueries: Int
    public let channelFactors: Int
    /// Keys of a panel of tokens, transposed: [keyDim][panel].
    public let keyPanel: Int
    /// Products of queries and keys, and these times decays: [tokens][rowStride].
    public let products: Int
    public let weights: Int
    /// Per token of a chunk and a head: Δ; the sum of the logarithms of decays up to the token, as the sum of a high and a low part;
    /// the decay from the chunk's start; Δ times the decay to its end.
    public let stepSizes: Int
    public let high: Int
    public let low: Int
    public let fromStart: Int
    public let toEnd: Int
    /// One factor per row of a state.
    public let stateFactors: Int
    /// Values of all heads, as panels [tokens][width], `valueCount` floats per head.
    public let values: Int
    public let valueCount: Int
    /// One tile.
    public let edge: Int
    public let states: Int
    public let byteCount: Int

    public init(keyDim: Int, valueDim: Int, chunk: Int, heads: Int, hasChannelDecays: Bool) {
        let panel = 3 * AttentionScratch.maximumLanes
        tokens = Self.padded(chunk)
        keyWidth = Self.padded(keyDim) + 16
        stateRows = (keyDim + 7) / 8 * 8
        stateCount = stateRows * Self.padded(valueDim)
        query = 0
        key = query + tokens * Self.rowStride
        channelDecays = key + tokens * Self.rowStride
        blockQueries = channelDecays + (hasChannelDecays ? tokens * Self.rowStride : 0)
        channelFactors = blockQueries + (hasChannelDecays ? Self.channelBlock * Self.rowStride : 0)
        keyPanel = channelFactors + (hasChannelDecays ? 2 * keyWidth : 0)
        products = keyPanel + keyDim * panel
        weights = products + tokens * Self.rowStride
        stepSizes = weights + tokens * Self.rowStride
        high = stepSizes + tokens
        low = high + tokens
        fromStart = low + tokens
        toEnd = fromStart + tokens
        stateFactors = toEnd + tokens
        values = stateFactors + keyWidth
        valueCount = tokens * Self.padded(valueDim)
        edge = values + heads * valueCount
        states = edge + AttentionScratch.maximumTileRows * panel
        byteCount = (states + heads * stateCount) * 4
    }

    private static func padded(_ count: Int) -> Int { (count + 15) / 16 * 16 }
}
