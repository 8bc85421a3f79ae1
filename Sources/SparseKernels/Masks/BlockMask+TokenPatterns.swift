// Block covers of patterns that are defined by tokens. Each keeps exactly the blocks with a (query, key) pair of the pattern,
// so attention under the mask sees the pattern and the rest of those blocks. Query i has key position i + keyLength −
// queryLength. Empty blocks of variable partitions have no pair and are not listed.

extension BlockMask {
    /// Keeps the blocks with a key at or before the position of one of their queries.
    ///
    /// In a causal grid these are all blocks with a visible pair. A grid that is not causal gives *block-causal* attention:
    /// blocks on the diagonal are seen whole.
    /// - Complexity: O(kept blocks).
    public static func causal(_ grid: BlockGrid) -> BlockMask {
        covering(grid) { positions, ranges in ranges.append(0..<max(0, positions.upperBound)) }
    }

    /// Keeps the blocks with a pair |position − key| < `tokens`: the cover of `AttentionMask.causal(window:)` or
    /// `.full(window:)`. Of these pairs a causal grid sees the keys up to the position.
    /// - Throws: `.invalidArgument` for a window below 1.
    /// - Complexity: O(rows + kept blocks).
    public static func slidingWindow(_ grid: BlockGrid, tokens: Int) throws(SparseKernelsError) -> BlockMask {
        try require(tokens >= 1, .invalidArgument, "tokens", expected: "at least 1", actual: "\(tokens)")
        // A wider window hides nothing more; clamping it avoids overflow.
        let reach = min(tokens, grid.query.length + grid.key.length) - 1
        return covering(grid) { positions, ranges in
            ranges.append(positions.lowerBound - reach..<positions.upperBound + reach)
        }
    }

    /// Keeps the blocks with a key below `sinkTokens`, or one of the `localTokens` keys that end at the query's own position.
    ///
    /// This is the A-shape of MInference (arXiv 2407.02490, section 3.2; `streaming_forward`, with its defaults of 128 and
    /// 3968). The released kernel hides the other tokens of the blocks; for that use `HeadPattern.streaming(sink:local:)`.
    /// - Throws: `.invalidArgument` for a grid that is not causal, a negative sink or a window below 1.
    /// - Complexity: O(rows + kept blocks).
    public static func aShape(
        _ grid: BlockGrid, sinkTokens: Int, localTokens: Int
    ) throws(SparseKernelsError) -> BlockMask {
        try require(grid.isCausal, .invalidArgument, "grid", expected: "causal for an A-shape", actual: "not causal")
        try require(sinkTokens >= 0, .invalidArgument, "sinkTokens", expected: "at least 0", actual: "\(sinkTokens)")
        try require(localTokens >= 1, .invalidArgument, "localTokens", expected: "at least 1", actual: "\(localTokens)")
        let reach = min(localTokens, grid.key.length) - 1
        return covering(grid) { positions, ranges in
            ranges.append(0..<sinkTokens)
            let end = max(0, positions.upperBound)
            ranges.append(min(end, max(0, positions.lowerBound - reach))..<end)
        }
    }

    /// Keeps the blocks with a listed key (a vertical) or a listed distance from query to key (a slash).
    ///
    /// This is the vertical-slash pattern of MInference (arXiv 2407.02490, section 3.2), as the cover of the lines themselves.
    /// The released index rounds diagonals to runs of 64 keys that start anywhere and keeps single keys between them: see
    /// ``VerticalSlashIndex``, whose `blockCover` may have more blocks.
    ///
    /// - Parameters:
    ///   - columns: keys, in 0..<keyLength, in any order.
    ///   - distances: position − key, in any order. 0 is the diagonal, and larger distances are further back. Negative
    ///     distances are after the diagonal and need a grid that is not causal.
    ///   - grid: the blocks over the tokens.
    /// - Throws: `.invalidArgument` for a column or a distance that no pair of the grid has.
    /// - Complexity: O(rows · (columns + distances) + kept blocks).
    public static func verticalSlash(
        _ grid: BlockGrid, columns: [Int], distances: [Int]
    ) throws(SparseKernelsError) -> BlockMask {
        let keyLength = grid.key.length
        for (index, column) in columns.enumerated() {
            try require(
                column >= 0 && column < keyLength, .invalidArgument, "columns[\(index)]",
                expected: keyLength > 0 ? "in 0..<\(keyLength)" : "left out, as the grid has no keys",
                actual: "\(column)")
        }
        let nearest = grid.isCausal ? 0 : 1 - grid.query.length
        for (index, distance) in distances.enumerated() {
            try require(
                distance >= nearest && distance < keyLength, .invalidArgument, "distances[\(index)]",
                expected: nearest < keyLength ? "in \(nearest)..<\(keyLength)" : "left out, as the grid has no pairs",
                actual: "\(distance)")
        }
        let columns = columns.sorted()
        let distances = distances.sorted(by: >)
        return covering(grid) { positions, ranges in
            // Merges two ascending lists: columns, and diagonals from the furthest one on.
            var next = columns.startIndex
            for distance in distances {
                let keys = positions.lowerBound - distance..<positions.upperBound - distance
                while next < columns.endIndex && columns[next] < keys.lowerBound {
                    ranges.append(columns[next]..<columns[next] + 1)
                    next += 1
                }
                ranges.append(keys)
            }
            for column in columns[next...] { ranges.append(column..<column + 1) }
        }
    }

    /// The mask of the blocks with a visible pair of a row's queries and the keys that `keys` lists for their positions. The
    /// listed ranges ascend by their lower bounds, may overlap and may leave the sequence.
    private static func covering(
        _ grid: BlockGrid, _ keys: (_ positions: Range<Int>, _ ranges: inout [Range<Int>]) -> Void
    ) -> BlockMask {
        var ranges: [Range<Int>] = []
        return building(grid) { row, builder in
            let positions = grid.positions(ofRow: row)
            if positions.isEmpty { return }
            // A causal row's last query sees the most. A listed key up to its position is seen by some query of the row.
            let visible = 0..<(grid.isCausal ? max(0, positions.upperBound) : grid.key.length)
            ranges.removeAll(keepingCapacity: true)
            keys(positions, &ranges)
            var next = 0
            for range in ranges {
                let range = range.clamped(to: visible)
                if range.isEmpty { continue }
                let first = max(next, grid.key.block(of: range.lowerBound))
                next = max(first, grid.key.block(of: range.upperBound - 1) + 1)
                for column in first..<next where !grid.key[column].isEmpty { builder.keep(column) }
            }
        }
    }
}
