/// Rows quantised to signed bytes with one scale per block of tokens: x ≈ scale · code.
///
/// For a block, with m the mean of the whole sequence, or 0 when none is given, and y = x − m:
///
/// | Rule | Scale | Code |
/// |---|---|---|
/// | `.halvesAwayFromZero` | max\|y\| / 127 + 10⁻⁷ | trunc(y/scale ± ½), the sign being that of y |
/// | `.halvesToEven` | max(max\|y\|, 10⁻⁷) / 127 | y · 127 / max(max\|y\|, 10⁻⁷), rounded to nearest, halves to even |
///
/// 10⁻⁷ prevents a division by zero in blocks of zeros, and every code is within ±127. An element gets code 0 where the quotient
/// is NaN: for elements that are not finite, or whose block has an infinite maximum.
///
/// - Results are bitwise the same for every number of threads and every instruction set.
/// - Source: SpargeAttn, `spas_sage_attn/utils.py`, `qk_quantize`, after SageAttention's Triton kernels; SageAttention's CUDA
///   kernels, which PAROAttention uses.
public struct Int8BlockQuantization: Sendable, Equatable {
    public let partition: BlockPartition
    /// The codes, `[heads, tokens, channels]`.
    public let codes: Tensor<Int8>
    /// The scales, `[heads, blocks]`.
    public let scales: Tensor<Float>

    /// The released rounding rules.
    public enum Rule: Hashable, Sendable, CaseIterable {
        /// The rule of the Triton kernels.
        case halvesAwayFromZero
        /// The rule of the CUDA kernels. Quotients are computed in `Double`, so that only exact halves are ties.
        case halvesToEven
    }

    /// The constant that the first rule adds to a scale, and below which the second takes no maximum.
    public static let scaleOffset: Float = 1e-7

    /// Quantises all rows of an operand.
    ///
    /// - Parameters:
    ///   - operand: heads × tokens × channels, in any layout.
    ///   - partition: the blocks; its length is the operand's number of tokens.
    ///   - rule: how scales are made and quotients rounded.
    ///   - mean: `[heads, 1, channels]`, subtracted from every row; nil subtracts nothing.
    ///   - roundsAsReleased: rounds differences to the mean to the element type, as the released code does.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the argument that disagrees with the operand, `.unsupportedInstructionSet`.
    /// - Complexity: O(heads · tokens · channels). Scratch per thread: 64 bytes per channel.
    public init<Element: AttentionElement>(
        _ operand: TensorView<Element>, blocks partition: BlockPartition, rule: Rule = .halvesAwayFromZero,
        subtracting mean: Tensor<Float>? = nil,
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
                    Call(
                        rows: rows, partition: partition, rule: rule, codes: codes.baseAddress!, scales: scales.baseAddress!
                    ).run(on: pool)
                }
            }
        }
        self.partition = partition
        self.codes = codes
        self.scales = scales
    }

    /// Codes and scales that were made elsewhere.
    /// - Throws: `.invalidShape` unless codes are `[heads, tokens, channels]` with the tokens of the partition, and scales
    ///   `[heads, blocks]`.
    public init(
        partition: BlockPartition, codes: Tensor<Int8>, scales: Tensor<Float>
    ) throws(SparseKernelsError) {
        try require(
            codes.shape.count == 3 && codes.shape[1] == partition.length, .invalidShape, "codes",
            expected: "[heads, \(partition.length), channels]", actual: "\(codes.shape)")
        try require(
            scales.shape == [codes.shape[0], partition.count], .invalidShape, "scales",
            expected: "[\(codes.shape[0]), \(partition.count)]", actual: "\(scales.shape)")
        self.partition = partition
        self.codes = codes
        self.scales = scales
    }

    /// One call of the quantiser. Each task is a block.
    private struct Call: PoolCall {
        let rows: CentredRows
        let partition: BlockPartition
        let rule: Rule
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
            let largest = max(maximum, scaleOffset)
            let scale = rule == .halvesAwayFromZero ? maximum / 127 + scaleOffset : largest / 127
            scales[task] = scale
            rows.forEachStage(of: tokens, head: head, scratch: scratch) { token, count, rows in
                let target = codes + (head * geometry.tokens + token) * geometry.channels
                switch rule {
                case .halvesAwayFromZero:
                    for index in 0..<count * geometry.channels {
                        let quotient = rows[index] / scale
                        target[index] = quotient.isNaN ? 0 : Int8(quotient + (quotient >= 0 ? 0.5 : -0.5))
                    }
                case .halvesToEven:
                    // 127·y is exact in Double, so a quotient that is exactly a half is seen as one.
                    for index in 0..<count * geometry.channels {
                        let quotient = Double(rows[index]) * 127 / Double(largest)
                        target[index] = quotient.isNaN ? 0 : Int8(quotient.rounded(.toNearestOrEven))
                    }
                }
            }
        }
    }
}

extension Int8BlockQuantization {
    /// Quantises all rows of a tensor `[heads, tokens, channels]`.
    /// - Throws: as the initialiser with a view.
    public init<Element: AttentionElement>(
        _ tensor: Tensor<Element>, blocks partition: BlockPartition, rule: Rule = .halvesAwayFromZero,
        subtracting mean: Tensor<Float>? = nil,
        roundsAsReleased: Bool = false, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(
            tensor.view(), blocks: partition, rule: rule, subtracting: mean, roundsAsReleased: roundsAsReleased,
            instructionSet: instructionSet, on: pool)
    }

    /// scale · code of every element, `[heads, tokens, channels]`, to see what the codes cost in accuracy.
    ///
    /// The mean that was subtracted is not added again.
    public func dequantized() -> Tensor<Float> {
        let (tokens, channels) = (codes.shape[1], codes.shape[2])
        // The codes have this shape, so that a tensor of it exists; four times its bytes may not overflow.
        return try! Tensor<Float>(codes.shape) { index in
            let row = index / channels
            let block = row / tokens * partition.count + partition.block(of: row % tokens)
            return scales[flat: block] * Float(codes[flat: index])
        }
    }
}
