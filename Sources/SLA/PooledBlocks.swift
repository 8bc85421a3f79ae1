internal import SparseKernels

/// Means of blocks of tokens, from which SLA ranks the blocks.
enum PooledBlocks {
    /// The means of the blocks of an operand, `[heads, blocks, channels]`, less the mean token when `isCentred`.
    ///
    /// The mean token adds the same to all scores of a row, so the ranking does not depend on it. It is subtracted so that
    /// rounding hits what differs between blocks, and because the released code does so.
    ///
    /// - Parameter roundsAsReleased: rounds the mean token, the differences to it, and the means of blocks to the element type.
    static func means<Element: AttentionElement>(
        _ operand: TensorView<Element>, blocks partition: BlockPartition, isCentred: Bool, roundsAsReleased: Bool,
        instructionSet: InstructionSet, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        if !isCentred {
            let means = try BlockPooling.means(operand, blocks: partition, instructionSet: instructionSet, on: pool)
            return roundsAsReleased ? means.converted(to: Element.self).converted() : means
        }
        let whole = try BlockPartition(sizes: [operand.tokens])
        var mean = try BlockPooling.means(operand, blocks: whole, instructionSet: instructionSet, on: pool)
        if roundsAsReleased { mean = mean.converted(to: Element.self).converted() }
        var means = try Tensor<Float>(zeros: [operand.heads, partition.count, operand.channels])
        if means.count == 0 { return means }
        // Pointers are used only until this call returns, and the tensors outlive it.
        let rows = CentredRows(operand, roundsToElement: roundsAsReleased, instructionSet: instructionSet)
        let centre = mean.span
        var target = means.mutableSpan
        centre.withUnsafeBufferPointer { centre in
            target.withUnsafeMutableBufferPointer { target in
                Call(rows: rows.subtracting(centre.baseAddress!), partition: partition, means: target.baseAddress!).run(
                    on: pool)
            }
        }
        return means
    }

    /// One call. Each task is a block, summed in `Double`.
    private struct Call: PoolCall {
        let rows: CentredRows
        let partition: BlockPartition
        let means: UnsafeMutablePointer<Float>

        private var channels: Int { rows.geometry.channels }

        func run(on pool: WorkerPool) {
            let geometry = rows.geometry
            pool.run(
                self, tasks: geometry.heads * partition.count, work: 2 * geometry.heads * geometry.tokens * geometry.channels,
                scratchByteCount: (8 * channels + 63) / 64 * 64 + rows.scratchByteCount)
        }

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let tokens = partition[task % partition.count]
            if tokens.isEmpty { return }
            let sums = scratch.assumingMemoryBound(to: Double.self)
            for channel in 0..<channels { sums[channel] = 0 }
            let stage = scratch + (8 * channels + 63) / 64 * 64
            rows.forEachStage(of: tokens, head: task / partition.count, scratch: stage) { _, count, rows in
                for row in 0..<count {
                    for channel in 0..<channels { sums[channel] += Double(rows[row * channels + channel]) }
                }
            }
            let mean = means + task * channels
            for channel in 0..<channels { mean[channel] = rows.rounded(Float(sums[channel] / Double(tokens.count))) }
        }
    }
}
