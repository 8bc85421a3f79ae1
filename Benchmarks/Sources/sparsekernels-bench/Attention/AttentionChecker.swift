import SparseKernels
import SparseKernelsReference
import XAttention

/// A reusable output tensor.
final class AttentionOutput {
    private(set) var tensor: Tensor<Float>

    init(_ shape: AttentionShape) {
        tensor = try! Tensor(zeros: [shape.queryHeads, shape.queryLength, shape.valueDim])
    }

    func compute<Element: AttentionElement>(
        _ plan: some AttentionOperator, _ query: Tensor<Element>, _ key: Tensor<Element>, _ value: Tensor<Element>,
        on pool: WorkerPool
    ) {
        // The shapes come from the plan, so this cannot throw.
        try! plan.run(query: query, key: key, value: value, into: &tensor, on: pool)
    }

    /// For operators of other forms.
    func update(_ body: (inout Tensor<Float>) -> Void) { body(&tensor) }

    func compute(_ plan: DenseAttention, _ query: Tensor<Float>, _ rows: CachedRows, on pool: WorkerPool) {
        Self.compute(plan, query, rows, into: &tensor, on: pool)
    }

    /// A view of a variable property is an error; one of a parameter is not.
    private static func compute(
        _ plan: DenseAttention, _ query: Tensor<Float>, _ rows: CachedRows, into output: inout Tensor<Float>,
        on pool: WorkerPool
    ) {
        try! plan.run(query: query.view(), key: rows.key, value: rows.value, output: output.mutableView(), on: pool)
    }

    func compute(
        _ prefill: XAttentionPrefill, _ query: Tensor<Float>, _ key: Tensor<Float>, _ value: Tensor<Float>, on pool: WorkerPool
    ) {
        try! prefill.run(query: query, key: key, value: value, into: &tensor, on: pool)
    }
}

/// Compares sampled rows with the `Double` oracle. A row costs keys × channels, so a few dozen take less time than one timed
/// call.
final class AttentionChecker<Element: AttentionElement> {
    private let rows: [ReferenceAttention.Row]
    private let shape: AttentionShape
    private let cap: Float?

    /// - Parameter hides: whether a pattern leaves out a key, as (head, token, key).
    init(
        reference: ReferenceAttention, query: Tensor<Element>, key: Tensor<Element>, value: Tensor<Element>,
        hides: (Int, Int, Int) -> Bool = { _, _, _ in false }
    ) {
        shape = reference.shape
        cap = reference.modifiers.logitsSoftCap
        let last = reference.shape.queryLength - 1
        var generator = SplitMix64(seed: 7)
        var tokens: Set<Int> = [0, last / 2, last]
        while tokens.count < min(9, last + 1) { tokens.insert(Int.random(in: 0...last, using: &generator)) }
        var rows: [ReferenceAttention.Row] = []
        for head in Set([0, reference.shape.queryHeads - 1]).sorted() {
            for token in tokens.sorted() {
                rows.append(
                    try! reference.row(
                        head: head, token: token, query: query.view(), key: key.view(), value: value.view(),
                        hides: { hides(head, token, $0) }))
            }
        }
        self.rows = rows
    }

    /// Hides the blocks that a mask leaves out.
    convenience init(
        reference: ReferenceAttention, mask: BlockMask, query: Tensor<Element>, key: Tensor<Element>, value: Tensor<Element>
    ) {
        let grid = mask.grid
        let perMask = reference.shape.queryHeads / mask.heads
        self.init(reference: reference, query: query, key: key, value: value) { head, token, key in
            !mask[head / perMask, grid.query.block(of: token), grid.key.block(of: key)]
        }
    }

    func check(_ output: Tensor<Float>) throws -> Verification {
        var verification = Verification.none
        for row in rows {
            let bound = AttentionErrorBound(row, headDim: shape.headDim, logitsSoftCap: cap)
            let start = (row.head * shape.queryLength + row.token) * shape.valueDim
            for channel in 0..<shape.valueDim {
                verification.add(
                    error: abs(Double(output[flat: start + channel]) - row.output[channel]), bound: bound.output)
            }
        }
        return verification
    }
}
