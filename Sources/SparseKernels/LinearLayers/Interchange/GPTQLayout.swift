/// The tensors of a linear layer in a GPTQ checkpoint with 4 bits: codes 0…15 with zero points, eight input channels per word.
///
/// Element (k, n) is nibble k mod 8 of `qweight[k / 8, n]`. Zero points are packed along the output channels, nibble n mod 8 of
/// `qzeros[g, n / 8]`. The value is scales[g, n] · (code − zero point), where g is the group of k.
///
/// - Source: AutoGPTQ and GPTQModel, `qlinear`. A file names its `Version` in `quantize_config.json` as `checkpoint_format`.
public struct GPTQLayout: Sendable {
    /// The contents of `qzeros`, which the tensors alone do not show.
    public enum Version: Hashable, Sendable, CaseIterable {
        /// The zero point minus 1, modulo 16 (`gptq`). 15 is read as the zero point 0, for which it was written; readers
        /// without the modulus take it as 16. Symmetric weights have 7.
        case v1
        /// The zero point (`gptq_v2`). Symmetric weights have 8.
        case v2
    }

    public let version: Version
    /// Input features that share a scale, 16, 32, 64 or a multiple of 128; nil means all of them (`group_size` −1).
    public let groupSize: Int?
    /// `[inFeatures / 8, outFeatures]`.
    public let qweight: Tensor<Int32>
    /// `[groups, outFeatures / 8]`.
    public let qzeros: Tensor<Int32>
    /// `[groups, outFeatures]`; F16 in files.
    public let scales: Tensor<Float>
    /// `[inFeatures]`, the group of each input feature (`g_idx`); nil means k / groupSize.
    public let groupIndices: Tensor<Int32>?

    public var inFeatures: Int { 8 * qweight.shape[0] }
    public var outFeatures: Int { qweight.shape[1] }

    /// Makes the layout from the tensors of a file.
    /// - Throws: `.invalidShape` naming the tensor that disagrees with `qweight` and the group size, `.invalidArgument` for a
    ///   group size that is not 16, 32, 64 or a multiple of 128 and for an index of a group that does not exist.
    public init(
        version: Version, qweight: Tensor<Int32>, qzeros: Tensor<Int32>, scales: Tensor<Float>,
        groupIndices: Tensor<Int32>? = nil, groupSize: Int?
    ) throws(SparseKernelsError) {
        try requireMatrix("qweight", qweight.shape, "[inFeatures / 8, outFeatures]")
        try requireMultipleOf8("qweight.outFeatures", qweight.shape[1])
        let stored = try StoredGroups(groupSize)
        let (inFeatures, outFeatures) = (8 * qweight.shape[0], qweight.shape[1])
        let groups = stored.count(inFeatures: inFeatures)
        try requireShape("qzeros", qzeros.shape, [groups, outFeatures / 8])
        try requireShape("scales", scales.shape, [groups, outFeatures])
        if let groupIndices {
            try requireShape("groupIndices", groupIndices.shape, [inFeatures])
            let bad = groupIndices.elements.firstIndex { !(0..<groups).contains(Int($0)) }
            try require(
                bad == nil, .invalidArgument, "groupIndices", expected: "0 to \(groups - 1)",
                actual: "\(bad.map { groupIndices[flat: $0] } ?? 0) for input feature \(bad ?? 0)")
        }
        self.version = version
        self.groupSize = groupSize
        self.qweight = qweight
        self.qzeros = qzeros
        self.scales = scales
        self.groupIndices = groupIndices
    }

    /// Converts a weight to this layout, with groups in order.
    ///
    /// Scales do not change; they are exact in F16 if the weight was quantised with such scales. A weight whose groups were
    /// wider than 128 in a file is written with groups of 128.
    /// - Parameters:
    ///   - weight: `uint4` codes with offsets of 0…15 times the scale, or `int4` codes without offsets, with the zero point 8.
    ///   - version: the form of the zero points to write. All readers agree on v2, also where a zero point is 0.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` for another weight, `.invalidShape` unless `outFeatures` and `inFeatures` are multiples of
    ///   8.
    public init(_ weight: QuantizedWeight, version: Version, on pool: WorkerPool = .shared) throws(SparseKernelsError) {
        try requireMultipleOf8("weight.outFeatures", weight.outFeatures)
        try requireMultipleOf8("weight.inFeatures", weight.inFeatures)
        let codes = try ZeroPointCodes(weight, on: pool)
        self.version = version
        groupSize = codes.groupSize
        qweight = try codes.codes.rowNibbles(on: pool)
        qzeros = try version.stored(codes.zeroPoints).columnNibbles(.sequential, on: pool)
        scales = try codes.scales.transposed(on: pool)
        groupIndices = nil
    }

    /// Whether groups are not runs of adjacent input features, as in a checkpoint quantised in activation order (`desc_act`).
    public var isActivationOrdered: Bool { firstUnordered != nil }

    /// Converts to a weight: `int4` if every zero point is 8, `uint4` otherwise. Groups above 128 become groups of 128 with the
    /// same scale, which changes no value.
    /// - Throws: `.invalidArgument` for a checkpoint in activation order, whose groups a `QuantizedWeight` cannot represent
    ///   (use `dequantized`), and for a scale that is not finite.
    /// - Complexity: O(outFeatures · inFeatures), with one byte per element of temporary memory.
    public func quantizedWeight(on pool: WorkerPool = .shared) throws(SparseKernelsError) -> QuantizedWeight {
        let unordered = firstUnordered
        try require(
            unordered == nil, .invalidArgument, "groupIndices",
            expected: "groups of adjacent input features (desc_act false); `dequantized` reads others",
            actual: "group \(unordered.flatMap { groupIndices?[flat: $0] } ?? 0) for input feature \(unordered ?? 0)")
        return try codes(on: pool).quantizedWeight(on: pool)
    }

    /// Converts to floating-point values, `[outFeatures, inFeatures]`, for groups in any order.
    /// - Throws: `.invalidArgument` for a scale that is not finite.
    public func dequantized(on pool: WorkerPool = .shared) throws(SparseKernelsError) -> Tensor<Float> {
        guard isActivationOrdered, let groupIndices else { return try quantizedWeight(on: pool).dequantized(on: pool) }
        let (codes, columns) = (try codes(on: pool), inFeatures)
        let groups = scales.shape[0]
        try require(
            scales.elements.allSatisfy(\.isFinite), .invalidArgument, "scales", expected: "finite", actual: "one that is not")
        var values = try Tensor<Float>(zeros: [outFeatures, columns])
        nonisolated(unsafe) let (target, group) = (values.mutableAddress(), groupIndices.address)
        nonisolated(unsafe) let (source, points, steps) = (
            codes.codes.address, codes.zeroPoints.address, codes.scales.address
        )
        pool.forEachRowRange(outFeatures, workPerRow: 2 * columns) { range, _ in
            for row in range {
                for column in 0..<columns {
                    let index = row * groups + Int(group[column])
                    target[row * columns + column] =
                        steps[index] * Float(source[row * columns + column] - points[index])
                }
            }
        }
        return values
    }

    private var firstUnordered: Int? {
        guard let groupIndices, let groupSize else { return nil }
        return (0..<inFeatures).first { Int(groupIndices[flat: $0]) != $0 / groupSize }
    }

    private func codes(on pool: WorkerPool) throws(SparseKernelsError) -> ZeroPointCodes {
        ZeroPointCodes(
            groupSize: groupSize, codes: try qweight.transposedRowNibbles(on: pool),
            zeroPoints: try version.zeroPoints(qzeros.transposedColumnNibbles(.sequential, on: pool)),
            scales: try scales.transposed(on: pool))
    }
}

extension GPTQLayout.Version {
    fileprivate func stored(_ zeroPoints: Tensor<Int8>) throws(SparseKernelsError) -> Tensor<Int8> {
        if self == .v2 { return zeroPoints }
        return try Tensor(zeroPoints.shape) { (zeroPoints[flat: $0] &- 1) & 15 }
    }

    fileprivate func zeroPoints(_ stored: Tensor<Int8>) throws(SparseKernelsError) -> Tensor<Int8> {
        if self == .v2 { return stored }
        return try Tensor(stored.shape) { (stored[flat: $0] &+ 1) & 15 }
    }
}
