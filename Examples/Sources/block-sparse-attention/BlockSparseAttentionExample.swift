import SparseKernels
import SparseKernelsReference

/// The effects of a block mask on causal attention: a picture of the mask, its density, and the distance of the result from
/// attention over all keys and from attention over the kept keys in `Double`.
///
///     swift run --package-path Examples -c release block-sparse-attention
@main
struct BlockSparseAttentionExample {
    static func main() throws {
        let shape = try AttentionShape(queryLength: 1024, keyLength: 1024, queryHeads: 4, kvHeads: 1, headDim: 64)
        let (query, key, value) = try operands(shape)
        let dense = try DenseAttention(shape, mask: .causal)(query: query, key: key, value: value)
        let grid = try BlockGrid(shape, blockSize: 64, isCausal: true)

        // Sinks and a window in whole blocks, and every `step`-th of the other blocks.
        for (name, step) in [("sink and window", Int.max), ("with every fourth block", 4), ("everything", 1)] {
            let distant = try BlockMask(grid: grid) { _, row, column in (row - column) % step == 0 && row != column }
            let mask = try BlockMask.streaming(grid, sinkBlocks: 1, localBlocks: 3).union(distant)
            let attention = try BlockSparseAttention(shape, mask: mask)
            let state = try attention(query: query, key: key, value: value)
            print("\(name), \(attention.visiblePairs) pairs: \(mask)")
            let comparison = try AttentionComparison(state, with: dense)
            print("  attention mass kept: \(comparison.recall), error against dense attention: \(comparison.error)")
            try report(state, shape, mask, query, key, value)
        }
    }

    /// Operands with topics: keys of the same topic are similar, a query asks for a topic, and near tokens mostly share one.
    static func operands(
        _ shape: AttentionShape
    ) throws -> (query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>) {
        let channels = shape.headDim
        let topics = try Tensor<Float>.normal([shape.keyLength / 128, channels], seed: 1)
        func topic(_ flat: Int) -> Float { topics[flat: flat / channels % shape.keyLength / 128 * channels + flat % channels] }
        let noise = try Tensor<Float>.normal([shape.queryHeads, shape.queryLength, channels], seed: 2)
        return try (
            Tensor(noise.shape) { noise[flat: $0] / 2 + topic($0) / 2 },
            Tensor([1, shape.keyLength, channels]) { noise[flat: $0] / 2 + topic($0) },
            Tensor<Float>.normal([1, shape.keyLength, channels], seed: 3)
        )
    }

    /// Compares one row with the textbook formula over the keys that the mask keeps.
    static func report(
        _ state: AttentionState, _ shape: AttentionShape, _ mask: BlockMask, _ query: Tensor<Float>, _ key: Tensor<Float>,
        _ value: Tensor<Float>
    ) throws {
        let (head, token, grid) = (2, 900, mask.grid)
        let row = try ReferenceAttention(shape, mask: .causal).row(
            head: head, token: token, query: query.view(), key: key.view(), value: value.view(),
            hides: { !mask[0, grid.query.block(of: token), grid.key.block(of: $0)] })
        let first = (head * shape.queryLength + token) * shape.valueDim
        let error = row.output.indices.reduce(0) { max($0, abs(Double(state.output[flat: first + $1]) - row.output[$1])) }
        let bound = AttentionErrorBound(row, headDim: shape.headDim)
        print("  query \(token) sees \(row.visibleKeys) keys: error \(error), bound \(bound.output)")
    }
}
