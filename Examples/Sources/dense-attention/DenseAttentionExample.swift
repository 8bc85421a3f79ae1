import SparseKernels
import SparseKernelsReference

/// Causal attention of random tensors, and the distance of one row from attention in `Double`.
///
///     swift run --package-path Examples -c release dense-attention
@main
struct DenseAttentionExample {
    static func main() throws {
        // Grouped-query attention: eight query heads share two key/value heads.
        let shape = try AttentionShape(queryLength: 1024, keyLength: 1024, queryHeads: 8, kvHeads: 2, headDim: 64)
        let query = try Tensor<Float>.normal([8, 1024, 64], seed: 1)
        let key = try Tensor<Float>.normal([2, 1024, 64], seed: 2)
        let value = try Tensor<Float>.normal([2, 1024, 64], seed: 3)

        // A plan is made once per shape, and runs any number of times.
        let attention = try DenseAttention(shape, mask: .causal)
        let state = try attention(query: query, key: key, value: value)
        print("instruction set \(attention.instructionSet), \(WorkerPool.shared.threads) threads")
        print("output \(state.output.shape), LSE \(state.logSumExp.shape)")

        // One row by the textbook formula.
        let (head, token) = (5, 700)
        let row = try ReferenceAttention(shape, mask: .causal)
            .row(head: head, token: token, query: query.view(), key: key.view(), value: value.view())
        let index = head * shape.queryLength + token
        var error = 0.0
        for channel in 0..<shape.valueDim {
            error = max(error, abs(Double(state.output[flat: index * shape.valueDim + channel]) - row.output[channel]))
        }
        let lse = Double(state.logSumExp[flat: index])
        let bound = AttentionErrorBound(row, headDim: shape.headDim)
        print("head \(head), token \(token): sees \(row.visibleKeys) keys")
        print("  output error \(error), bound \(bound.output)")
        print("  LSE \(lse), error \(abs(lse - row.logSumExp)), bound \(bound.logSumExp)")
    }
}
