// The bias of a layer whose activations are shifted before they are quantised.

extension LowRankQuantizer {
    /// The bias of the running layer: b − Q(R) · (shift / smooth), in `Double`; nil without bias and shift.
    ///
    /// The residual is multiplied with (x + shift) / smooth and the branch with x, so this term is the exact excess. It uses
    /// the quantised residual, so that a constant costs no accuracy, however the weight was rounded.
    ///
    ///   - bias: `[outFeatures]`; nil means 0.
    ///   - bias: `[outFeatures]`; nil: 0.
    ///   - residual: the weight that the shifted activations are multiplied with.
    ///   - smooth: `[inFeatures]`, the divisors of the activations; nil means none.
    ///   - shift: the number that is added to every activation. A negative one reverts another call.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for tensors that disagree; `.invalidArgument` for a shift that is not finite, or factors that
    ///   are not positive and finite.
    /// - Complexity: O(outFeatures · inFeatures), with as many floats of temporary memory.
    /// - Source: SVDQuant (arXiv 2411.05007), section 4.3: a shift adds a constant, which the bias subtracts.
    public static func correctedBias(
        _ bias: Tensor<Float>?, residual: QuantizedWeight, smooth: Tensor<Float>? = nil, shift: Float,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float>? {
        guard shift != 0 else { return bias }
        let (rows, columns) = (residual.outFeatures, residual.inFeatures)
        try require(shift.isFinite, .invalidArgument, "shift", expected: "finite", actual: "\(shift)")
        try require(
            bias == nil || bias?.shape == [rows], .invalidShape, "bias", expected: "\([rows])", actual: "\(bias?.shape ?? [])")
        if let smooth {
            try require(
                smooth.shape == [columns], .invalidShape, "smooth", expected: "\([columns])", actual: "\(smooth.shape)")
            let bad = smooth.elements.firstIndex { !($0 > 0 && $0.isFinite) }
            try require(
                bad == nil, .invalidArgument, "smooth", expected: "positive and finite",
                actual: "\(smooth[flat: bad ?? 0]) at element \(bad ?? 0)")
        }
        let values = try residual.dequantized(on: pool)
        let sums = pool.map(rows, work: 2 * values.count) { row in
            (0..<columns).reduce(0.0) { sum, k in
                sum + Double(values.span[row * columns + k]) / Double(smooth?.span[k] ?? 1)
            }
        }
        return try Tensor([rows]) { Float(Double(bias?.span[$0] ?? 0) - sums[$0] * Double(shift)) }
    }

    /// The bias that the released code stores: b − W·shift + up · (down · shift), in `Double`; nil without bias and shift.
    ///
    /// It undoes the shift exactly where the residual W − up · down is not rounded. A running layer has a rounded residual and
    /// needs ``correctedBias(_:residual:smooth:shift:on:)``, which this quantiser uses.
    ///
    /// - Parameters:
    ///   - bias: `[outFeatures]`; nil means 0.
    ///   - weight: `[outFeatures, inFeatures]`, before smoothing.
    ///   - shift: the number that is added to every activation.
    ///   - lowRank: the branch of the running layer, which takes x before the shift.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for tensors that disagree.
    /// - Source: deepcompressor, `ShiftedLinear` (the first term) and the converter to nunchaku (the second).
    public static func correctedBias(
        _ bias: Tensor<Float>?, weight: Tensor<Float>, shift: Float, lowRank: LowRankBranch? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float>? {
        guard shift != 0 else { return bias }
        try require(
            weight.shape.count == 2 && weight.count > 0, .invalidShape, "weight", expected: "[outFeatures, inFeatures]",
            actual: "\(weight.shape)")
        let (rows, columns) = (weight.shape[0], weight.shape[1])
        try require(
            bias == nil || bias?.shape == [rows], .invalidShape, "bias", expected: "\([rows])", actual: "\(bias?.shape ?? [])")
        if let lowRank {
            try require(
                lowRank.up.shape[0] == rows && lowRank.down.shape[1] == columns, .invalidShape, "lowRank",
                expected: "factors of \(rows) × \(columns)",
                actual: "factors of \(lowRank.up.shape[0]) × \(lowRank.down.shape[1])")
        }
        func rowSums(_ matrix: Tensor<Float>) -> [Double] {
            let columns = matrix.shape[1]
            return pool.map(matrix.shape[0], work: matrix.count) { row in
                (0..<columns).reduce(0.0) { $0 + Double(matrix.span[row * columns + $1]) }
            }
        }
        let weightSums = rowSums(weight)
        let downSums = lowRank.map { rowSums($0.down) } ?? []
        return try Tensor([rows]) { n in
            var sum = -weightSums[n]
            for (r, down) in downSums.enumerated() {
                sum += Double(lowRank?.up.span[n * downSums.count + r] ?? 0) * down
            }
            return Float(Double(bias?.span[n] ?? 0) + sum * Double(shift))
        }
    }
}
