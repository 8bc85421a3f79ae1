internal import KernelInterface

/// Layer normalisation of rows: y = (x − μ) / √(mean (x − μ)² + ε) · weight + bias, with μ the mean of the row.
///
/// ```swift
/// let norm = try LayerNorm(channels: 768, weight: weight, bias: bias)
/// let y = try norm(x)
/// ```
///
/// Rows are of any element type and length; arithmetic is in `Float`, and the result is rounded once.
///
/// - Exactness: the deviations are taken from a rounded mean, whose own error is found as the mean of the deviations and taken from
///   them. So a row far away from 0 is as accurate as one about 0. Sums are those of ``RMSNorm``.
/// - Non-finite input makes its own row NaN and affects no other.
/// - Results are bitwise equal for every number of threads, and those of a row do not depend on the other rows.
/// - Complexity: one pass over memory, O(rows · channels).
/// - Scratch: none.
/// - Source: Ba, Kiros and Hinton, 2016 (arXiv 1607.06450); `torch.nn.LayerNorm`, whose variance is the biased one, too.
public struct LayerNorm: Sendable {
    let rows: RowNormalization

    /// - Parameters:
    ///   - channels: elements of a row, at least 1.
    ///   - weight: `[channels]`; nil means 1.
    ///   - bias: `[channels]`; nil means 0.
    ///   - epsilon: ε, added to the variance.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for no channels or a tensor of another shape, `.invalidArgument` for a weight or bias that is not
    ///   finite or an ε that is negative or not finite, `.unsupportedInstructionSet`.
    public init(
        channels: Int, weight: Tensor<Float>? = nil, bias: Tensor<Float>? = nil, epsilon: Float = 1e-5,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        rows = try RowNormalization(
            channels: channels, weight: weight, bias: bias, epsilon: epsilon, subtractsMean: true,
            instructionSet: instructionSet)
    }

    /// Elements of a row.
    public var channels: Int { rows.channels }
    public var epsilon: Float { rows.epsilon }
    /// The instruction set that calls execute.
    public var instructionSet: InstructionSet { rows.instructionSet }

    /// Normalises the rows of x.
    ///
    /// - Parameters:
    ///   - x: rows × channels.
    ///   - y: rows × channels, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try rows.run(x, into: y, on: pool)
    }

    /// Adds x to the residual stream and normalises the sums, in one pass: residual += x, then y = norm(residual).
    ///
    /// - Parameters:
    ///   - x: rows × channels.
    ///   - residual: rows × channels.
    ///   - y: rows × channels, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        adding x: MatrixView<X>, to residual: consuming MutableMatrixView<Float>, into y: consuming MutableMatrixView<Y>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try rows.run(adding: x, to: residual, into: y, on: pool)
    }

    /// Normalises every row (head, token) of a view in place.
    ///
    /// - Parameters:
    ///   - x: heads × tokens × channels, in any layout.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for other channels; nothing is written then.
    public func normalize<Element: AttentionElement>(
        _ x: consuming MutableTensorView<Element>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try rows.normalize(x, on: pool)
    }
}
