/// Selects the blocks that each row of a mask keeps from their scores.
///
/// Every block row first keeps its sink and recent blocks. Then a rule keeps blocks by score, larger first and equal ones by
/// lower column, until it has enough. Forced blocks count towards the mass, the number, and `minimumBlocks`.
///
/// ```swift
/// let selection = try BlockSelection(.topP(0.9), sinkBlocks: 1, recentBlocks: 1)
/// let mask = try selection(scores)
/// let pruned = try BlockSelection(.topP(0.95))(scores, within: otherMask)
/// ```
///
/// Unreachable blocks, and empty blocks of variable partitions, are not candidates: they are never kept and their scores are
/// not read. With `within:` only the blocks of that mask are candidates, forced ones included, and the mass of `.topP` is a
/// fraction of *their* mass, so that the mask of any selector can be pruned.
///
/// - A row with a NaN among its candidates keeps all of them, and so does a row of infinite mass under `.topP`. Attention then
///   shows the non-finite values, which an arbitrary choice could hide.
/// - Results are equal for every number of threads.
/// - Complexity: O(blocks + kept · log blockColumns) per head, because rows are not sorted.
/// - Scratch: 8 bytes per block column for each thread, kept by the pool, and one bit per block of the grid during the call.
public struct BlockSelection: Sendable {
    /// The condition under which the blocks of a row are enough.
    public enum Rule: Hashable, Sendable {
        /// The smallest set of blocks whose scores add up to this fraction (0…1) of the row. See ``TopP``. Scores must not be
        /// negative. Blocks of score 0 are not kept for their mass.
        case topP(Double)
        /// This many blocks, forced ones included.
        case topK(Int)
        /// Blocks whose score is this or more.
        case threshold(Float)
    }

    /// One rule for all heads, or one per head.
    public let rules: [Rule]
    /// The number of blocks that every row keeps at least, if it has as many candidates. They may have score 0.
    public let minimumBlocks: Int
    /// The number of first columns that every row keeps.
    public let sinkBlocks: Int
    /// The number of recent blocks. 0 keeps none. Otherwise every row keeps its diagonal blocks (`BlockGrid.diagonalColumns`)
    /// and `recentBlocks` − 1 blocks before them, also in grids that are not causal.
    public let recentBlocks: Int

    /// Makes a selection with one rule for all heads.
    /// - Throws: `.invalidArgument` for a mass outside 0…1, a threshold that is NaN, or a negative count.
    public init(
        _ rule: Rule, minimumBlocks: Int = 1, sinkBlocks: Int = 0, recentBlocks: Int = 0
    ) throws(SparseKernelsError) {
        try rule.validate(named: "rule")
        try self.init(checked: [rule], minimumBlocks: minimumBlocks, sinkBlocks: sinkBlocks, recentBlocks: recentBlocks)
    }

    /// Makes a selection with one rule per head of the scores.
    /// - Throws: the errors of the other initialiser, naming `rules[index]`; `.invalidShape` for no rules.
    public init(
        perHead rules: [Rule], minimumBlocks: Int = 1, sinkBlocks: Int = 0, recentBlocks: Int = 0
    ) throws(SparseKernelsError) {
        try require(!rules.isEmpty, .invalidShape, "rules", expected: "one rule or more", actual: "none")
        for (index, rule) in rules.enumerated() { try rule.validate(named: "rules[\(index)]") }
        try self.init(checked: rules, minimumBlocks: minimumBlocks, sinkBlocks: sinkBlocks, recentBlocks: recentBlocks)
    }

    private init(
        checked rules: [Rule], minimumBlocks: Int, sinkBlocks: Int, recentBlocks: Int
    ) throws(SparseKernelsError) {
        for (name, count) in [
            ("minimumBlocks", minimumBlocks), ("sinkBlocks", sinkBlocks), ("recentBlocks", recentBlocks),
        ] {
            try require(count >= 0, .invalidArgument, name, expected: "at least 0", actual: "\(count)")
        }
        self.rules = rules
        self.minimumBlocks = minimumBlocks
        self.sinkBlocks = sinkBlocks
        self.recentBlocks = recentBlocks
    }

    /// Selects the blocks to keep.
    ///
    /// - Parameters:
    ///   - scores: the scores of the blocks; larger is more important.
    ///   - candidates: a mask that restricts the choice to its blocks, with one head or as many as the scores.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: a mask over the grid of the scores, with as many heads.
    /// - Throws: `.invalidShape` for rules or candidates that do not fit the scores, `.invalidArgument` naming the first
    ///   candidate whose score is negative under `.topP`.
    public func callAsFunction(
        _ scores: BlockScores, within candidates: BlockMask? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        let grid = scores.grid
        try require(
            rules.count == 1 || rules.count == scores.heads, .invalidShape, "rules",
            expected: "1 or one per head of the scores (\(scores.heads))", actual: "\(rules.count)")
        if let candidates {
            try require(
                candidates.grid == grid, .invalidShape, "candidates.grid", expected: "the grid of the scores",
                actual: "\(candidates.grid.blockRows) × \(candidates.grid.blockColumns) blocks of "
                    + "\(candidates.grid.query.length) × \(candidates.grid.key.length) tokens")
            try require(
                candidates.heads == 1 || candidates.heads == scores.heads, .invalidShape, "candidates.heads",
                expected: "1 or as many as those of the scores (\(scores.heads))", actual: "\(candidates.heads)")
        }
        if grid.blockRows == 0 || grid.blockColumns == 0 {
            return try BlockMask(grid: grid, heads: scores.heads) { _, _, _ in false }
        }
        var bits = BlockBits(grid: grid, heads: scores.heads)
        // The first column with a negative score of every row, or −1.
        var negative = [Int32](repeating: -1, count: scores.heads * grid.blockRows)
        bits.words.withUnsafeMutableBufferPointer { words in
            negative.withUnsafeMutableBufferPointer { negative in
                scores.values.span.withUnsafeBufferPointer { values in
                    let call = BlockSelectionCall(
                        selection: self, grid: grid, heads: scores.heads, candidates: candidates,
                        values: values.baseAddress!, words: words.baseAddress!, wordsPerRow: bits.wordsPerRow,
                        negative: negative.baseAddress!)
                    call.run(on: pool)
                }
            }
        }
        if let row = negative.firstIndex(where: { $0 >= 0 }) {
            let (head, blockRow, column) = (row / grid.blockRows, row % grid.blockRows, Int(negative[row]))
            throw SparseKernelsError(
                .invalidArgument, "scores[\(head), \(blockRow), \(column)]", expected: "at least 0 under .topP",
                actual: "\(scores[head, blockRow, column])")
        }
        return bits.mask
    }
}

extension BlockSelection.Rule {
    func validate(named name: @autoclosure () -> String) throws(SparseKernelsError) {
        switch self {
        case .topP(let mass):
            try TopP.checkMass(mass, named: "\(name()).topP")
        case .topK(let count):
            try require(count >= 0, .invalidArgument, "\(name()).topK", expected: "at least 0", actual: "\(count)")
        case .threshold(let threshold):
            try require(
                !threshold.isNaN, .invalidArgument, "\(name()).threshold", expected: "a number", actual: "\(threshold)")
        }
    }
}
