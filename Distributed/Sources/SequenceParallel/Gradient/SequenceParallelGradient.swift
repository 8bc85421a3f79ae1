public import SparseKernelsTraining

/// The backward pass of attention over a grid of ranks: the gradients of every rank's own queries, keys and values.
///
/// The ranks are those of the forward pass, ``SequenceParallelAttention``, whose output and LSE are merged over all keys. With these, the
/// probabilities of each visiting block are exact, so that ``AttentionGradient`` computes its part of the gradients alone:
///
/// 1. Operands go to the ranks of a Ulysses group by heads, as in the forward pass, with the output, its gradient and the LSE.
/// 2. Keys and values go round the ring; their gradients follow one step behind, and each group adds its part.
/// 3. The gradients go back by tokens. Where ranks outnumber key/value heads, those of the copies are added.
///
/// ```swift
/// let backward = try SequenceParallelGradient(
///     shards, queryHeads: 8, kvHeads: 2, headDim: 64, mask: .causal, ulysses: 2, on: ranks)
/// let gradients = try backward(query: q, key: k, value: v, state: state, outputGradient: dO, on: pool)
/// ```
///
/// All sums are in the order of ring steps, and of ranks for copies, so that results depend neither on timing nor on the number of
/// threads. One rank gives the bits of ``AttentionGradient``.
///
/// - Non-finite input propagates along the pairs of a query and a key that it sees, as there.
/// - Complexity: the work of ``AttentionGradient`` for the pairs of the rank. ``expectedSentBytes`` has the bytes.
/// - Memory: ``bufferByteCount``, allocated once. Later calls allocate nothing that grows with the tokens.
/// - Source: LongVILA (arXiv 2408.10188), section 3.3; Ring Attention (arXiv 2310.01889) for the gradients that rotate.
public final class SequenceParallelGradient {
    public let shards: TokenShards
    public let grid: RankGrid
    public let mask: AttentionMask
    /// Whether keys, values and gradients of the next step move while this one is computed.
    public let overlaps: Bool

    private let communicator: any Communicator
    let heads: GradientHeads
    let schedule: GradientSchedule
    /// The ranks that exchange heads, and one of each group.
    let group: any Communicator
    let ring: any Communicator
    let buffers: GradientBuffers
    /// The plans of each block of each step; one serves each slice of the heads.
    let plans: [[AttentionGradient]]
    /// Slices of the key/value heads, between which transfers make progress.
    let slices: Int
    /// The plan of one rank, which needs nothing else.
    private let whole: AttentionGradient?

    /// The rank's place in its group, and its group.
    var place: Int { group.rank }
    var ownGroup: Int { ring.rank }
    /// The tokens of this rank.
    var ownCount: Int { schedule.own.rows(ofPlace: place).count }

    /// Makes the plan. Every rank calls it with the same arguments.
    ///
    /// - Parameters:
    ///   - shards: which rank has which tokens.
    ///   - queryHeads: a multiple of `ulysses`.
    ///   - kvHeads: a divisor of `queryHeads`, and a divisor or a multiple of `ulysses`.
    ///   - headDim: channels of queries and keys.
    ///   - valueDim: channels of values; nil means `headDim`.
    ///   - mask: what queries see, by positions in the sequence, as in the forward pass.
    ///   - softmaxScale: factor on q·k; nil means 1/√headDim.
    ///   - ulysses: ranks of a group that exchange heads for tokens; it divides the ranks.
    ///   - overlaps: whether transfers move while the rank computes.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - communicator: the ranks.
    /// - Throws: `.communication` when ranks disagree; `.invalidArgument` for shards of another number of ranks, and for a grid that does
    ///   not fit ranks or heads; `.invalidShape`, and the errors of ``AttentionGradient``.
    public init(
        _ shards: TokenShards, queryHeads: Int, kvHeads: Int, headDim: Int, valueDim: Int? = nil, mask: AttentionMask = .full,
        softmaxScale: Float? = nil, ulysses: Int = 1, overlaps: Bool = true, instructionSet: InstructionSet? = nil,
        on communicator: any Communicator
    ) throws(SparseKernelsError) {
        let sizes = "\(queryHeads) query heads, \(kvHeads) kv heads, \(headDim) and \(valueDim ?? headDim) channels"
        let seen = "keys \(mask.left.map(String.init) ?? "all") before and \(mask.right.map(String.init) ?? "all") after"
        try communicator.agree(
            on: "\(shards.summary), \(sizes), \(seen), scale \(softmaxScale.map { "\($0)" } ?? "1/√d"), ulysses \(ulysses)",
            "gradient of sequence-parallel attention")
        let shape = try AttentionShape(
            queryLength: shards.length, keyLength: shards.length, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim,
            valueDim: valueDim)
        grid = try RankGrid(ranks: communicator.count, ulysses: ulysses)
        try TokenShards.require(
            shards.ranks == communicator.count, "shards", "of the \(communicator.count) ranks", shards.ranks)
        try TokenShards.require(
            queryHeads % ulysses == 0, "ulysses", "a divisor of the \(queryHeads) query heads", ulysses)
        try TokenShards.require(
            kvHeads % ulysses == 0 || ulysses % kvHeads == 0, "ulysses", "a divisor or a multiple of the \(kvHeads) kv heads",
            ulysses)
        // One plan checks mask, scale and level before anything is made of them.
        let plan = try AttentionGradient(shape, mask: mask, softmaxScale: softmaxScale, instructionSet: instructionSet)
        heads = GradientHeads(
            queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim, valueDim: shape.valueDim, ulysses: ulysses)
        (self.shards, self.mask, self.overlaps, self.communicator) = (shards, mask, overlaps, communicator)
        whole = communicator.count == 1 ? plan : nil

        let (ownGroup, place) = (grid.group(of: communicator.rank), grid.place(of: communicator.rank))
        group = try Self.split(communicator, color: ownGroup, key: place, "ulysses")
        ring = try Self.split(communicator, color: place, key: ownGroup, "ring")
        schedule = GradientSchedule(shards, grid, group: ownGroup, mask: mask)
        // Transfers make progress between slices. Alone a group has none.
        let localKVHeads = heads.localKVHeads
        slices = grid.ring == 1 ? 1 : (1...min(4, localKVHeads)).last { localKVHeads % $0 == 0 } ?? 1
        buffers = try GradientBuffers(schedule, heads, ownCount: shards.count(of: communicator.rank), slices: slices)
        var plans: [[AttentionGradient]] = []
        for step in schedule.steps {
            var blocks: [AttentionGradient] = []
            for block in step.blocks {
                let shape = try AttentionShape(
                    queryLength: block.queries.count, keyLength: block.keys.count,
                    queryHeads: heads.localQueryHeads / slices, kvHeads: localKVHeads / slices, headDim: headDim,
                    valueDim: shape.valueDim)
                blocks.append(
                    try AttentionGradient(
                        shape, mask: block.mask, softmaxScale: plan.softmaxScale, instructionSet: plan.instructionSet))
            }
            plans.append(blocks)
        }
        self.plans = plans
    }

    private static func split(
        _ communicator: any Communicator, color: Int, key: Int, _ name: String
    ) throws(SparseKernelsError) -> any Communicator {
        guard let part = try communicator.split(color: color, key: key, name: name) else {
            throw SparseKernelsError(
                .communication, "split of \(communicator.name)", expected: "a communicator for color \(color)", actual: "none")
        }
        return part
    }

    /// Bytes of memory that the plan holds for operands of others, sums, and messages.
    public var bufferByteCount: Int { whole == nil ? buffers.byteCount : 0 }

    /// Bytes that this rank sends in one call. With n own tokens of N_g in the group, H query heads and Hₖ key/value heads of d and dᵥ channels,
    /// and U ranks in a group: rows of (H/U)·(d + 2dᵥ + 1) + max(1, Hₖ/U)·(d + dᵥ) floats to U − 1 ranks, of max(1, Hₖ/U)·(d + dᵥ) floats
    /// twice per step of the ring and once for the way home, and of (H/U)·d + max(1, Hₖ/U)·(d + dᵥ) floats back.
    public var expectedSentBytes: Int {
        let others = schedule.own.count - ownCount
        let there = ownCount * (grid.ulysses - 1) * (heads.queryRow + heads.keyRow)
        let back = others * (heads.queryGradientRow + heads.keyRow)
        return (there + back) * 4 + schedule.sentBytes(rowByteCount: heads.keyRow * 4)
    }

    /// What this rank has sent and received in all calls.
    public var traffic: MessageTraffic { group.traffic + ring.traffic }

    /// Computes the gradients into the caller's memory, which they overwrite. Every rank calls it.
    ///
    /// All operands have this rank's tokens in the order of the shards, and may have any strides with adjacent channels.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × own tokens × `headDim`.
    ///   - key: `kvHeads` × own tokens × `headDim`.
    ///   - value: `kvHeads` × own tokens × `valueDim`.
    ///   - output: what the forward pass computed, `queryHeads` × own tokens × `valueDim`.
    ///   - logSumExp: its natural-log LSE, `[queryHeads, own tokens]`. Rows with −∞ have no gradient.
    ///   - outputGradient: the gradient of the output, of the output's size.
    ///   - queryGradient: of the size of `query`.
    ///   - keyGradient: of the size of `key`.
    ///   - valueGradient: of the size of `value`.
    ///   - pool: the threads of this rank.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan, before anything is sent: the other ranks then fail, too.
    ///   The errors of the communicator. Nothing is written when it throws.
    public func run(
        query: TensorView<Float>, key: TensorView<Float>, value: TensorView<Float>, output: TensorView<Float>,
        logSumExp: Span<Float>, outputGradient: TensorView<Float>, queryGradient: consuming MutableTensorView<Float>,
        keyGradient: consuming MutableTensorView<Float>, valueGradient: consuming MutableTensorView<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        do throws(SparseKernelsError) {
            try check(query.geometry, "query", heads.queryHeads, heads.headDim)
            try check(key.geometry, "key", heads.kvHeads, heads.headDim)
            try check(value.geometry, "value", heads.kvHeads, heads.valueDim)
            try check(output.geometry, "output", heads.queryHeads, heads.valueDim)
            try check(outputGradient.geometry, "outputGradient", heads.queryHeads, heads.valueDim)
            try check(queryGradient.geometry, "queryGradient", heads.queryHeads, heads.headDim)
            try check(keyGradient.geometry, "keyGradient", heads.kvHeads, heads.headDim)
            try check(valueGradient.geometry, "valueGradient", heads.kvHeads, heads.valueDim)
            guard logSumExp.count == heads.queryHeads * ownCount else {
                throw SparseKernelsError(
                    .invalidShape, "logSumExp", expected: "\(heads.queryHeads) · \(ownCount) elements",
                    actual: "\(logSumExp.count)")
            }
        } catch {
            // The others wait for messages that will never come.
            communicator.fail(error)
            throw error
        }
        if let whole {
            try whole.run(
                query: query, key: key, value: value, output: output, logSumExp: logSumExp, outputGradient: outputGradient,
                queryGradient: queryGradient, keyGradient: keyGradient, valueGradient: valueGradient, on: pool)
            return
        }
        try sendKeys(key, value, on: pool)
        if grid.ulysses == 1 {
            try rotate(
                Queries(query, output: output, outputGradient: outputGradient, logSumExp: logSumExp), on: pool)
        } else {
            try sendQueries(query, output, outputGradient, logSumExp, on: pool)
            try rotateExchanged(on: pool)
        }
        try returnGradients(
            RowMemory(writing: &queryGradient), RowMemory(writing: &keyGradient), RowMemory(writing: &valueGradient), on: pool)
    }

    private func check(
        _ geometry: TensorGeometry, _ name: String, _ heads: Int, _ channels: Int
    ) throws(SparseKernelsError) {
        guard geometry.heads == heads, geometry.tokens == ownCount, geometry.channels == channels else {
            throw SparseKernelsError(
                .invalidShape, name, expected: "\(heads) heads × \(ownCount) tokens × \(channels) channels",
                actual: "\(geometry.heads) × \(geometry.tokens) × \(geometry.channels)")
        }
    }
}
