internal import KernelInterface

/// Calibration tokens and the outputs of the exact layer, with which quantised layers are compared.
///
/// A quantised layer of rank r is evaluated as one product in single precision. x̂ and its low-rank activations are side by
/// side in one factor, the residual and the up factor in the other:
///
///     y = [ Q(x̂) − shift / s | x · downᵀ ] · [ R | up ]ᵀ         tokens × (K + r) times (K + r) × outFeatures
///
/// for x̂ = (x + shift) / s. The subtracted shift / s represents the layer's bias, which undoes the shift with the quantised R.
///
/// No integer kernel runs. Codes times scales are the values that it multiplies; its sums are exact where these are rounded.
struct CalibrationSample: Sendable {
    /// `[tokens, inFeatures]`, neither shifted nor smoothed.
    let inputs: Tensor<Float>
    /// The number that is added to them before they are smoothed and quantised.
    let shift: Float
    /// `[tokens, outFeatures]`: inputs · Wᵀ.
    let outputs: Tensor<Float>
    /// Σ outputs².
    let energy: Double

    var tokens: Int { inputs.shape[0] }
    var inFeatures: Int { inputs.shape[1] }
    var outFeatures: Int { outputs.shape[1] }

    /// - Throws: `.invalidArgument` when an output is not finite, although every element is.
    init(
        inputs: Tensor<Float>, shift: Float = 0, weight: Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        self.inputs = inputs
        self.shift = shift
        var outputs = try Tensor<Float>(zeros: [inputs.shape[0], weight.shape[0]])
        let gemm = try GEMM(m: inputs.shape[0], n: weight.shape[0], k: weight.shape[1], transposesB: true)
        try gemm.run(a: inputs, b: weight, into: &outputs, on: pool)
        let columns = weight.shape[0]
        energy = outputs.updateRows(on: pool) { _, y in sumOfSquares(columns) { y[$0] } }.reduce(0, +)
        self.outputs = outputs
        try require(
            energy.isFinite, .invalidArgument, "calibration",
            expected: "such that outputs of the exact layer fit single precision",
            actual: "a sum of squares of \(energy)")
    }

    /// At most `limit` rows of `inputs`, evenly spaced.
    static func tokens(
        of inputs: Tensor<Float>, limit: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let (tokens, columns) = (inputs.shape[0], inputs.shape[1])
        if tokens <= limit { return inputs }
        let count = limit
        var sample = try Tensor<Float>(zeros: [count, columns])
        sample.updateRows(on: pool) { row, target in
            inputs.span.withUnsafeBufferPointer { source in
                let source = source.baseAddress! + row * tokens / count * columns
                for k in 0..<columns { target[k] = source[k] }
            }
        }
        return sample
    }

    /// `[tokens, inFeatures + rank]`: the quantised x̂ minus shift / s, and beside it x · downᵀ.
    ///
    /// - Parameter down: `[rank, inFeatures]`, for the inputs before shift and smoothing.
    func activations(
        smooth: Tensor<Float>?, down: Tensor<Float>?, rounding: ActivationRounding, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let (inputs, shift, columns, rank) = (inputs, shift, inFeatures, down?.shape[0] ?? 0)
        var lowRank = try Tensor<Float>(zeros: [tokens, rank])
        if let down {
            try GEMM(m: tokens, n: rank, k: columns, transposesB: true).run(a: inputs, b: down, into: &lowRank, on: pool)
        }
        let projected = lowRank
        var wide = try Tensor<Float>(zeros: [tokens, columns + rank])
        wide.updateRows(work: 12, on: pool) { row, target in
            inputs.span.withUnsafeBufferPointer { inputs in
                let source = inputs.baseAddress! + row * columns
                if let smooth {
                    smooth.span.withUnsafeBufferPointer { s in
                        for k in 0..<columns { target[k] = (source[k] + shift) / s[k] }
                    }
                } else {
                    for k in 0..<columns { target[k] = source[k] + shift }
                }
            }
            rounding.round(target, columns)
            if shift != 0 {
                let smooth = smooth?.span
                for k in 0..<columns { target[k] -= shift / (smooth?[k] ?? 1) }
            }
            for r in 0..<rank { target[columns + r] = projected[flat: row * rank + r] }
        }
        return wide
    }

    /// Σ (y − outputs)² for y = activations · weightᵀ, both with rank columns beside the inFeatures. Not finite when y is not.
    func squaredError(
        activations: Tensor<Float>, weight: Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Double {
        var y = try Tensor<Float>(zeros: [tokens, outFeatures])
        try GEMM(m: tokens, n: outFeatures, k: weight.shape[1], transposesB: true).run(
            a: activations, b: weight, into: &y, on: pool)
        let (reference, columns) = (outputs, outFeatures)
        return y.updateRows(on: pool) { row, y in
            reference.span.withUnsafeBufferPointer { reference in
                let reference = reference.baseAddress! + row * columns
                return sumOfSquares(columns) { y[$0] - reference[$0] }
            }
        }.reduce(0, +)
    }
}

/// Σ value², in `Double`. The squares of eight values are added lane by lane.
@inline(__always)
func sumOfSquares(_ count: Int, _ value: (Int) -> Float) -> Double {
    var lanes = SIMD8<Double>.zero
    var index = 0
    while index + 8 <= count {
        var block = SIMD8<Float>.zero
        for lane in 0..<8 { block[lane] = value(index + lane) }
        let wide = SIMD8<Double>(block)
        lanes += wide * wide
        index += 8
    }
    var sum = lanes.sum()
    while index < count {
        let wide = Double(value(index))
        sum += wide * wide
        index += 1
    }
    return sum
}
