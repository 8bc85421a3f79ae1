internal import Foundation
public import SparseKernels

/// SpargeAttention's prediction of important blocks, from the block means and self-similarities of queries and keys.
///
/// With q̄ and k̄ the means, for every row of blocks and over the reachable columns whose key block is self-similar:
///
///     s_j = softmaxScale · q̄ · k̄_j        p = softmax(s)
///
/// * `.cdfThreshold(t)` keeps the most probable columns while the sum of their probabilities is at most t. The column that
///   crosses t is *not* kept.
/// * `.keepRatio(r)` keeps the ⌊r · blockColumns⌋ most probable columns. All columns count, also when causal.
///
/// At least one column is kept. Reachable columns whose key block is not self-similar are kept, and all in rows whose query
/// block is not, because a mean does not represent dissimilar tokens. Ties go to the lower column.
///
/// - A block is self-similar when its similarity is above the threshold (NaN is not). Blocks of non-finite score are kept.
/// - Results are the same for every number of threads. Instruction sets may rank scores differently that agree up to rounding.
/// - Source: SpargeAttn, `spas_sage_attn/utils.py`, `get_block_map_meansim`; arXiv 2502.18137, section 3.2.
/// - Complexity: O(heads · blockRows · blockColumns · channels). Memory: a head's scores; 8 bytes per column and thread.
public struct SimilaritySelection: Sendable {
    /// How many of the self-similar columns are kept.
    public enum Rule: Hashable, Sendable {
        /// Largest sum of probabilities of the kept columns, 0…1; 1 keeps every column.
        case cdfThreshold(Double)
        /// Fraction of all columns that is kept, 0…1. SpargeAttn calls it `topk`.
        case keepRatio(Double)
    }

    /// The settings of a query head.
    public struct Head: Hashable, Sendable {
        public var rule: Rule
        /// Blocks with a self-similarity up to this one are always kept; −1 keeps only those with NaN, 1 keeps all blocks.
        public var similarityThreshold: Float

        public init(_ rule: Rule, similarityThreshold: Float) {
            self.rule = rule
            self.similarityThreshold = similarityThreshold
        }
    }

    public let grid: BlockGrid
    /// The settings: one for all heads, or one per query head.
    public let heads: [Head]
    /// Whether column 0, the attention sink, is always kept.
    public let keepsFirstColumn: Bool
    /// Factor on q̄·k̄; nil means 1/√channels.
    public let softmaxScale: Float?
    /// The instruction set that computes the products of means.
    public let instructionSet: InstructionSet

    /// - Parameters:
    ///   - grid: blocks over the tokens.
    ///   - heads: one setting for all heads, or one per query head.
    ///   - keepsFirstColumn: whether every row keeps the first block of keys.
    ///   - softmaxScale: factor on the products of means; nil means 1/√headDim.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` for no settings, `.invalidArgument` for a rule outside 0…1, a similarity threshold or a scale
    ///   that is not finite, `.unsupportedInstructionSet`.
    public init(
        grid: BlockGrid, heads: [Head], keepsFirstColumn: Bool = false, softmaxScale: Float? = nil,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(!heads.isEmpty, .invalidShape, "heads", expected: "one setting or more", actual: "none")
        for (index, head) in heads.enumerated() {
            let (name, value) =
                switch head.rule {
                case .cdfThreshold(let mass): ("cdfThreshold", mass)
                case .keepRatio(let ratio): ("keepRatio", ratio)
                }
            try require(
                value >= 0 && value <= 1, .invalidArgument, "heads[\(index)].\(name)", expected: "in 0...1", actual: "\(value)")
            try require(
                head.similarityThreshold.isFinite, .invalidArgument, "heads[\(index)].similarityThreshold", expected: "finite",
                actual: "\(head.similarityThreshold)")
        }
        if let softmaxScale {
            try require(
                softmaxScale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(softmaxScale)")
        }
        self.grid = grid
        self.heads = heads
        self.keepsFirstColumn = keepsFirstColumn
        self.softmaxScale = softmaxScale
        self.instructionSet = try InstructionSet.resolve(instructionSet)
    }

    /// The mask, with one head per query head. Query head h uses key head h / (query heads / key heads).
    /// - Throws: `.invalidShape` naming the summary that disagrees with the grid, the settings or the other summary.
    public func callAsFunction(
        query: BlockSummary, key: BlockSummary, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        let channels = query.channels
        for (name, summary, partition) in [("query", query, grid.query), ("key", key, grid.key)] {
            try require(
                summary.partition == partition, .invalidShape, "\(name).partition",
                expected: "that of the grid, \(partition.count) blocks over \(partition.length) tokens",
                actual: "\(summary.partition.count) blocks over \(summary.partition.length) tokens")
        }
        try require(
            key.channels == channels && query.heads % key.heads == 0, .invalidShape, "key.means",
            expected: "of \(channels) channels and of a number of heads that divides \(query.heads)",
            actual: "\(key.means.shape)")
        try require(
            heads.count == 1 || heads.count == query.heads, .invalidShape, "query.means",
            expected: "of as many heads as there are settings (\(heads.count))", actual: "of \(query.heads)")

        let (rows, columns) = (grid.blockRows, grid.blockColumns)
        if rows == 0 || columns == 0 { return try BlockMask(grid: grid, heads: query.heads) { _, _, _ in false } }
        let product = try GEMM(m: rows, n: columns, k: channels, transposesB: true, instructionSet: instructionSet)
        var scores = try Tensor<Float>(zeros: [rows, columns])
        var kept = try Tensor<UInt8>(zeros: [rows, columns])
        var builder = BlockMaskBuilder(grid: grid, heads: query.heads)
        for head in 0..<query.heads {
            let keyHead = head / (query.heads / key.heads)
            try product.run(
                a: MatrixView(
                    query.means.span.extracting(head * rows * channels..<(head + 1) * rows * channels), rows: rows,
                    columns: channels),
                b: MatrixView(
                    key.means.span.extracting(keyHead * columns * channels..<(keyHead + 1) * columns * channels),
                    rows: columns, columns: channels),
                c: scores.mutableMatrixView(), on: pool)
            select(
                heads[heads.count == 1 ? 0 : head], scores: scores,
                querySimilarities: query.similarities.span.extracting(head * rows..<(head + 1) * rows),
                keySimilarities: key.similarities.span.extracting(keyHead * columns..<(keyHead + 1) * columns),
                scale: softmaxScale ?? 1 / Float(channels).squareRoot(), into: &kept, on: pool)
            let flags = kept.span
            for row in 0..<rows {
                for column in grid.reachableColumns(ofRow: row) where flags[row * columns + column] != 0 {
                    builder.keep(column)
                }
                builder.endRow()
            }
        }
        return builder.mask
    }

    /// Sets the flags of one head's reachable blocks.
    private func select(
        _ head: Head, scores: Tensor<Float>, querySimilarities: Span<Float>, keySimilarities: Span<Float>, scale: Float,
        into kept: inout Tensor<UInt8>, on pool: WorkerPool
    ) {
        // Pointers are used only until this call returns, and the memory behind them outlives it.
        let scoreSpan = scores.span
        var keptSpan = kept.mutableSpan
        scoreSpan.withUnsafeBufferPointer { scores in
            querySimilarities.withUnsafeBufferPointer { query in
                keySimilarities.withUnsafeBufferPointer { key in
                    keptSpan.withUnsafeMutableBufferPointer { kept in
                        Call(
                            grid: grid, head: head, keepsFirstColumn: keepsFirstColumn, scale: scale,
                            scores: scores.baseAddress!, querySimilarities: query.baseAddress!,
                            keySimilarities: key.baseAddress!, kept: kept.baseAddress!
                        ).run(on: pool)
                    }
                }
            }
        }
    }

    /// The selection of one head. Each task is a row of blocks.
    private struct Call: PoolCall {
        let grid: BlockGrid
        let head: Head
        let keepsFirstColumn: Bool
        let scale: Float
        let scores: UnsafePointer<Float>
        let querySimilarities: UnsafePointer<Float>
        let keySimilarities: UnsafePointer<Float>
        let kept: UnsafeMutablePointer<UInt8>

        /// Approximate cost of a column in multiply-adds: an exponential and the insertion into the heap.
        private static let workPerColumn = 64

        func run(on pool: WorkerPool) {
            pool.run(
                self, tasks: grid.blockRows, work: grid.blockRows * grid.blockColumns * Self.workPerColumn,
                scratchByteCount: grid.blockColumns * MemoryLayout<UInt64>.stride)
        }

        func perform(task row: Int, scratch: UnsafeMutableRawPointer) {
            let reachable = grid.reachableColumns(ofRow: row)
            let scores = scores + row * grid.blockColumns
            let flags = kept + row * grid.blockColumns
            let isSimilar = querySimilarities[row] > head.similarityThreshold
            var heap = DescendingHeap(scratch.assumingMemoryBound(to: UInt64.self))
            var maximum = -Float.infinity
            for column in reachable {
                let score = scores[column] * scale
                let isRanked = isSimilar && keySimilarities[column] > head.similarityThreshold && score.isFinite
                flags[column] = isRanked ? 0 : 1
                if !isRanked { continue }
                heap.append(score, index: column)
                maximum = max(maximum, score)
            }
            heap.heapify()
            switch head.rule {
            case .keepRatio(let ratio):
                // In single precision as in the released code, where 0.29 · 100 is 29.
                let count = max(1, Int(Float(ratio) * Float(grid.blockColumns)))
                for _ in 0..<min(count, heap.count) {
                    flags[heap.first.index] = 1
                    heap.removeFirst()
                }
            case .cdfThreshold(let mass):
                keepMass(mass, of: &heap, reachable: reachable, scores: scores, maximum: maximum, flags: flags)
            }
            if keepsFirstColumn && !reachable.isEmpty { flags[0] = 1 }
        }

        /// Keeps ranked columns while the sum of their probabilities is at most `mass`, and at least one column.
        private func keepMass(
            _ mass: Double, of heap: inout DescendingHeap, reachable: Range<Int>, scores: UnsafePointer<Float>, maximum: Float,
            flags: UnsafeMutablePointer<UInt8>
        ) {
            func weight(_ score: Float) -> Double { exp(Double(score) - Double(maximum)) }
            var total = 0.0
            for column in reachable where flags[column] == 0 { total += weight(scores[column] * scale) }
            var sum = 0.0
            var isFirst = true
            while heap.count > 0 {
                let (score, column) = heap.first
                heap.removeFirst()
                sum += weight(score)
                // A mass of 1 keeps every column, even when the sums are rounded.
                if !isFirst && mass < 1 && sum > mass * total { return }
                flags[column] = 1
                isFirst = false
            }
        }
    }
}
