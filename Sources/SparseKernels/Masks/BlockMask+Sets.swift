// Masks made from masks: heads, union and intersection, permutation.

extension BlockMask {
    /// One head as a mask of one head.
    /// - Throws: `.invalidArgument` for a head that the mask does not have.
    /// - Complexity: O(rows + kept blocks of the head).
    public func head(_ index: Int) throws(SparseKernelsError) -> BlockMask {
        try require(
            index >= 0 && index < heads, .invalidArgument, "head", expected: "one of the mask's \(heads) heads",
            actual: "\(index)")
        let rows = rowOffsets[index * grid.blockRows...(index + 1) * grid.blockRows]
        let start = rows.first!
        return BlockMask(
            unchecked: grid, heads: 1, rowOffsets: rows.map { $0 - start },
            columnIndices: Array(columnIndices[start..<rows.last!]))
    }

    /// Stacks the heads of several masks over one grid, in order.
    /// - Throws: `.invalidShape` for no mask, grids that differ, or too many heads.
    /// - Complexity: O(rows + kept blocks) of the result.
    public init(stacking masks: [BlockMask]) throws(SparseKernelsError) {
        guard let first = masks.first else {
            throw SparseKernelsError(.invalidShape, "masks", expected: "one or more masks", actual: "none")
        }
        var rowOffsets = [0]
        var columnIndices: [Int32] = []
        for (index, mask) in masks.enumerated() {
            try mask.requireGrid(first.grid, named: "masks[\(index)]")
            rowOffsets += mask.rowOffsets.dropFirst().map { $0 + columnIndices.count }
            columnIndices += mask.columnIndices
        }
        let heads = masks.reduce(0) { $0 + $1.heads }
        try Self.checkHeads(heads, of: first.grid)
        self.init(unchecked: first.grid, heads: heads, rowOffsets: rowOffsets, columnIndices: columnIndices)
    }

    /// The blocks that either mask keeps. A mask of one head is applied to all heads of the other.
    /// - Throws: `.invalidShape` when grids or heads differ.
    /// - Complexity: O(rows + kept blocks of both).
    public func union(_ other: BlockMask) throws(SparseKernelsError) -> BlockMask {
        try merged(with: other) { _, _ in true }
    }

    /// The blocks that both masks keep. A mask of one head is applied to all heads of the other.
    /// - Throws: `.invalidShape` when grids or heads differ.
    /// - Complexity: O(rows + kept blocks of both).
    public func intersection(_ other: BlockMask) throws(SparseKernelsError) -> BlockMask {
        try merged(with: other) { $0 && $1 }
    }

    /// The mask for a new order of the blocks: row r of the result is row `rows[r]` of this mask, and column c `columns[c]`;
    /// nil keeps the order.
    ///
    /// Block sizes move with the blocks: a ragged last block that moves makes the partition one of variable sizes. Sequences
    /// that are permuted token by token, for example into clusters, do not keep their blocks. Make their masks over a
    /// `BlockPartition(sizes:)` of the clusters.
    /// - Throws: `.invalidArgument` for a causal grid, whose diagonal a permutation would not respect, and for an index out of
    ///   range or listed twice; `.invalidShape` for a wrong number of indices.
    /// - Complexity: O(rows + columns + kept blocks · log of the kept blocks of a row).
    public func permuted(rows: [Int]? = nil, columns: [Int]? = nil) throws(SparseKernelsError) -> BlockMask {
        try require(!grid.isCausal, .invalidArgument, "grid", expected: "not causal to be permuted", actual: "causal")
        let rows = rows ?? Array(0..<grid.blockRows)
        let columns = columns ?? Array(0..<grid.blockColumns)
        _ = try inversePermutation(rows, count: grid.blockRows, named: "rows")
        let placeOfColumn = try inversePermutation(columns, count: grid.blockColumns, named: "columns")
        let grid = try BlockGrid(query: grid.query.permuted(rows), key: grid.key.permuted(columns), isCausal: false)
        var builder = BlockMaskBuilder(grid: grid, heads: heads)
        for head in 0..<heads {
            for row in rows {
                for column in self.columns(head: head, row: row).map({ placeOfColumn[Int($0)] }).sorted() {
                    builder.keep(column)
                }
                builder.endRow()
            }
        }
        return builder.mask
    }

    // MARK: - Shared

    private func requireGrid(_ expected: BlockGrid, named name: @autoclosure () -> String) throws(SparseKernelsError) {
        try require(
            grid == expected, .invalidShape, name(), expected: "over the same grid: \(expected.summary)", actual: grid.summary)
    }

    /// Walks through both masks by rows and calls `isKept(in this one, in the other)` for each block that either keeps.
    private func merged(
        with other: BlockMask, _ isKept: (Bool, Bool) -> Bool
    ) throws(SparseKernelsError) -> BlockMask {
        try other.requireGrid(grid, named: "other")
        try require(
            heads == other.heads || heads == 1 || other.heads == 1, .invalidShape, "other.heads",
            expected: heads == 1 ? "any number" : "1 or \(heads)", actual: "\(other.heads)")
        var builder = BlockMaskBuilder(grid: grid, heads: max(heads, other.heads))
        for head in 0..<builder.heads {
            for row in 0..<grid.blockRows {
                var mine = columns(head: heads == 1 ? 0 : head, row: row)
                var others = other.columns(head: other.heads == 1 ? 0 : head, row: row)
                // A grid has fewer columns than Int32.max, so `.max` compares as after all of them at the end of a row.
                while !mine.isEmpty || !others.isEmpty {
                    let column = min(mine.first ?? .max, others.first ?? .max)
                    let (inMine, inOthers) = (mine.first == column, others.first == column)
                    if inMine { mine.removeFirst() }
                    if inOthers { others.removeFirst() }
                    if isKept(inMine, inOthers) { builder.keep(Int(column)) }
                }
                builder.endRow()
            }
        }
        return builder.mask
    }
}

/// The position of each of 0..<count in `permutation`.
private func inversePermutation(
    _ permutation: [Int], count: Int, named name: String
) throws(SparseKernelsError) -> [Int] {
    try require(
        permutation.count == count, .invalidShape, name, expected: "\(count) indices", actual: "\(permutation.count)")
    var places = [Int](repeating: -1, count: count)
    for (place, index) in permutation.enumerated() {
        try require(
            index >= 0 && index < count && places[index] < 0, .invalidArgument, "\(name)[\(place)]",
            expected: "an index from 0 on, below \(count), that is listed once",
            actual: index >= 0 && index < count ? "\(index) again" : "\(index)")
        places[index] = place
    }
    return places
}

extension BlockPartition {
    /// The blocks in another order. They stay uniform when the ragged block, if any, stays last.
    fileprivate func permuted(_ order: [Int]) throws(SparseKernelsError) -> BlockPartition {
        if let blockSize, length % blockSize == 0 || order.last == count - 1 { return self }
        return try BlockPartition(sizes: order.map { self[$0].count })
    }
}
