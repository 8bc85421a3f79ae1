public import SparseKernels

/// QServe's progressive quantisation of a linear layer's weight: to 8 bits per output channel, then to 4 bits per group.
///
/// With groups, for row n and its group j:
///
///     w   = clamp(W / s1, ±range)         s1[n] = fp16(max |W[n, :]| / range)
///     s2  = rne((max w − min w) / 15)     zero = rne(−min w)              integers
///     q   = clamp(rne((w + zero) / s2), 0, 15)
///     W ≈ s1 · (s2 · q − zero)
///
/// where rne rounds to the nearest integer, ties to even. Kernels multiply the bracket with 8-bit activations, so it must fit
/// into a signed byte: see `protectiveRange`. Without groups ("per channel") there is one level:
///
///     s1  = fp16((max W − min W) / 15)    zero = fp16(−min W)             of the row
///     q   = clamp(rne((W + zero) / s1), 0, 15)
///     W ≈ s1 · q − zero
///
/// A scale of 0, from a row or group of equal elements, becomes 1. This avoids divisions by zero, and rows of zeros stay zero.
///
/// Source: QServe (Lin et al., 2024, arXiv 2405.04532), section 4.1, in the form of deepcompressor ("PostScale" zeros, level 2
/// from W/s1 and not from rounded bytes).
public struct ProgressiveQuantizer: Hashable, Sendable {
    /// Number of input features that share s2 and zero; nil means one level, per channel.
    public let groupSize: Int?
    /// The magnitude in level 1 of the largest element of a row.
    public let range: Int

    /// The largest range for which every bracket is in −128…127. This also holds for the paper's 119.
    ///
    /// With w in ±120, s2 ≤ 16. Rounding q adds at most s2/2 to max w, so that s2 ≤ 15 ends below 127.5. For s2 = 16 and q = 15
    /// the quotient was above 14½ (a tie rounds to 14), hence max w + zero > 232, zero ≥ 113 and 16 · 15 − zero ≤ 127. The
    /// lowest bracket is −zero ≥ −120.
    public static let protectiveRange = 120

    /// - Parameters:
    ///   - groupSize: 16, 32, 64 or 128; nil means per channel. QServe itself and its files only have 128.
    ///   - range: 1 to 127; unused per channel. Above `protectiveRange`, quantisation fails if a bracket exceeds a signed byte.
    /// - Throws: `.invalidArgument` for other values.
    public init(groupSize: Int? = 128, range: Int = ProgressiveQuantizer.protectiveRange) throws(SparseKernelsError) {
        _ = try WeightFormat(.uint4, groupSize: groupSize)
        try require((1...127).contains(range), .invalidArgument, "range", expected: "1 to 127", actual: "\(range)")
        self.groupSize = groupSize
        self.range = range
    }

    /// Quantises a weight `[outFeatures, inFeatures]`.
    ///
    /// The result has `scales` = s2, `offsets` = zero and `channelScales` = s1, or per channel `scales` = s1 and `offsets` =
    /// zero. The last group of a row may be short.
    ///
    /// - Throws: `.invalidShape` unless the weight has rank 2; `.invalidArgument` for an element that is not finite, a row
    ///   whose scale or zero is beyond fp16, or a bracket outside −128…127.
    /// - Complexity: O(outFeatures · inFeatures), rows in parallel. Results are bitwise the same for every number of threads.
    public func callAsFunction(
        _ weight: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> QuantizedWeight {
        try require(
            weight.shape.count == 2 && weight.shape[0] >= 1 && weight.shape[1] >= 1, .invalidShape, "weight",
            expected: "[outFeatures, inFeatures]", actual: "\(weight.shape)")
        let (rows, columns) = (weight.shape[0], weight.shape[1])
        let format = try WeightFormat(.uint4, groupSize: groupSize)
        let (byteCount, range) = (format.paddedInFeatures(columns) / 2, Float(range))
        let results = pool.map(rows, work: 8 * weight.count) { [groupSize] row in
            Result { () throws(ProgressiveRow.Failure) in
                try ProgressiveRow(
                    weight.span.extracting(row * columns..<(row + 1) * columns), groupSize: groupSize, range: range,
                    byteCount: byteCount)
            }
        }
        var quantized: [ProgressiveRow] = []
        quantized.reserveCapacity(rows)
        for (row, result) in results.enumerated() {
            switch result {
            case .success(let values): quantized.append(values)
            case .failure(let failure):
                throw SparseKernelsError(.invalidArgument, "weight", expected: rule(failure), actual: "row \(row)")
            }
        }
        let groups = [rows, format.groups(inFeatures: columns)]
        return try QuantizedWeight(
            format: format, inFeatures: columns, codes: Tensor([rows, byteCount], quantized.flatMap(\.codes)),
            scales: Tensor(groups, quantized.flatMap(\.scales)), offsets: Tensor(groups, quantized.flatMap(\.offsets)),
            channelScales: groupSize == nil ? nil : Tensor([rows], quantized.map(\.channelScale)))
    }

    private func rule(_ failure: ProgressiveRow.Failure) -> String {
        switch failure {
        case .notFinite: "finite"
        case .scaleOverflow: "small enough for scale and zero in fp16"
        case .bracketOverflow:
            "such that s2 · q − zero fits −128…127, which range \(range), above \(Self.protectiveRange), does not ensure"
        }
    }
}
