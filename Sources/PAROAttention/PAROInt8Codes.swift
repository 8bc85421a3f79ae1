public import SparseKernels

/// Queries and keys of a call as the released kernel multiplies them: INT8 codes of the permuted rows.
///
/// Queries have a scale for every 32 rows, keys for every 64. Scales are max(max|x|, 10⁻⁷)/127, codes rounded to nearest with
/// halves to even, and no mean is subtracted from the keys. Here the codes show what they cost in accuracy; attention multiplies
/// floats.
///
/// - Source: quantisation in front of the kernels of jamescsq47/PAROAtten, after SageAttention.
public struct PAROInt8Codes: Sendable, Equatable {
    /// Codes and scales of permuted queries.
    public let query: Int8BlockQuantization
    /// Codes and scales of permuted keys.
    public let key: Int8BlockQuantization

    /// - Throws: `.invalidShape` for codes of other blocks than those of the released kernel.
    public init(query: Int8BlockQuantization, key: Int8BlockQuantization) throws(SparseKernelsError) {
        for (name, side, rows) in [("query", query, Self.queryRows), ("key", key, Self.keyRows)] {
            let partition = try BlockPartition(length: side.partition.length, blockSize: rows)
            try require(
                side.partition == partition, .invalidShape, "\(name).partition", expected: "blocks of \(rows) tokens",
                actual: side.partition.blockSize.map { "blocks of \($0)" } ?? "blocks of varying sizes")
        }
        self.query = query
        self.key = key
    }

    /// Rows per scale.
    public static let queryRows = 32
    public static let keyRows = 64
}

extension PAROAttentionPlan {
    /// The INT8 codes of queries and keys in the order of each head.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × tokens × `headDim`, in the order of the geometry.
    ///   - key: `kvHeads` × tokens × `headDim`.
    /// - Throws: `.invalidShape` when an operand disagrees with the plan, `.invalidArgument` for grouped heads of different
    ///   orders.
    /// - Complexity: O(heads · tokens · headDim), with a copy of both operands in single precision.
    public func int8Codes<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> PAROInt8Codes {
        let keyOrders = try keyOrders(AttentionShape(query: query, key: key, value: key))
        let queries = try permutation().gathered(query.view(named: "query"), instructionSet: instructionSet, on: pool)
        let keys = try PAROAxisOrder.permutation(keyOrders, geometry)
            .gathered(key.view(named: "key"), instructionSet: instructionSet, on: pool)
        return try PAROInt8Codes(
            query: Int8BlockQuantization(
                queries, blocks: BlockPartition(length: geometry.tokens, blockSize: PAROInt8Codes.queryRows),
                rule: .halvesToEven, instructionSet: instructionSet, on: pool),
            key: Int8BlockQuantization(
                keys, blocks: BlockPartition(length: geometry.tokens, blockSize: PAROInt8Codes.keyRows),
                rule: .halvesToEven, instructionSet: instructionSet, on: pool))
    }

    /// Exact attention over the rows that INT8 codes stand for: what the released codes of queries and keys do to the plan's
    /// attention. It shows their error and saves no time.
    ///
    /// - Parameters:
    ///   - codes: codes of permuted rows, of `int8Codes` or from elsewhere.
    ///   - value: `kvHeads` × tokens × `valueDim`, in the order of the geometry.
    ///   - slot: the index of the mask.
    ///   - modifiers: how scores become probabilities.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: output and LSE of tokens in their own order.
    /// - Throws: `.invalidShape` when codes, values and plan disagree, and the errors of `attention`.
    public func attention<V: AttentionElement>(
        of codes: PAROInt8Codes, value: Tensor<V>, slot: Int = 0, modifiers: ScoreModifiers = ScoreModifiers(),
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        let (queries, keys) = (codes.query.dequantized(), codes.key.dequantized())
        let shape = try AttentionShape(query: queries, key: keys, value: value)
        let attention = try attention(shape, slot: slot, modifiers: modifiers, instructionSet: instructionSet)
        // The operator takes tokens in their own order, so the rows go back there.
        let queriesInPlace = try permutation().inverse.gathered(queries.view(), instructionSet: instructionSet, on: pool)
        let keysInPlace = try PAROAxisOrder.permutation(keyOrders(shape), geometry).inverse
            .gathered(keys.view(), instructionSet: instructionSet, on: pool)
        return try attention(query: queriesInPlace, key: keysInPlace, value: value, on: pool)
    }
}
