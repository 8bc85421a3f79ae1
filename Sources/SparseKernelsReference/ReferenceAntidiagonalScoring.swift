public import SparseKernels

/// XAttention's block scores in `Double`, as in the paper, one group of queries at a time.
///
/// With S = `stride`, query groups i and key groups j of S tokens counted from token 0 (the last one filled with zeros),
///
///     x_ij = softmaxScale/(S·norm) · Σ_{s<S} q[i·S + S−1−s] · k[j·S + s]
///     w_ij = softmax over the key groups j; causal: over j ≤ i + ⌈(keyLength − queryLength)/S⌉
///     G_IJ = Σ w_ij over the groups of query block I and key block J
///
/// Groups that start at or after `scoredQueryTokens` have no weight. A stride of 1 gives exact attention masses.
public struct ReferenceAntidiagonalScoring: Sendable {
    public let shape: AttentionShape
    public let grid: BlockGrid
    public let stride: Int
    public let softmaxScale: Double
    public let norm: Double
    /// The number of real query tokens, when operands are padded with zeros at the end.
    public let scoredQueryTokens: Int

    /// - Parameters:
    ///   - shape: the sizes of the operands.
    ///   - grid: uniform blocks, whose sizes are multiples of `stride`.
    ///   - stride: tokens of an antidiagonal.
    ///   - norm: a further divisor of the scores.
    ///   - softmaxScale: factor on q·k; nil means 1/√headDim.
    ///   - scoredQueryTokens: the number of real query tokens, when operands are padded with zeros at the end; nil means all.
    public init(
        _ shape: AttentionShape, grid: BlockGrid, stride: Int = 16, norm: Double = 1, softmaxScale: Double? = nil,
        scoredQueryTokens: Int? = nil
    ) {
        precondition(
            (grid.query.blockSize ?? 1) % stride == 0 && (grid.key.blockSize ?? 1) % stride == 0,
            "stride \(stride) must divide the blocks")
        self.shape = shape
        self.grid = grid
        self.stride = stride
        self.norm = norm
        self.softmaxScale = softmaxScale ?? 1 / Double(shape.headDim).squareRoot()
        self.scoredQueryTokens = scoredQueryTokens ?? shape.queryLength
    }

    /// Σ_s q[i·S + S−1−s] · k[j·S + s], without any factor.
    public func antidiagonal<Q: AttentionElement, K: AttentionElement>(
        head: Int, queryGroup i: Int, keyGroup j: Int, query: TensorView<Q>, key: TensorView<K>
    ) -> Double {
        let kvHead = head / shape.queryHeadsPerKVHead
        return antidiagonal(
            queryGroup: i, keyGroup: j, query: { query.row(head: head, token: $0) }, key: { key.row(head: kvHead, token: $0) })
    }

    private func antidiagonal(
        queryGroup i: Int, keyGroup j: Int, query: (Int) -> [Double], key: (Int) -> [Double]
    ) -> Double {
        var sum = 0.0
        for s in 0..<stride {
            let (row, column) = (i * stride + stride - 1 - s, j * stride + s)
            if row >= shape.queryLength || column >= shape.keyLength { continue }
            let (q, k) = (query(row), key(column))
            for c in 0..<shape.headDim { sum += q[c] * k[c] }
        }
        return sum
    }

    /// Scores all blocks: `[queryHeads, blockRows, blockColumns]`, last axis fastest.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>
    ) -> [Double] {
        let keyGroups = (shape.keyLength + stride - 1) / stride
        let scored = (scoredQueryTokens + stride - 1) / stride
        let offset = (shape.keyLength - shape.queryLength + stride - 1) / stride
        var scores = [Double](repeating: 0, count: shape.queryHeads * grid.blockRows * grid.blockColumns)
        for head in 0..<shape.queryHeads {
            let (queries, keys) = (query.rows(head: head), key.rows(head: head / shape.queryHeadsPerKVHead))
            for i in 0..<scored {
                let visible = grid.isCausal ? min(keyGroups, i + offset + 1) : keyGroups
                var weights: [Double] = []
                for j in 0..<visible {
                    let sum = antidiagonal(queryGroup: i, keyGroup: j, query: { queries[$0] }, key: { keys[$0] })
                    weights.append(softmaxScale / (Double(stride) * norm) * sum)
                }
                let maximum = weights.max() ?? 0
                for j in weights.indices { weights[j] = exponential(weights[j] - maximum) }
                let total = weights.reduce(0, +)
                let row = (head * grid.blockRows + grid.query.block(of: i * stride)) * grid.blockColumns
                for j in weights.indices { scores[row + grid.key.block(of: j * stride)] += weights[j] / total }
            }
        }
        return scores
    }
}
