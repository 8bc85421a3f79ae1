internal import KernelInterface

/// Root-mean-square normalisation of rows: y = x / √(mean x² + ε) · weight.
///
/// ```swift
/// let norm = try RMSNorm(weight: weight, epsilon: 1e-6)
/// try norm.run(adding: update, to: &hidden, into: &input)
/// ```
///
/// Rows are of any element type and length; arithmetic is in `Float`, and the result is rounded once.
///
/// - Exactness: squares are summed in chains of at most 16 vectors, whose sums are added, so the sum of n squares on vectors of L lanes
///   has a relative error of at most (19 + ⌈n / 64L⌉ + log₂ L) · 2⁻²⁴: 6·10⁻⁶ at 16384 channels on the portable level. Half of that,
///   and five more roundings, are the error of y.
/// - Non-finite input affects its own row only. A row whose squares overflow `Float` becomes 0, and NaN where x is infinite. A row
///   of zeros becomes 0, or NaN if ε is 0.
/// - Results are bitwise equal for every number of threads, and those of a row do not depend on the other rows.
/// - Complexity: one pass over memory, O(rows · channels).
/// - Scratch: none.
/// - Source: Zhang and Sennrich, 2019 (arXiv 1910.07467); `LlamaRMSNorm` of Hugging Face transformers, which rounds to the input's
///   type before it multiplies by the weight, and `Gemma3RMSNorm`, which multiplies by 1 + weight.
public struct RMSNorm: Sendable {
    let rows: RowNormalization

    /// - Parameters:
    ///   - weight: `[channels]`, at least one.
    ///   - epsilon: ε, added to the mean of the squares.
    ///   - addsOne: multiplies by 1 + weight, as Gemma does.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for a weight of another rank or without channels, `.invalidArgument` for a weight that is not finite
    ///   or an ε that is negative or not finite, `.unsupportedInstructionSet`.
    public init(
        weight: Tensor<Float>, epsilon: Float, addsOne: Bool = false, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            weight.shape.count == 1 && weight.count >= 1, .invalidShape, "weight", expected: "[channels], at least 1",
            actual: "\(weight.shape)")
        var factors = weight
        if addsOne { factors = try Tensor(weight.shape) { 1 + weight[flat: $0] } }
        rows = try RowNormalization(
            channels: weight.count, weight: factors, bias: nil, epsilon: epsilon, subtractsMean: false,
            instructionSet: instructionSet)
    }

    /// Normalisation without a weight.
    /// - Throws: `.invalidShape` for no channels, and the errors of the initialiser with a weight.
    public init(channels: Int, epsilon: Float, instructionSet: InstructionSet? = nil) throws(SparseKernelsError) {
        rows = try RowNormalization(
            channels: channels, weight: nil, bias: nil, epsilon: epsilon, subtractsMean: false, instructionSet: instructionSet)
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

    /// Normalises every row (head, token) of a view in place, as QK norm does with a weight of `headDim` channels.
    ///
    /// - Parameters:
    ///   - x: heads × tokens × channels, in any layout; of a matrix of queries, keys and values side by side, a view of the heads.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for other channels; nothing is written then.
    public func normalize<Element: AttentionElement>(
        _ x: consuming MutableTensorView<Element>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try rows.normalize(x, on: pool)
    }
}
