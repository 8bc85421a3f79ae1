public import SparseKernels

/// Rows quantised to signed bytes with one scale per block of tokens: x ≈ scale · code.
///
/// For a block, with m the mean of the whole sequence, or 0 when none is given:
///
///     y = x − m        scale = max|y| / 127 + 10⁻⁷        code = trunc(y/scale ± ½), the sign being that of y
///
/// Rounding is half away from zero. The added 10⁻⁷ prevents a division by zero in blocks of zeros, and keeps every code within
/// ±127. An element gets code 0 where y/scale is NaN: for elements that are not finite, or whose block has an infinite maximum.
///
/// - Results are bitwise the same for every number of threads and every instruction set.
/// - Source: SpargeAttn, `spas_sage_attn/utils.py`, `qk_quantize`, after SageAttention.
public struct Int8BlockQuantization: Sendable, Equatable {
    public let partition: BlockPartition
    /// The codes, `[heads, tokens, channels]`.
    public let codes: Tensor<Int8>
    /// The scales, `[heads, blocks]`.
    public let scales: Tensor<Float>

    /// The constant that the released code adds to a scale.
    public static let scaleOffset: Float = 1e-7

    /// Quantises all rows of an operand.
    ///
    /// - Parameters:
    ///   - operand: heads × tokens × channels, in any layout.
    ///   - partition: the blocks; its length is the operand's number of tokens.
    ///   - mean: `[heads, 1, channels]`, subtracted from every row; nil subtracts nothing.
    ///   - roundsAsReleased: rounds differences to the mean to the element type, as the released code does.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the argument that disagrees with the operand, `.unsupportedInstructionSet`.
    /// - Complexity: O(heads · tokens · channels). Scratch per thread: 64 bytes per channel.
    public init<Element: AttentionElement>(
        _ operand: TensorView<Element>, blocks partition: BlockPartition, subtracting mean: Tensor<Float>? = nil,
        roundsAsReleased: Bool = false, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try CentredRows.check(operand.geometry, blocks: partition, mean: mean)
        let instructionSet = try InstructionSet.resolve(instructionSet)
        var codes = try Tensor<Int8>(zeros: [operand.heads, operand.tokens, operand.channels])
        var scales = try Tensor<Float>(zeros: [operand.heads, partition.count])
        // Pointers are used only until this call returns, and the tensors outlive it.
        let source = CentredRows(operand, roundsToElement: roundsAsReleased, instructionSet: instructionSet)
        let offset = mean?.elements ?? []
        var codeSpan = codes.mutableSpan
        var scaleSpan = scales.mutableSpan
        offset.withUnsafeBufferPointer { offset in
            codeSpan.withUnsafeMutableBufferPointer { codes in
                scaleSpan.withUnsafeMutableBufferPointer { scales in
                    let rows = source.subtracting(mean == nil ? nil : offset.baseAddress)
                    Call(rows: rows, partition: partition, codes: codes.baseAddress!, scales: scales.baseAddress!)
                        .run(on: pool)
                }
            }
        }
        self.partition = partition
        self.codes = codes
        self.scales = scales
    }

    /// One call of the quantiser. Each task is a block.
    private struct Call: PoolCall {
        let rows: CentredRows
        let partition: BlockPartition
        let codes: UnsafeMutablePointer<Int8>
        let scales: UnsafeMutablePointer<Float>

        func run(on pool: WorkerPool) {
            let geometry = rows.geometry
            pool.run(
                self, tasks: geometry.heads * partition.count,
                work: 4 * geometry.heads * geometry.tokens * geometry.channels, scratchByteCount: rows.scratchByteCount)
        }

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let geometry = rows.geometry
            let head = task / partition.count
            let tokens = partition[task % partition.count]
            var maximum: Float = 0
            rows.forEachStage(of: tokens, head: head, scratch: scratch) { _, count, rows in
                for index in 0..<count * geometry.channels { maximum = max(maximum, abs(rows[index])) }
            }
            let scale = maximum / 127 + scaleOffset
            scales[task] = scale
            rows.forEachStage(of: tokens, head: head, scratch: scratch) { token, count, rows in
                let target = codes + (head * geometry.tokens + token) * geometry.channels
                for index in 0..<count * geometry.channels {
                    let quotient = rows[index] / scale
                    target[index] = quotient.isNaN ? 0 : Int8(quotient + (quotient >= 0 ? 0.5 : -0.5))
                }
            }
        }
    }
}

extension Int8BlockQuantization {
    /// Quantises all rows of a tensor `[heads, tokens, channels]`.
    /// - Throws: as the initialiser with a view.
    public init<Element: AttentionElement>(
        _ tensor: Tensor<Element>, blocks partition: BlockPartition, subtracting mean: Tensor<Float>? = nil,
        roundsAsReleased: Bool = false, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(
            tensor.view(), blocks: partition, subtracting: mean, roundsAsReleased: roundsAsReleased,
            instructionSet: instructionSet, on: pool)
    }
}
