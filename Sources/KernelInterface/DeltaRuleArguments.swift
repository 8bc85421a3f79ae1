// What operators and kernels of the gated delta rule agree on. Strides count elements.

/// What the state is multiplied by before a token is written to it.
public enum DeltaRuleDecay: UInt8, Sendable {
    /// 1.
    case none
    /// One factor per token and head.
    case perToken
    /// One factor per token, head and channel of the key.
    case perChannel
}

/// The tokens of one sequence, for some value heads that share a key head and some columns of their states:
///
///     S ← diag(α)·S;   S ← S + β·k·(v − Sᵀk)ᵀ;   y = Sᵀq
///
/// Row 0 of every operand is the first token.
public struct DeltaRuleArguments {
    public var query: RowOperand
    public var key: RowOperand
    /// The first value head of the call, from the first column on.
    public var value: RowOperand
    public var valueHeadStride: Int
    public var output: RowTarget
    public var outputHeadStride: Int
    /// ln α of the first head: an element of a row per head, or a row of `keyDim` per head. Values above 0 count as 0.
    public var logDecay: RowOperand
    public var logDecayHeadStride: Int
    public var decay: DeltaRuleDecay
    /// An element of a row per head, the first of which is that of the first head.
    public var beta: RowOperand

    public var tokens: Int
    public var heads: Int
    public var keyDim: Int
    /// Columns of the states, and channels of values and outputs.
    public var columns: Int
    /// `[heads, keyDim, columns]`, read and written.
    public var state: UnsafeMutableRawPointer
    public var stateHeadStride: Int
    public var stateStride: Int
    public var stateType: StorageType
    /// The state that the caller's next call steps, if that is known, which the step kernel prefetches.
    public var nextState: UnsafeRawPointer?

    /// Multiplies the queries, after they are normalised.
    public var scale: Float
    /// Divides queries and keys by √(Σx² + `epsilon`).
    public var normalizes: Bool
    public var epsilon: Float
    /// Tokens of a chunk, for the chunk kernel.
    public var chunk: Int
    /// `DeltaRuleScratch.byteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        query: RowOperand, key: RowOperand, value: RowOperand, valueHeadStride: Int, output: RowTarget, outputHeadStride: Int,
        logDecay: RowOperand, logDecayHeadStride: Int, decay: DeltaRuleDecay, beta: RowOperand, tokens: Int, heads: Int,
        keyDim: Int, columns: Int, state: UnsafeMutableRawPointer, stateHeadStride: Int, stateStride: Int,
        stateType: StorageType, scale: Float, normalizes: Bool, epsilon: Float, chunk: Int,
        scratch: UnsafeMutableRawPointer
    ) {
        self.query = query
        self.key = key
        self.value = value
        self.valueHeadStride = valueHeadStride
        self.output = output
        self.outputHeadStride = outputHeadStride
        self.logDecay = logDecay
        self.logDecayHeadStride = logDecayHeadStride
        self.decay = decay
        self.beta = beta
        self.tokens = tokens
        self.heads = heads
        self.keyDim = keyDim
        self.columns = columns
        self.state = state
        self.stateHeadStride = stateHeadStride
        self.stateStride = stateStride
        self.stateType = stateType
        self.scale = scale
        self.normalizes = normalizes
        self.epsilon = epsilon
        self.chunk = chunk
        self.scratch = scratch
    }
}

/// The offsets of the scratch of both kernels of the delta rule, in floats.
public struct DeltaRuleScratch: Sendable {
    /// Tokens that the step kernel stages at a time.
    public static let stepTokens = 16
    /// Rows of a sub-block of a chunk with decays per channel.
    public static let subBlock = 8

    /// Tokens of a chunk, and the same in whole tiles.
    public var chunk: Int
    public var rows: Int
    /// Floats from one row of a matrix [token][token] to the next.
    public var stride: Int
    /// Floats from the channels of one token to those of the next, which zeros fill up.
    public var keyStride: Int
    /// Rows of a state in whole tiles.
    public var stateRows: Int

    /// [token][channel], normalised; queries are scaled, too.
    public var key: Int
    public var query: Int
    /// Kᵀ in panels of two vectors, [channel][token].
    public var transposedKey: Int
    /// K·Kᵀ and Q·Kᵀ, [token][token], their lower triangles.
    public var keyProducts: Int
    public var queryProducts: Int
    /// −β·(K·Kᵀ ∘ L) and Q·Kᵀ ∘ L of one head.
    public var solving: Int
    public var answering: Int
    /// Vectors with an element per token: β, −β·e^cum, e^cum, e^(last − cum), and cum in two parts.
    public var beta: Int
    public var gain: Int
    public var entry: Int
    public var exit: Int
    public var cumulative: Int
    public var cumulativeRest: Int
    /// e^last, an element per channel.
    public var lastDecay: Int
    /// Decays per channel: α, K and Q times the decay from the start of the chunk, K times that to its end; and two sub-blocks.
    public var factors: Int
    public var enteringKey: Int
    public var enteringQuery: Int
    public var leavingKey: Int
    public var subBlocks: Int
    /// A panel of values, [token][panel].
    public var values: Int
    public var edge: Int
    /// The states of all heads, in panels [channel][panel].
    public var states: Int
    public var stateSize: Int
    public var byteCount: Int

    /// - Parameters:
    ///   - heads: value heads of a call of the chunk kernel; 1 for the step kernel.
    ///   - chunk: tokens of a chunk; `stepTokens` for the step kernel.
    public init(keyDim: Int, columns: Int, heads: Int, chunk: Int, decay: DeltaRuleDecay) {
        let (tile, lanes) = (AttentionScratch.maximumTileRows, AttentionScratch.maximumLanes)
        self.chunk = chunk
        rows = (chunk + tile - 1) / tile * tile
        stride = (chunk + 2 * lanes - 1) / (2 * lanes) * (2 * lanes)
        keyStride = (keyDim + lanes - 1) / lanes * lanes
        stateRows = (keyDim + tile - 1) / tile * tile
        stateSize = stateRows * ((columns + lanes - 1) / lanes * lanes)
        var offset = 0
        let channels = rows * keyStride
        key = Self.take(channels, &offset)
        query = Self.take(channels, &offset)
        transposedKey = Self.take(keyDim * stride, &offset)
        keyProducts = Self.take(rows * stride, &offset)
        queryProducts = Self.take(rows * stride, &offset)
        solving = Self.take(rows * stride, &offset)
        answering = Self.take(rows * stride, &offset)
        beta = Self.take(stride, &offset)
        gain = Self.take(stride, &offset)
        entry = Self.take(stride, &offset)
        exit = Self.take(stride, &offset)
        cumulative = Self.take(stride, &offset)
        cumulativeRest = Self.take(stride, &offset)
        lastDecay = Self.take(stateRows + lanes, &offset)
        let perChannel = decay == .perChannel
        factors = Self.take(perChannel ? channels : 0, &offset)
        enteringKey = Self.take(perChannel ? channels : 0, &offset)
        enteringQuery = Self.take(perChannel ? channels : 0, &offset)
        leavingKey = Self.take(perChannel ? channels : 0, &offset)
        subBlocks = Self.take(perChannel ? (2 * Self.subBlock + 1) * keyStride : 0, &offset)
        values = Self.take(rows * 3 * lanes, &offset)
        edge = Self.take(tile * 3 * lanes, &offset)
        states = Self.take(heads * stateSize, &offset)
        byteCount = offset * 4
    }

    /// Reserves memory in whole lines.
    private static func take(_ count: Int, _ offset: inout Int) -> Int {
        defer { offset += (count + 15) / 16 * 16 }
        return offset
    }
}
