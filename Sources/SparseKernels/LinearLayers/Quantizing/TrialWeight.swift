/// The operand of a trial of smoothing: the rounded residual of W · diag(s) after the low-rank branch, with the up factor
/// beside it. Its memory is reused from candidate to candidate.
struct TrialWeight: Sendable {
    private let weight: Tensor<Float>
    private let quantizer: WeightQuantizer
    private let rank: Int
    private var subspace: ScaledSubspace?
    /// `[outFeatures, inFeatures + rank]`.
    private(set) var operand: Tensor<Float>

    /// - Parameter rank: at most the smaller extent of `weight`; 0 means no branch.
    init(
        weight: Tensor<Float>, rank: Int, quantizer: WeightQuantizer, seed: UInt64, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        self.weight = weight
        self.quantizer = quantizer
        self.rank = rank
        operand = try Tensor(zeros: [weight.shape[0], weight.shape[1] + rank])
        if rank > 0 {
            subspace = try ScaledSubspace(rank: rank, rows: weight.shape[0], seed: seed, on: pool)
        }
    }

    /// Fills `operand` for a candidate.
    /// - Returns: the down factor, for activations before smoothing; nil when the rank is 0.
    /// - Throws: the errors of the quantiser, for a residual that its scales cannot represent.
    mutating func apply(smooth: Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float>? {
        let factors = try subspace?.approximate(weight, scaledBy: smooth, on: pool)
        try operand.assignResidual(of: weight, scaledBy: smooth, less: factors, on: pool)
        try operand.roundWeights(quantizer, columns: weight.shape[1], on: pool)
        return factors?.down.dividingColumns(by: smooth, on: pool)
    }
}

extension Tensor where Element == Float {
    /// Fills `[rows, columns + rank]` with W · diag(s) − up · down, and `up` beside it.
    mutating func assignResidual(
        of weight: Tensor<Float>, scaledBy scales: Tensor<Float>, less factors: (down: Tensor<Float>, up: Tensor<Float>)?,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (rows, columns, rank) = (weight.shape[0], weight.shape[1], factors?.down.shape[0] ?? 0)
        if let factors {
            try GEMM(m: rows, n: columns, k: rank).run(
                a: factors.up.matrixView(), b: factors.down.matrixView(),
                c: MutableMatrixView(mutableSpan, rows: rows, columns: columns, rowStride: columns + rank), on: pool)
        }
        let up = factors?.up
        updateRows(work: 12, on: pool) { row, target in
            weight.span.withUnsafeBufferPointer { weight in
                let weight = weight.baseAddress! + row * columns
                if rank == 0 { target.update(repeating: 0, count: columns) }
                scales.span.withUnsafeBufferPointer { s in
                    for k in 0..<columns { target[k] = weight[k] * s[k] - target[k] }
                }
            }
            if let up { for r in 0..<rank { target[columns + r] = up[flat: row * rank + r] } }
        }
    }

    /// Replaces the first `columns` elements of every row by the quantiser's nearest values.
    mutating func roundWeights(_ quantizer: WeightQuantizer, columns: Int, on pool: WorkerPool) throws(SparseKernelsError) {
        let (rows, stride) = (shape[0], shape[1])
        let grid = try quantizer.grid(
            for: MatrixView(span, rows: rows, columns: columns, rowStride: stride, named: "weight"), on: pool)
        let groupSize = quantizer.format.groupSize ?? columns
        updateRows(work: 12, on: pool) { row, target in
            withUnsafeTemporaryAllocation(of: Int8.self, capacity: groupSize) { codes in
                for (group, start) in Swift.stride(from: 0, to: columns, by: groupSize).enumerated() {
                    let length = Swift.min(groupSize, columns - start)
                    let values = grid.rows.group(group, row: row)
                    values.quantize(target + start, length, into: codes.baseAddress!)
                    values.dequantize(codes.baseAddress!, length, into: target + start)
                }
            }
        }
    }
}
