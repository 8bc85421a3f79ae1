/// Exact attention over a sequence that is spread over ranks: LongVILA's 2D attention, all-to-all over heads inside of groups
/// times a ring over the groups.
///
///     1  all-to-all in the group     a rank gets the queries, keys and values of its heads, of all tokens of the group
///     2  ring over the groups        keys and values go round; each rank attends what its queries see of them, and merges
///     3  all-to-all in the group     outputs go home to the ranks whose tokens they belong to
///
/// Every rank makes the same plan, and every rank calls `run` with its own tokens. Make one plan per shape and use it for all
/// layers.
///
/// ```swift
/// let shards = try TokenShards.zigzag(length: n, ulysses: 2, ring: 2)
/// let attention = try SequenceParallelAttention(
///     shards, queryHeads: 8, kvHeads: 2, headDim: 64, mask: .causal, ulysses: 2, on: ranks)
/// let state = try attention(query: q, key: k, value: v)   // this rank's rows
/// ```
///
/// - Positions: masks go by positions in the whole sequence, so any shards give the rows of dense attention. Those of
///   ``TokenShards/zigzag(length:ulysses:ring:alignment:)`` give all ranks of a causal ring the same work.
/// - Heads: `ulysses` divides the query heads, and it divides the key/value heads or is a multiple of them. In the latter case
///   ranks that share a head get copies of it.
/// - Messages: keys and values travel in their element type, outputs in that of the output. Rows are packed once, and are used
///   where they arrive. Nothing is padded. While a step is computed the next keys and values are under way; the rank looks
///   after messages between *slices* of queries. What no rank sees, such as keys beyond a window, is not sent.
///   Tags from 32700 to 32703 of the communicator are for these messages.
/// - Exactness: results are those of ``DenseAttention`` up to rounding, and on one rank its bits. States merge by the steps of
///   the ring, in single precision. Results depend neither on timing nor on the number of threads.
/// - A row that sees NaN is NaN, and no other row.
/// - Complexity: `visiblePairs · (headDim + valueDim)` multiply-adds per rank.
/// - Memory: buffers for a group's queries, three times its keys and values, its outputs in `Float` and messages. The first `run`
///   allocates them, and later ones of the same element types allocate nothing but the records of transfers.
/// - Source: LongVILA (arXiv 2408.10188), section 3.3; Ring Attention (arXiv 2310.01889); DeepSpeed Ulysses (arXiv 2309.14509).
public final class SequenceParallelAttention {
    /// Who has which tokens.
    public let shards: TokenShards
    public let grid: RankGrid
    public let queryHeads: Int
    public let kvHeads: Int
    public let headDim: Int
    public let valueDim: Int
    public let mask: AttentionMask
    public let modifiers: ScoreModifiers
    /// Whether transfers go on while scores are computed. Results are the same.
    public let overlaps: Bool
    /// The most queries that are computed between two looks at the messages.
    public let sliceRows: Int
    public let communicator: any Communicator

    /// What the last call did.
    public internal(set) var statistics = SequenceParallelStatistics()

    enum Work {
        /// One rank attends the whole sequence, in the caller's memory.
        case alone(DenseAttention)
        case ring(RankWork)
    }

    let work: Work

    /// Makes the plan. Every rank of the communicator calls this with the same arguments.
    ///
    /// - Parameters:
    ///   - shards: who has which tokens; one shard per rank.
    ///   - queryHeads: query heads of the whole attention.
    ///   - kvHeads: key/value heads of the whole attention.
    ///   - headDim: channels of queries and keys.
    ///   - valueDim: channels of values and outputs; nil means `headDim`.
    ///   - mask: the keys that a query sees, by positions in the sequence.
    ///   - modifiers: how scores become probabilities. ALiBi is not available.
    ///   - ulysses: the ranks of a group, which divides the number of ranks. 1 is a plain ring, all ranks are plain Ulysses.
    ///   - overlaps: whether transfers go on while scores are computed.
    ///   - sliceRows: the most queries that are computed between two looks at the messages; nil means as many as keep 32
    ///     threads busy.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - communicator: the ranks.
    /// - Throws: on every rank `.communication` when the ranks disagree; `.invalidArgument` for another number of shards than
    ///   ranks, for `ulysses` that does not divide the ranks or does not fit the heads, for ALiBi slopes and for a slice below
    ///   1; `.invalidShape` for 2³¹ − 1 tokens or more in a group; the errors of ``DenseAttention``.
    /// - Complexity: O(rows) for rows of the group on the diagonal or at the edge of a window, O(groups²) for others.
    public init(
        _ shards: TokenShards, queryHeads: Int, kvHeads: Int, headDim: Int, valueDim: Int? = nil, mask: AttentionMask = .full,
        modifiers: ScoreModifiers = ScoreModifiers(), ulysses: Int = 1, overlaps: Bool = true, sliceRows: Int? = nil,
        instructionSet: InstructionSet? = nil, on communicator: any Communicator
    ) throws(SparseKernelsError) {
        let valueDim = valueDim ?? headDim
        // One query and key stand for all, to check heads, mask, modifiers and level.
        let checked: Result<InstructionSet, SparseKernelsError>
        do throws(SparseKernelsError) {
            let shape = try AttentionShape(
                queryLength: 1, keyLength: 1, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim, valueDim: valueDim)
            let plan = try DenseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: instructionSet)
            checked = .success(plan.instructionSet)
        } catch {
            checked = .failure(error)
        }
        var mistake = ""
        if case .failure(let error) = checked { mistake = ", \(error)" }
        // Before anything is thrown, so that no rank waits for one that has thrown.
        try communicator.agree(
            on: "\(shards.summary) heads \(queryHeads)/\(kvHeads) × \(headDim)/\(valueDim), mask \(mask.isCausal) "
                + "\(mask.left ?? -1) \(mask.right ?? -1), \(modifiers), ulysses \(ulysses), slices \(sliceRows ?? 0)\(mistake)",
            "the plan of sequence-parallel attention")
        let level = try checked.get()
        guard shards.ranks == communicator.count else {
            throw SparseKernelsError(
                .invalidArgument, "shards.ranks", expected: "the \(communicator.count) of \(communicator.name)",
                actual: "\(shards.ranks)")
        }
        let grid = try RankGrid(ranks: communicator.count, ulysses: ulysses)
        guard queryHeads % ulysses == 0, kvHeads % ulysses == 0 || ulysses % kvHeads == 0 else {
            throw SparseKernelsError(
                .invalidArgument, "ulysses",
                expected:
                    "a divisor of the \(queryHeads) query heads, and a divisor or multiple of the \(kvHeads) key/value heads",
                actual: "\(ulysses)")
        }
        guard modifiers.aliBiSlopes == nil else {
            throw SparseKernelsError(
                .invalidArgument, "modifiers.aliBiSlopes",
                expected: "nil: tokens of a rank are not at the distances of their rows",
                actual: "slopes")
        }
        guard sliceRows ?? 1 >= 1 else {
            throw SparseKernelsError(.invalidArgument, "sliceRows", expected: "at least 1", actual: "\(sliceRows ?? 0)")
        }
        let rows = min(sliceRows ?? Self.sliceRows(queryHeads: queryHeads / ulysses), max(1, shards.length))
        for group in 0..<grid.ring {
            let tokens = grid.ranks(ofGroup: group).reduce(0) { $0 + shards.count(of: $1) }
            guard tokens < Int(Int32.max) else {
                // Kernels compare 32-bit numbers of keys.
                throw SparseKernelsError(
                    .invalidShape, "shards", expected: "with fewer than 2³¹ − 1 tokens in a group of \(ulysses) ranks",
                    actual: "\(tokens) in group \(group)")
            }
        }
        (self.shards, self.grid, self.queryHeads, self.kvHeads) = (shards, grid, queryHeads, kvHeads)
        (self.headDim, self.valueDim, self.mask, self.modifiers) = (headDim, valueDim, mask, modifiers)
        (self.overlaps, self.sliceRows, self.communicator) = (overlaps, rows, communicator)
        if communicator.count == 1 {
            let shape = try AttentionShape(
                queryLength: shards.length, keyLength: shards.length, queryHeads: queryHeads, kvHeads: kvHeads,
                headDim: headDim, valueDim: valueDim)
            work = .alone(try DenseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: level))
        } else {
            let layout = ExchangeLayout(
                queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim, valueDim: valueDim, ulysses: ulysses)
            let schedule = RingSchedule(shards, grid, rank: communicator.rank, mask: mask, sliceRows: rows)
            work = .ring(try RankWork(schedule, layout, modifiers, place: grid.place(of: communicator.rank), level))
        }
    }

    /// Queries of a slice: 64 tasks of 96 rows, at least one of each head. On one core, 8192 tokens of two ranks take 1.056 of the
    /// time of dense attention, with half as many 1.085, with all rows of a rank 1.036; but then the rank never looks at its messages.
    private static func sliceRows(queryHeads: Int) -> Int {
        let rows = (64 * 96 + queryHeads - 1) / queryHeads
        return (rows + 95) / 96 * 96
    }

    /// The tokens of this rank.
    public var tokens: Int { shards.count(of: communicator.rank) }

    /// Score entries that this rank computes, over its heads.
    public var visiblePairs: Int {
        switch work {
        case .alone(let dense): dense.visiblePairs
        case .ring(let ring): ring.schedule.visiblePairs * ring.layout.queryHeads
        }
    }

    // MARK: - Run

    /// Computes attention of this rank's tokens into the caller's memory. Every rank calls this, with the same element types.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × this rank's tokens, in ascending order, × `headDim`. All operands may have any strides with
    ///     adjacent
    ///     channels.
    ///   - key: `kvHeads` × tokens × `headDim`.
    ///   - value: `kvHeads` × tokens × `valueDim`.
    ///   - output: `queryHeads` × tokens × `valueDim`.
    ///   - logSumExp: natural log of the sum of exponentials of each row, `[queryHeads, tokens]`. All ranks give it, or none.
    ///   - pool: the threads of this rank.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan, and `.invalidElementType` for cached rows on
    ///   several ranks; the other ranks then fail, too, and nothing is written here. `.communication` when another rank fails:
    ///   the output is then undefined.
    public func run<Q: AttentionElement, K: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<K>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        switch work {
        case .alone(let dense):
            let clock = CallClock()
            try dense.run(query: query, key: key, value: value, output: output, logSumExp: logSumExp, on: pool)
            statistics = SequenceParallelStatistics()
            statistics.attentionSeconds = clock.seconds
        case .ring(let ring):
            do throws(SparseKernelsError) {
                try check(query.geometry, Q.self, heads: queryHeads, channels: headDim, "query")
                try check(key.geometry, K.self, heads: kvHeads, channels: headDim, "key")
                try check(value.geometry, K.self, heads: kvHeads, channels: valueDim, "value")
                try check(output.geometry, O.self, heads: queryHeads, channels: valueDim, "output")
                try check(logSumExpCount: logSumExp?.count)
                try ring.buffers.prepare(
                    queryBytes: MemoryLayout<Q>.stride, keyBytes: MemoryLayout<K>.stride,
                    outputBytes: MemoryLayout<O>.stride)
            } catch {
                // The others wait for messages that will never come.
                communicator.fail(error)
                throw error
            }
            let logs = logSumExp?.withUnsafeMutableBufferPointer { $0.baseAddress ?? UnsafeMutablePointer(bitPattern: 64)! }
            var target = output
            var call = SequenceParallelCall(
                self, ring, output: RowMemory(writing: &target), O.self, logSumExp: logs, Q.self, K.self, on: pool)
            try call.run(query: query, key: key, value: value)
        }
    }

    /// Computes attention of this rank's tokens into new memory, from tensors `[heads, tokens, channels]`.
    /// - Throws: the errors of `run` with views.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        var output = try Tensor<Float>(zeros: [queryHeads, tokens, valueDim])
        var logSumExp = try Tensor<Float>(zeros: [queryHeads, tokens])
        try run(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            output: output.mutableView(named: "output"), logSumExp: logSumExp.mutableSpan, on: pool)
        return try AttentionState(output: output, logSumExp: logSumExp)
    }

    /// Computes attention of this rank's tokens, `[heads, tokens, channels]`, into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views.
    public func run<Q: AttentionElement, K: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<K>, into output: inout Tensor<O>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            output: output.mutableView(named: "output"), logSumExp: nil, on: pool)
    }

    private func check<Element: AttentionElement>(
        _ geometry: TensorGeometry, _ type: Element.Type, heads: Int, channels: Int, _ name: String
    ) throws(SparseKernelsError) {
        guard type != CachedElement.self else {
            throw SparseKernelsError(
                .invalidElementType, name, expected: "elements in memory, on several ranks", actual: "cached rows")
        }
        guard geometry.heads == heads, geometry.tokens == tokens, geometry.channels == channels else {
            throw SparseKernelsError(
                .invalidShape, name,
                expected: "\(heads) heads × \(tokens) tokens of rank \(communicator.rank) × \(channels) channels",
                actual: "\(geometry.heads) × \(geometry.tokens) × \(geometry.channels)")
        }
    }

    private func check(logSumExpCount count: Int?) throws(SparseKernelsError) {
        let rows = queryHeads * tokens
        guard let count, count != rows else { return }
        throw SparseKernelsError(
            .invalidShape, "logSumExp", expected: "queryHeads × tokens = \(rows) elements", actual: "\(count)")
    }
}
