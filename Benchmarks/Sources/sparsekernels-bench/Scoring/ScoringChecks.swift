import SparseKernels
import SparseKernelsReference

/// Compares sampled rows of block scores with the `Double` oracle, for sequences of as many queries as keys.
///
/// A block row is a separate problem with the block's queries and the keys up to its end, aligned there. So the oracle computes
/// three rows of the first and the last head, and not all.
///
/// The bound: a score x of n = stride · headDim products is off by at most σ·A, with σ = λ·(√n + 2)·u as in
/// `AttentionErrorBound` and A ≤ softmaxScale · max‖q‖ · max‖k‖ (Cauchy–Schwarz). A probability changes by the factor e^(δx) of
/// its own score and of the sum that divides it, so by 2σA; its exponential by 2e-7·(1 + |x − m|/2) ≤ 2e-7·(1 + A), twice; the
/// sums over groups by λ·√groups·u. All of these are relative, so they hold for the sum of a block.
struct ScoreChecker {
    private var rows: [(head: Int, row: Int, scores: [Double])] = []
    private let bound: Double

    init(_ shape: AttentionShape, grid: BlockGrid, stride: Int, softmaxScale: Float?, query: Tensor<Float>, key: Tensor<Float>)
        throws
    {
        let scale = softmaxScale.map(Double.init) ?? 1 / Double(shape.headDim).squareRoot()
        for head in Set([0, shape.queryHeads - 1]).sorted() {
            for row in Set([0, grid.blockRows / 2, grid.blockRows - 1]).sorted() {
                let queries = grid.query[row]
                let keys = 0..<(grid.isCausal ? queries.upperBound : shape.keyLength)
                let part = try AttentionShape(
                    queryLength: queries.count, keyLength: keys.count, queryHeads: 1, kvHeads: 1, headDim: shape.headDim)
                let partGrid = try BlockGrid(
                    queryLength: queries.count, keyLength: keys.count, queryBlockSize: grid.query.blockSize!,
                    keyBlockSize: grid.key.blockSize!, isCausal: grid.isCausal)
                let blockQuery = try query.rows(head, queries)
                let blockKey = try key.rows(head / shape.queryHeadsPerKVHead, keys)
                let reference = ReferenceAntidiagonalScoring(part, grid: partGrid, stride: stride, softmaxScale: scale)
                rows.append((head, row, try reference(query: blockQuery.view(), key: blockKey.view())))
            }
        }
        let roundoff = AttentionErrorBound.unitRoundoff
        let magnitude = scale * query.longestRow * key.longestRow
        let products = (Double(stride * shape.headDim)).squareRoot() + 2
        let groups = Double(shape.keyLength / stride + 1).squareRoot() + 2
        bound =
            2 * AttentionErrorBound.confidence * products * roundoff * magnitude + 4e-7 * (1 + magnitude)
            + 2 * AttentionErrorBound.confidence * groups * roundoff
    }

    func check(_ scores: BlockScores) -> Verification {
        var verification = Verification.none
        for row in rows {
            for (column, expected) in row.scores.enumerated() {
                let error = abs(Double(scores[row.head, row.row, column]) - expected)
                // Below the smallest normal number there is no relative accuracy.
                verification.add(error: error, bound: bound * expected + Double(Float.leastNormalMagnitude))
            }
        }
        return verification
    }
}

extension Tensor<Float> {
    /// A copy of rows of one head of a tensor `[heads, tokens, channels]`.
    fileprivate func rows(_ head: Int, _ tokens: Range<Int>) throws -> Tensor<Float> {
        let first = (head * shape[1] + tokens.lowerBound) * shape[2]
        return try Tensor([1, tokens.count, shape[2]]) { self[flat: first + $0] }
    }

    /// The Euclidean norm of the longest row.
    fileprivate var longestRow: Double {
        let channels = shape[shape.count - 1]
        let values = span
        var longest = 0.0
        for start in Swift.stride(from: 0, to: values.count, by: channels) {
            var sum = 0.0
            for index in start..<start + channels { sum += Double(values[index]) * Double(values[index]) }
            longest = max(longest, sum)
        }
        return longest.squareRoot()
    }
}

/// Top-p selection row by row in its simplest form: sort, then take until the mass is reached.
enum SelectionCheck {
    /// The number of rows in which a mask differs from that, which must be none: scores are `Float` and their sums `Double`, so
    /// rounding causes no near-ties. In causal grids the sink column and the diagonal block are always kept and count.
    static func topP(_ mask: BlockMask, _ scores: BlockScores, mass: Double) -> Verification {
        let grid = scores.grid
        var wrong = 0
        for head in 0..<scores.heads {
            for row in 0..<grid.blockRows {
                let columns = grid.reachableColumns(ofRow: row)
                let values = columns.map { Double(scores[head, row, $0]) }
                let required = mass * values.reduce(0, +)
                var kept = Set(grid.isCausal ? [0] + grid.diagonalColumns(ofRow: row) : [])
                var sum = kept.reduce(0) { $0 + values[$1] }
                for column in columns.sorted(by: { (values[$0], -$0) > (values[$1], -$1) }) where sum < required {
                    if kept.insert(column).inserted { sum += values[column] }
                }
                if kept.sorted() != mask.columns(head: head, row: row).map(Int.init) { wrong += 1 }
            }
        }
        return Verification(error: Double(wrong), bound: 0)
    }
}
