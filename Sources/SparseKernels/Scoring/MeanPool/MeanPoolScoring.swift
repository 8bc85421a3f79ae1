internal import KernelInterface

#if canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#elseif canImport(Darwin)
    internal import Darwin
#endif

/// Scores blocks from their pooled queries and keys: scale · mean(Q_row) · mean(K_column).
///
/// This is the cheapest estimate: it sees which blocks point in similar directions, but no differences inside them.
///
/// - Non-finite input propagates, as in IEEE arithmetic, into the scores of its own block row or column.
/// - Results are bitwise equal for every number of threads.
/// - Source: block-sparse heads of MInference (`_build_block_index` in microsoft/MInference), with raw products and no softmax.
/// - Complexity: pooling, and `queryHeads · blockRows · blockColumns · headDim` multiply-adds.
/// - Scratch: `scratchByteCount` per thread.
public struct MeanPoolScoring: Sendable {
    /// The treatment of blocks that are shorter than the others.
    public enum Padding: Hashable, Sendable {
        /// Takes means over the tokens that a block has.
        case none
        /// Takes means over `blockSize` tokens and counts missing ones as zeros, as MInference does. MInference also pads
        /// lengths that are multiples of the block size with a whole block; no causal score depends on that block.
        case zeros
    }

    public let shape: AttentionShape
    public let grid: BlockGrid
    /// The factor on the products.
    public let scale: Float
    /// Whether scores are the softmax over the reachable blocks of a row: masses that add up to 1.
    public let normalizes: Bool
    public let padding: Padding
    /// The instruction set that runs.
    public let instructionSet: InstructionSet

    private let kernels: any KernelTable.Type

    /// Block rows per task.
    private static let taskRows = 96

    /// - Parameters:
    ///   - grid: a grid over the shape's tokens. Padding with zeros needs equal blocks.
    ///   - scale: 1 gives raw products; 1/√headDim is the scale of attention scores.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - normalizes: whether scores become probabilities along each row.
    ///   - padding: the treatment of shorter blocks.
    ///   - shape: the sizes of the operands.
    /// - Throws: `.invalidShape` when grid and shape disagree, `.invalidArgument` for a scale that is not finite or for padding
    ///   of blocks of varying sizes, `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, grid: BlockGrid, scale: Float = 1, normalizes: Bool = false, padding: Padding = .none,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            grid.query.length == shape.queryLength && grid.key.length == shape.keyLength, .invalidShape, "grid",
            expected: "over \(shape.queryLength) × \(shape.keyLength) tokens",
            actual: "\(grid.query.length) × \(grid.key.length)")
        try require(scale.isFinite, .invalidArgument, "scale", expected: "finite", actual: "\(scale)")
        try require(
            padding == .none || (grid.query.blockSize != nil && grid.key.blockSize != nil), .invalidArgument, "padding",
            expected: ".none where blocks vary in size", actual: ".\(padding)")
        self.shape = shape
        self.grid = grid
        self.scale = scale
        self.normalizes = normalizes
        self.padding = padding
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { GEMMScratch.byteCount }

    /// Scores operands in any layout: `[queryHeads, blockRows, blockColumns]`.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockScores {
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        if grid.blockRows == 0 || grid.blockColumns == 0 { return try BlockScores(grid: grid, heads: shape.queryHeads) }
        var queries = try BlockPooling.means(query, blocks: grid.query, instructionSet: instructionSet, on: pool)
        var keys = try BlockPooling.means(key, blocks: grid.key, instructionSet: instructionSet, on: pool)
        if padding == .zeros {
            Self.padLastBlock(&queries, grid.query)
            Self.padLastBlock(&keys, grid.key)
        }
        var scores = try BlockScores(grid: grid, heads: shape.queryHeads)
        let (rows, columns) = (queries.span, keys.span)
        var values = scores.values.mutableSpan
        // Pointers are used only until this call returns; the tensors outlive it.
        rows.withUnsafeBufferPointer { rows in
            columns.withUnsafeBufferPointer { columns in
                values.withUnsafeMutableBufferPointer { values in
                    Call(plan: self, rows: rows.baseAddress!, columns: columns.baseAddress!, scores: values.baseAddress!)
                        .run(on: pool)
                }
            }
        }
        return scores
    }

    /// Scores tensors `[heads, tokens, headDim]`.
    /// - Throws: the errors of the call with views.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockScores {
        try self(query: query.view(named: "query"), key: key.view(named: "key"), on: pool)
    }

    /// Turns the mean over the tokens of the last block into the mean over `blockSize` tokens.
    private static func padLastBlock(_ means: inout Tensor<Float>, _ partition: BlockPartition) {
        guard let blockSize = partition.blockSize else { return }
        let (heads, blocks, channels) = (means.shape[0], means.shape[1], means.shape[2])
        let factor = Float(partition[blocks - 1].count) / Float(blockSize)
        var span = means.mutableSpan
        for head in 0..<heads {
            for index in ((head + 1) * blocks - 1) * channels..<(head + 1) * blocks * channels { span[index] *= factor }
        }
    }

    /// One run. A task is some block rows of a head.
    private struct Call: PoolCall {
        let plan: MeanPoolScoring
        let rows: UnsafePointer<Float>
        let columns: UnsafePointer<Float>
        let scores: UnsafeMutablePointer<Float>

        private var tasksPerHead: Int { (plan.grid.blockRows + taskRows - 1) / taskRows }

        func run(on pool: WorkerPool) {
            let (shape, grid) = (plan.shape, plan.grid)
            pool.run(
                self, tasks: shape.queryHeads * tasksPerHead,
                work: shape.queryHeads * grid.blockRows * grid.blockColumns * shape.headDim,
                scratchByteCount: plan.scratchByteCount)
        }

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let (grid, depth) = (plan.grid, plan.shape.headDim)
            // Later rows see more keys, so they go first.
            let (head, index) = (task / tasksPerHead, tasksPerHead - 1 - task % tasksPerHead)
            let first = index * taskRows
            let count = min(taskRows, grid.blockRows - first)
            let kvHead = head / plan.shape.queryHeadsPerKVHead
            let reachable = (first..<first + count).reduce(0) { max($0, grid.reachableColumns(ofRow: $1).upperBound) }
            let target = scores + (head * grid.blockRows + first) * grid.blockColumns
            for column in stride(from: 0, to: reachable, by: GEMMScratch.columnBlock) {
                var arguments = GEMMArguments(
                    a: rows + (head * grid.blockRows + first) * depth, aStride: depth,
                    b: columns + (kvHead * grid.blockColumns + column) * depth, bStride: depth, bIsTransposed: true,
                    c: target + column, cStride: grid.blockColumns, rows: count,
                    columns: min(GEMMScratch.columnBlock, reachable - column), depth: depth, scratch: scratch)
                plan.kernels.multiplyBlock(&arguments)
            }
            for row in 0..<count {
                let line = target + row * grid.blockColumns
                let end = grid.reachableColumns(ofRow: first + row).upperBound
                for column in 0..<end { line[column] *= plan.scale }
                for column in end..<max(end, reachable) { line[column] = 0 }
                if plan.normalizes { normalize(line, count: end) }
            }
        }

        /// The softmax of a row, in `Double`, because rows of blocks are short.
        private func normalize(_ line: UnsafeMutablePointer<Float>, count: Int) {
            var maximum = -Float.infinity
            for column in 0..<count where line[column] > maximum { maximum = line[column] }
            var total = 0.0
            for column in 0..<count { total += exp(Double(line[column]) - Double(maximum)) }
            for column in 0..<count {
                line[column] = Float(exp(Double(line[column]) - Double(maximum)) / total)
            }
        }
    }
}
