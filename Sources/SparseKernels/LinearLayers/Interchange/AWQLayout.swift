/// The tensors of a linear layer in an AWQ checkpoint ("GEMM" version): codes 0…15 with zero points, eight per word along the
/// output channels, in the order 0, 2, 4, 6, 1, 3, 5, 7.
///
/// Element (k, n) is nibble [0, 4, 1, 5, 2, 6, 3, 7][n mod 8] of `qweight[k, n / 8]`, and its value
/// scales[k / groupSize, n] · (code − zero point). Docs/Layouts/UInt4.md works an example.
///
/// - Source: AutoAWQ, `awq/modules/linear/gemm.py`, `WQLinear_GEMM`.
public struct AWQLayout: Sendable {
    /// Input features that share a scale, 16, 32, 64 or a multiple of 128; nil means all of them (`q_group_size` −1).
    public let groupSize: Int?
    /// `[inFeatures, outFeatures / 8]`.
    public let qweight: Tensor<Int32>
    /// `[groups, outFeatures / 8]`, in the order of `qweight`.
    public let qzeros: Tensor<Int32>
    /// `[groups, outFeatures]`; F16 in files.
    public let scales: Tensor<Float>

    public var inFeatures: Int { qweight.shape[0] }
    public var outFeatures: Int { 8 * qweight.shape[1] }

    /// Makes the layout from the tensors of a file.
    /// - Throws: `.invalidShape` naming the tensor that disagrees with `qweight` and the group size, `.invalidArgument` for a
    ///   group size that is not 16, 32, 64 or a multiple of 128.
    public init(
        qweight: Tensor<Int32>, qzeros: Tensor<Int32>, scales: Tensor<Float>, groupSize: Int?
    ) throws(SparseKernelsError) {
        try requireMatrix("qweight", qweight.shape, "[inFeatures, outFeatures / 8]")
        let stored = try StoredGroups(groupSize)
        let (groups, words) = (stored.count(inFeatures: qweight.shape[0]), qweight.shape[1])
        try requireShape("qzeros", qzeros.shape, [groups, words])
        try requireShape("scales", scales.shape, [groups, 8 * words])
        self.groupSize = groupSize
        self.qweight = qweight
        self.qzeros = qzeros
        self.scales = scales
    }

    /// Converts a weight to this layout.
    ///
    /// Scales do not change; they are exact in F16 if the weight was quantised with such scales. A weight whose groups were
    /// wider than 128 in a file is written with groups of 128.
    /// - Parameters:
    ///   - weight: `uint4` codes with offsets of 0…15 times the scale, or `int4` codes without offsets, with the zero point 8.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` for another weight, `.invalidShape` unless `outFeatures` is a multiple of 8.
    public init(_ weight: QuantizedWeight, on pool: WorkerPool = .shared) throws(SparseKernelsError) {
        try requireMultipleOf8("weight.outFeatures", weight.outFeatures)
        let codes = try ZeroPointCodes(weight, on: pool)
        groupSize = codes.groupSize
        qweight = try codes.codes.columnNibbles(.awq, on: pool)
        qzeros = try codes.zeroPoints.columnNibbles(.awq, on: pool)
        scales = try codes.scales.transposed(on: pool)
    }

    /// Converts to a weight: `int4` if every zero point is 8, `uint4` otherwise. Groups above 128 become groups of 128 with the
    /// same scale, which changes no value.
    /// - Throws: `.invalidArgument` for a scale that is not finite.
    /// - Complexity: O(outFeatures · inFeatures), with one byte per element of temporary memory.
    public func quantizedWeight(on pool: WorkerPool = .shared) throws(SparseKernelsError) -> QuantizedWeight {
        try ZeroPointCodes(
            groupSize: groupSize, codes: qweight.transposedColumnNibbles(.awq, on: pool),
            zeroPoints: qzeros.transposedColumnNibbles(.awq, on: pool), scales: scales.transposed(on: pool)
        ).quantizedWeight(on: pool)
    }
}
