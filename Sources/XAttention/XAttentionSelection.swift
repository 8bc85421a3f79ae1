/// The selection of the released XAttention code with all its quirks, for comparison with that code.
///
/// The released code pads sequences to whole *chunks* of queries and selects chunk by chunk. For a row of sums v with total T
/// and threshold τ, all in `Double`:
///
/// * Causal: the diagonal block is forced. Column 0 is forced too, except in the chunk whose diagonal starts at column 0, where
///   the released code overwrites it. Let F be the mass of the forced blocks and O₀ ≥ O₁ ≥ … the masses of the others. Forced
///   blocks have the first ranks, and rank p is kept iff E_p < τ·T, with E = 0, 0, F, F + O₀, F + O₀ + O₁, … With two forced
///   blocks this is the clean rule: stop as soon as the mass is reached. With one, in the *first chunk*, E is late by one
///   block: the largest other block is always kept, and the mass excludes the block added last. The mask therefore depends on
///   the chunk size.
/// * Not causal: rank p is kept iff the mass of the earlier ranks is below τ·T; nothing is forced.
/// * In both modes, column 0 is kept whenever a block was rejected.
/// * Afterwards, causal grids drop blocks beyond the diagonal. Then `keepSink` keeps all columns of query block 0 (*row* 0, as
///   released, not column 0), and `keepRecent` keeps the diagonal.
///
/// Among equal values the lower column ranks first; the released sorts do not define an order. A row with NaN rejects
/// everything, and so keeps only the forced blocks and column 0.
///
/// `BlockSelection` has the clean selection. `XAttentionPrefill` uses this type in its released mode.
///
/// - Complexity: O(blocks + kept · log blockColumns) per head, on the calling thread.
/// - Source: `find_blocks_chunked` in `xattn/src/utils.py` and the end of `xattn_estimate` in `xattn/src/Xattention.py`,
///   mit-han-lab/x-attention.
public struct XAttentionSelection: Sendable {
    /// The thresholds: one for all heads, or one per head.
    public let thresholds: [Double]
    /// Block rows per chunk: `chunk_size` / block size.
    public let blocksPerChunk: Int
    public let keepSink: Bool
    public let keepRecent: Bool

    /// - Throws: `.invalidArgument` for thresholds outside 0…1 or chunks of no block, `.invalidShape` for no thresholds.
    public init(
        thresholds: [Double], blocksPerChunk: Int, keepSink: Bool = false, keepRecent: Bool = false
    ) throws(SparseKernelsError) {
        try require(!thresholds.isEmpty, .invalidShape, "thresholds", expected: "one threshold or more", actual: "none")
        for (index, threshold) in thresholds.enumerated() {
            try TopP.checkMass(threshold, named: "thresholds[\(index)]")
        }
        try require(
            blocksPerChunk >= 1, .invalidArgument, "blocksPerChunk", expected: "at least 1", actual: "\(blocksPerChunk)")
        self.thresholds = thresholds
        self.blocksPerChunk = blocksPerChunk
        self.keepSink = keepSink
        self.keepRecent = keepRecent
    }

    /// The mask of the padded grid after post-processing.
    ///
    /// It may contain blocks beyond the causal diagonal (`keepSink`), which attention ignores.
    ///
    /// - Parameter scores: sums over the padded grid, whose rows are whole chunks.
    /// - Throws: `.invalidShape` for scores whose heads do not match the thresholds, whose rows are not whole chunks, or which
    ///   have more rows than columns.
    public func callAsFunction(_ scores: BlockScores) throws(SparseKernelsError) -> BlockMask {
        try select(scores, postProcesses: true)
    }

    /// The joined masks of all chunks before post-processing: the result of `find_blocks_chunked`.
    /// - Throws: as `callAsFunction(_:)`.
    public func blocksBeforePostProcessing(_ scores: BlockScores) throws(SparseKernelsError) -> BlockMask {
        try select(scores, postProcesses: false)
    }

    private func select(_ scores: BlockScores, postProcesses: Bool) throws(SparseKernelsError) -> BlockMask {
        let grid = scores.grid
        let columns = grid.blockColumns
        // The position of row 0 on the key axis, in blocks of the padded sequences.
        let offset = columns - grid.blockRows
        try require(
            thresholds.count == 1 || thresholds.count == scores.heads, .invalidShape, "thresholds",
            expected: "1 or one per head of the scores (\(scores.heads))", actual: "\(thresholds.count)")
        try require(
            grid.blockRows % blocksPerChunk == 0 && offset >= 0, .invalidShape, "scores",
            expected: "whole chunks of \(blocksPerChunk) block rows, at most as many as columns (\(columns))",
            actual: "\(grid.blockRows) block rows")
        let heap = UnsafeMutablePointer<UInt64>.allocate(capacity: columns)
        defer { heap.deallocate() }
        var builder = BlockMaskBuilder(grid: grid, heads: scores.heads)
        var values = [Float](repeating: 0, count: columns)
        for head in 0..<scores.heads {
            let threshold = thresholds[thresholds.count == 1 ? 0 : head]
            for row in 0..<grid.blockRows {
                for column in 0..<columns { values[column] = scores[head, row, column] }
                let chunk = offset + row / blocksPerChunk * blocksPerChunk
                var kept =
                    grid.isCausal
                    ? Self.causal(values, threshold, chunkStart: chunk, diagonal: offset + row, heap: DescendingHeap(heap))
                    : Self.full(values, threshold, heap: DescendingHeap(heap))
                if grid.isCausal {
                    let end = postProcesses ? offset + row + 1 : chunk + blocksPerChunk
                    for column in end..<columns { kept[column] = false }
                }
                if postProcesses {
                    if keepSink && row == 0 { kept = Array(repeating: true, count: columns) }
                    if keepRecent { kept[offset + row] = true }
                }
                for column in 0..<columns where kept[column] { builder.keep(column) }
                builder.endRow()
            }
        }
        return builder.mask
    }

    private static func causal(
        _ values: [Float], _ threshold: Double, chunkStart: Int, diagonal: Int, heap: DescendingHeap
    ) -> [Bool] {
        var others = heap
        var kept = [Bool](repeating: false, count: values.count)
        var required = 0.0
        var forcedMass = 0.0
        let forced = chunkStart > 0 ? [0, diagonal] : [diagonal]
        for index in forced { kept[index] = true }
        for (index, value) in values.enumerated() {
            required += Double(value)
            if kept[index] { forcedMass += Double(value) } else if !value.isNaN { others.append(value, index: index) }
        }
        required *= threshold
        others.heapify()
        // E of the current rank. The ranks of forced blocks only decide whether column 0 is added.
        var mass = 0.0
        var taken: [Double] = []
        for rank in 0..<values.count {
            if rank == 2 { mass = forcedMass }
            if rank > 2 { mass += taken[rank - 3] }
            if !(mass < required) {
                kept[0] = true
                break
            }
            if rank < forced.count { continue }
            kept[others.first.index] = true
            taken.append(Double(others.first.value))
            others.removeFirst()
        }
        return kept
    }

    private static func full(_ values: [Float], _ threshold: Double, heap: DescendingHeap) -> [Bool] {
        var blocks = heap
        var kept = [Bool](repeating: false, count: values.count)
        var required = 0.0
        for (index, value) in values.enumerated() {
            required += Double(value)
            if !value.isNaN { blocks.append(value, index: index) }
        }
        required *= threshold
        blocks.heapify()
        var mass = 0.0
        while blocks.count > 0 && mass < required {
            kept[blocks.first.index] = true
            mass += Double(blocks.first.value)
            blocks.removeFirst()
        }
        if blocks.count > 0 || required.isNaN { kept[0] = true }
        return kept
    }
}
