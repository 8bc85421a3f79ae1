internal import KernelInterface

/// Pools blocks of tokens to one row each, which estimators score instead of the tokens.
///
/// - Results are bitwise equal for every number of threads and every instruction set.
/// - Non-finite elements affect the mean of their own block and channel only.
public enum BlockPooling {
    /// Rows summed in `Float`. These sums are added in `Double`, so a mean over any number of tokens is rounded like one of 16.
    private static let rowsPerSum = 16
    /// Blocks per task, because a single block is only a few microseconds of work.
    private static let blocksPerTask = 16

    /// The mean of every block of tokens, `[heads, blocks, channels]`.
    ///
    /// Each mean is over the tokens that the block has; a shorter last block is not padded. An empty block gives zeros.
    ///
    /// - Parameters:
    ///   - operand: heads × tokens × channels, in any layout.
    ///   - partition: the blocks; its length is the operand's number of tokens.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` when the partition's length is not the operand's, `.unsupportedInstructionSet`.
    /// - Complexity: O(heads · tokens · channels).
    /// - Scratch: 16 bytes per channel for each thread.
    public static func means<Element: AttentionElement>(
        _ operand: TensorView<Element>, blocks partition: BlockPartition, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try require(
            partition.length == operand.tokens, .invalidShape, "blocks.length",
            expected: "\(operand.tokens), the tokens of the operand",
            actual: "\(partition.length)")
        let kernels = try InstructionSet.resolve(instructionSet).kernels
        var means = try Tensor<Float>(zeros: [operand.heads, partition.count, operand.channels])
        if means.count == 0 { return means }
        // Pointers are used only until this call returns; `operand` and `means` outlive it.
        let source = AttentionOperand(operand)
        var span = means.mutableSpan
        span.withUnsafeMutableBufferPointer { means in
            Call(operand: source, partition: partition, means: means.baseAddress!, kernels: kernels).run(on: pool)
        }
        return means
    }

    /// The mean of every block of tokens of a tensor `[heads, tokens, channels]`.
    /// - Throws: the errors of the call with a view.
    public static func means<Element: AttentionElement>(
        _ tensor: Tensor<Element>, blocks partition: BlockPartition, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try means(tensor.view(), blocks: partition, instructionSet: instructionSet, on: pool)
    }

    private struct Call: PoolCall {
        let operand: AttentionOperand
        let partition: BlockPartition
        let means: UnsafeMutablePointer<Float>
        let kernels: any KernelTable.Type

        private var groups: Int { (partition.count + blocksPerTask - 1) / blocksPerTask }

        func run(on pool: WorkerPool) {
            let geometry = operand.geometry
            pool.run(
                self, tasks: geometry.heads * groups,
                work: geometry.heads * geometry.tokens * geometry.channels * operand.type.byteCount,
                scratchByteCount: geometry.channels * 16)
        }

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let channels = operand.geometry.channels
            let totals = scratch.assumingMemoryBound(to: Double.self)
            let sums = (scratch + channels * 8).assumingMemoryBound(to: Float.self)
            let (head, first) = (task / groups, task % groups * blocksPerTask)
            var rows = operand.rows(head: head)
            for block in first..<min(partition.count, first + blocksPerTask) {
                let tokens = partition[block]
                if tokens.isEmpty { continue }
                for channel in 0..<channels { totals[channel] = 0 }
                for token in stride(from: tokens.lowerBound, to: tokens.upperBound, by: rowsPerSum) {
                    let end = min(tokens.upperBound, token + rowsPerSum)
                    kernels.sumRows(
                        &rows, from: token, to: end, channels: channels, staging: sums + channels, into: sums)
                    for channel in 0..<channels { totals[channel] += Double(sums[channel]) }
                }
                let mean = means + (head * partition.count + block) * channels
                for channel in 0..<channels { mean[channel] = Float(totals[channel] / Double(tokens.count)) }
            }
        }
    }
}
