public import SparseKernels

/// The self-similarity of blocks, which is the mean cosine of all pairs of tokens in a block, and the mean token.
///
/// For a block of n rows x_i, with m the mean of the whole sequence, or 0 when none is given:
///
///     y_i = x_i − m        mean = Σ y_i / n        u_i = y_i / ‖y_i‖        similarity = Σ_ij u_i·u_j / n² = ‖Σ u_i‖² / n²
///
/// The right-hand side needs no matrix of n × n cosines. A row of zeros has no direction and counts as u_i = 0.
///
/// - Results are bitwise the same for every number of threads and every instruction set.
/// - Source: SpargeAttn, `spas_sage_attn/utils.py`, `triton_bmm_pool_sim_simmean`. The paper divides the Gram matrix by its
///   largest entry; the released code normalises rows, as here.
public enum SelfSimilarity {
    /// Computes the means and self-similarities of all blocks in one pass.
    ///
    /// `roundsAsReleased` rounds where the released code does: differences to the mean and the block means to the element type,
    /// unit rows to half precision. A last block that is shorter than the others then has similarity NaN, because the released
    /// kernel divides the padding rows 0/0. Rows of zeros also give NaN.
    ///
    /// - Parameters:
    ///   - operand: heads × tokens × channels, in any layout.
    ///   - partition: the blocks; its length is the operand's number of tokens.
    ///   - mean: `[heads, 1, channels]`, subtracted from every row; nil for none. SpargeAttention subtracts that of keys.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - roundsAsReleased: rounds where the released code stores 16 bits.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the argument that disagrees with the operand, `.unsupportedInstructionSet`.
    /// - Complexity: O(heads · tokens · channels). Scratch per thread: 80 bytes per channel.
    public static func summary<Element: AttentionElement>(
        _ operand: TensorView<Element>, blocks partition: BlockPartition, subtracting mean: Tensor<Float>? = nil,
        roundsAsReleased: Bool = false, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockSummary {
        try CentredRows.check(operand.geometry, blocks: partition, mean: mean)
        let (heads, channels) = (operand.heads, operand.channels)
        let instructionSet = try InstructionSet.resolve(instructionSet)
        var means = try Tensor<Float>(zeros: [heads, partition.count, channels])
        var similarities = try Tensor<Float>(zeros: [heads, partition.count])
        if means.count == 0 { return try BlockSummary(partition: partition, means: means, similarities: similarities) }
        // Pointers are used only until this call returns, and the tensors outlive it.
        let source = CentredRows(operand, roundsToElement: roundsAsReleased, instructionSet: instructionSet)
        let offset = mean?.elements ?? []
        var meanSpan = means.mutableSpan
        var similaritySpan = similarities.mutableSpan
        offset.withUnsafeBufferPointer { offset in
            meanSpan.withUnsafeMutableBufferPointer { means in
                similaritySpan.withUnsafeMutableBufferPointer { similarities in
                    let rows = source.subtracting(mean == nil ? nil : offset.baseAddress)
                    Call(
                        rows: rows, partition: partition, roundsAsReleased: roundsAsReleased,
                        means: means.baseAddress!, similarities: similarities.baseAddress!
                    ).run(on: pool)
                }
            }
        }
        return try BlockSummary(partition: partition, means: means, similarities: similarities)
    }

    /// Computes the means and self-similarities of all blocks of a tensor `[heads, tokens, channels]`.
    /// - Throws: as `summary` with a view, and `.invalidShape` for another rank.
    public static func summary<Element: AttentionElement>(
        _ tensor: Tensor<Element>, blocks partition: BlockPartition, subtracting mean: Tensor<Float>? = nil,
        roundsAsReleased: Bool = false, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockSummary {
        try summary(
            tensor.view(), blocks: partition, subtracting: mean, roundsAsReleased: roundsAsReleased,
            instructionSet: instructionSet, on: pool)
    }

    /// The mean token of every head, `[heads, 1, channels]`; zeros for an operand without tokens.
    ///
    /// Subtracting it from keys removes their common part, which softmax cancels, and which would make all keys look similar.
    ///
    /// - Parameters:
    ///   - operand: `[heads, tokens, channels]`.
    ///   - roundsAsReleased: rounds the mean to the element type.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.unsupportedInstructionSet`.
    /// - Complexity: O(heads · tokens · channels).
    public static func tokenMean<Element: AttentionElement>(
        _ operand: TensorView<Element>, roundsAsReleased: Bool = false, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        // One block holds all tokens. Without tokens its mean is 0.
        let whole = try BlockPartition(sizes: [operand.tokens])
        let mean = try BlockPooling.means(operand, blocks: whole, instructionSet: instructionSet, on: pool)
        return roundsAsReleased ? mean.converted(to: Element.self).converted() : mean
    }

    /// The mean token of every head of a tensor `[heads, tokens, channels]`.
    /// - Throws: as `tokenMean` with a view, and `.invalidShape` for another rank.
    public static func tokenMean<Element: AttentionElement>(
        _ tensor: Tensor<Element>, roundsAsReleased: Bool = false, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try tokenMean(
            tensor.view(), roundsAsReleased: roundsAsReleased, instructionSet: instructionSet, on: pool)
    }

    /// One call of `summary`. Each task is a block.
    private struct Call: PoolCall {
        let rows: CentredRows
        let partition: BlockPartition
        let roundsAsReleased: Bool
        let means: UnsafeMutablePointer<Float>
        let similarities: UnsafeMutablePointer<Float>

        private var channels: Int { rows.geometry.channels }

        func run(on pool: WorkerPool) {
            let geometry = rows.geometry
            pool.run(
                self, tasks: geometry.heads * partition.count,
                work: 4 * geometry.heads * geometry.tokens * geometry.channels,
                scratchByteCount: 2 * 8 * channels + rows.scratchByteCount)
        }

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let tokens = partition[task % partition.count]
            let sums = scratch.assumingMemoryBound(to: Double.self)
            let unitSums = sums + channels
            for channel in 0..<2 * channels { sums[channel] = 0 }
            rows.forEachStage(of: tokens, head: task / partition.count, scratch: scratch + 2 * 8 * channels) { _, count, rows in
                for row in 0..<count { add(rows + row * channels, sums: sums, unitSums: unitSums) }
            }
            let mean = means + task * channels
            let size = Double(tokens.count)
            var square = 0.0
            for channel in 0..<channels {
                mean[channel] = rows.rounded(Float(tokens.isEmpty ? 0 : sums[channel] / size))
                square += unitSums[channel] * unitSums[channel]
            }
            let isPadded = roundsAsReleased && tokens.count < partition.blockSize ?? 0
            similarities[task] = isPadded ? .nan : Float(square / (size * size))
        }

        /// Adds a row and its direction to the sums.
        private func add(
            _ row: UnsafePointer<Float>, sums: UnsafeMutablePointer<Double>, unitSums: UnsafeMutablePointer<Double>
        ) {
            let square = addSquaring(row, to: sums)
            if roundsAsReleased {
                let norm = Float(square.squareRoot())
                for channel in 0..<channels { unitSums[channel] += Double(roundedToHalf(row[channel] / norm)) }
            } else if square != 0 {
                let scale = 1 / square.squareRoot()
                for channel in 0..<channels { unitSums[channel] += Double(row[channel]) * scale }
            }
        }

        /// Adds a row to sums and returns the sum of its squares, in four chains, as one would wait for each addition.
        private func addSquaring(_ row: UnsafePointer<Float>, to sums: UnsafeMutablePointer<Double>) -> Double {
            let whole = channels & ~3
            var squares = SIMD4<Double>.zero
            for channel in stride(from: 0, to: whole, by: 4) {
                let value = SIMD4<Double>(UnsafeRawPointer(row + channel).loadUnaligned(as: SIMD4<Float>.self))
                let sum = UnsafeMutableRawPointer(sums + channel)
                sum.storeBytes(of: sum.loadUnaligned(as: SIMD4<Double>.self) + value, as: SIMD4<Double>.self)
                squares += value * value
            }
            var square = squares.sum()
            for channel in whole..<channels {
                let value = Double(row[channel])
                sums[channel] += value
                square += value * value
            }
            return square
        }
    }
}
