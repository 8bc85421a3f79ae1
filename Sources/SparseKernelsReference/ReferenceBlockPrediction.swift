public import SparseKernels

/// SpargeAttention's block prediction in `Double`: algorithm 1 of arXiv 2502.18137, but as in the released code the rows of the
/// Gram matrix are normalised and the block that crosses the mass is left out.
///
/// Never dispatched to by the product; tests measure `SelfSimilarity` and `SimilaritySelection` of the module
/// SpargeAttention against it.
public struct ReferenceBlockPrediction: Sendable {
    /// How many of the similar columns are kept.
    public enum Rule: Sendable {
        /// As many as together have at most this mass of probability.
        case cdfThreshold(Double)
        /// This fraction of all columns.
        case keepRatio(Double)
    }

    public let grid: BlockGrid
    public let rule: Rule
    /// Blocks whose similarity is not above this are kept in any case.
    public let similarityThreshold: Float

    public init(grid: BlockGrid, rule: Rule, similarityThreshold: Float) {
        self.grid = grid
        self.rule = rule
        self.similarityThreshold = similarityThreshold
    }

    /// A block of tokens.
    public struct Block: Sendable {
        public var mean: [Double]
        /// The mean cosine of all pairs of tokens, including each token with itself; NaN without tokens.
        public var similarity: Double

        public init(mean: [Double], similarity: Double) {
            self.mean = mean
            self.similarity = similarity
        }
    }

    /// The mean token of a head.
    public static func tokenMean<Element>(_ rows: TensorView<Element>, head: Int) -> [Double] where Element: AttentionElement {
        (0..<rows.channels).map { channel in
            (0..<rows.tokens).reduce(0.0) { $0 + Double(rows[head, $1, channel].floatValue) } / Double(rows.tokens)
        }
    }

    /// The blocks of a head, after `mean` is subtracted.
    public static func blocks<Element: AttentionElement>(
        _ rows: TensorView<Element>, head: Int, partition: BlockPartition, subtracting mean: [Double]? = nil
    ) -> [Block] {
        var blocks: [Block] = []
        for index in 0..<partition.count {
            var tokens: [[Double]] = []
            for token in partition[index] {
                tokens.append((0..<rows.channels).map { Double(rows[head, token, $0].floatValue) - (mean?[$0] ?? 0) })
            }
            let size = Double(tokens.count)
            let average = (0..<rows.channels).map { channel in
                tokens.isEmpty ? 0 : tokens.reduce(0.0) { $0 + $1[channel] } / size
            }
            let units = tokens.map { row in
                let norm = dot(row, row).squareRoot()
                return row.map { norm == 0 ? 0 : $0 / norm }
            }
            var gram = 0.0
            for a in units { for b in units { gram += dot(a, b) } }
            blocks.append(Block(mean: average, similarity: gram / (size * size)))
        }
        return blocks
    }

    /// The kept columns of a row, and the errors of its inputs that would not change them.
    public struct Row: Sendable {
        public var columns: [Int]
        /// The least distance of a similarity from the threshold.
        public var similarityMargin = Double.infinity
        /// The difference of the scores of the last ranked column that is kept and the first one that is not.
        public var scoreMargin = Double.infinity
        /// The least distance of a cumulated probability from the mass of `.cdfThreshold`.
        public var massMargin = Double.infinity
    }

    /// The kept columns of a row of blocks.
    public func row(_ row: Int, query: Block, keys: [Block]) -> Row {
        let reachable = Array(grid.reachableColumns(ofRow: row))
        let threshold = Double(similarityThreshold)
        var result = Row(columns: reachable)
        for block in [query] + reachable.map({ keys[$0] }) {
            result.similarityMargin = min(result.similarityMargin, abs(block.similarity - threshold))
        }
        if !(query.similarity > threshold) { return result }
        let scale = 1 / Double(query.mean.count).squareRoot()
        let similar = reachable.filter { keys[$0].similarity > threshold }
        let ranked = similar.map { (column: $0, score: scale * dot(query.mean, keys[$0].mean)) }
            .sorted { ($0.score, $1.column) > ($1.score, $0.column) }
        let kept: Int
        switch rule {
        case .keepRatio(let ratio):
            kept = max(1, Int(ratio * Double(grid.blockColumns)))
        case .cdfThreshold(1):
            kept = ranked.count
        case .cdfThreshold(let mass):
            let weights = ranked.map { exponential($0.score - ranked[0].score) }
            let total = weights.reduce(0, +)
            var sum = 0.0
            var within = 0
            for weight in weights {
                sum += weight
                if sum / total <= mass { within += 1 }
                result.massMargin = min(result.massMargin, abs(sum / total - mass))
            }
            kept = max(1, within)
        }
        if kept < ranked.count { result.scoreMargin = ranked[max(0, kept - 1)].score - ranked[kept].score }
        let chosen = Set(ranked.prefix(kept).map(\.column))
        result.columns = reachable.filter { chosen.contains($0) || !(keys[$0].similarity > threshold) }
        return result
    }
}

private func dot(_ a: [Double], _ b: [Double]) -> Double { zip(a, b).reduce(0.0) { $0 + $1.0 * $1.1 } }
