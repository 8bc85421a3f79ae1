extension BlockSparseAttention.PackedSequence {
    /// Makes sequences from cumulative lengths (`cu_seqlens`).
    ///
    /// Sequence b has the queries `queryOffsets[b]..<queryOffsets[b + 1]` and the keys `keyOffsets[b]..<keyOffsets[b + 1]`.
    /// Offsets that repeat make empty sequences.
    ///
    /// - Parameter heads: the patterns of every sequence, or one list for all. A mask is made for one length, so sequences of
    ///   different lengths need lists of their own.
    /// - Parameter keyOffsets: the first key of every sequence, then the end.
    /// - Parameter queryOffsets: the first query of every sequence, then the end.
    /// - Throws: `.invalidShape` unless both lists have the same number of offsets, two or more, and `heads` has one list or
    ///   one per sequence; `.invalidArgument` naming the first offset that descends.
    public static func sequences(
        queryOffsets: [Int], keyOffsets: [Int], heads: [[HeadPattern]]
    ) throws(SparseKernelsError) -> [BlockSparseAttention.PackedSequence] {
        let count = queryOffsets.count - 1
        try require(
            count >= 1, .invalidShape, "queryOffsets", expected: "two or more offsets, one per sequence and one more",
            actual: "\(count + 1)")
        try require(
            keyOffsets.count == count + 1, .invalidShape, "keyOffsets", expected: "\(count + 1) offsets, as queryOffsets",
            actual: "\(keyOffsets.count)")
        try require(
            heads.count == 1 || heads.count == count, .invalidShape, "heads",
            expected: "1 list of patterns or one per sequence (\(count))",
            actual: "\(heads.count)")
        for (name, offsets) in [("queryOffsets", queryOffsets), ("keyOffsets", keyOffsets)] {
            for index in 1...count {
                try require(
                    offsets[index] >= offsets[index - 1], .invalidArgument, "\(name)[\(index)]",
                    expected: "at least \(offsets[index - 1]), the offset before", actual: "\(offsets[index])")
            }
        }
        return (0..<count).map { index in
            BlockSparseAttention.PackedSequence(
                queries: queryOffsets[index]..<queryOffsets[index + 1], keys: keyOffsets[index]..<keyOffsets[index + 1],
                heads: heads[heads.count == 1 ? 0 : index])
        }
    }
}
