/// A tensor in 8-bit floats with one scale: x ≈ codes / scale.
///
/// ```swift
/// let weight = try Float8Tensor<E4M3>(w)                 // current scaling: 448 / max |w|
/// let layer = try FloatLinear(weight: weight)
/// ```
public struct Float8Tensor<Code: Float8>: Sendable {
    public let codes: Tensor<Code>
    /// What numbers were multiplied by before they were cast. Files often have its reciprocal.
    public let scale: Float

    /// Codes and their scale, for instance from a file.
    /// - Throws: `.invalidArgument` for a scale that is not above 0 and finite.
    public init(codes: Tensor<Code>, scale: Float) throws(SparseKernelsError) {
        try requireFloat8Scale(scale)
        self.codes = codes
        self.scale = scale
    }

    /// Quantises a tensor with the scale that its largest magnitude gives.
    ///
    /// - Parameters:
    ///   - tensor: of any shape.
    ///   - scaling: how the scale follows from the largest magnitude.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads to use.
    /// - Throws: `.unsupportedInstructionSet`.
    public init<X: AttentionElement>(
        _ tensor: Tensor<X>, scaling: Float8Scaling = .current, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let columns = tensor.shape.last ?? 1
        let rows = columns == 0 ? 0 : tensor.count / columns
        var codes = try Tensor<Code>(zeros: tensor.shape)
        let conversion = try Float8Conversion(scaling, instructionSet: instructionSet)
        scale = try conversion.quantize(
            MatrixView(tensor.span, rows: rows, columns: columns),
            into: MutableMatrixView(codes.mutableSpan, rows: rows, columns: columns), on: pool)
        self.codes = codes
    }

    /// The numbers that the codes stand for, codes / scale.
    /// - Throws: `.unsupportedInstructionSet`.
    public func dequantized(
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let columns = codes.shape.last ?? 1
        let rows = columns == 0 ? 0 : codes.count / columns
        var y = try Tensor<Float>(zeros: codes.shape)
        try Float8Conversion(instructionSet: instructionSet).dequantize(
            MatrixView(codes.span, rows: rows, columns: columns), scale: scale,
            into: MutableMatrixView(y.mutableSpan, rows: rows, columns: columns), on: pool)
        return y
    }
}
