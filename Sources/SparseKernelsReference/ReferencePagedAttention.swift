public import SparseKernels

/// Attention of single queries over explicit lists of key positions, in `Double`, which a paged cache with a selection must
/// compute.
///
/// Pages, page tables, formats and groups of heads are not known here. The selection of any method is a list of positions, and
/// the contents of a cache are the rows that it reads back:
///
///     s_j = scale·q·k_j    s_j ← cap·tanh(s_j/cap)    s_j ← s_j + slope·(j − t) or s_j − slope·|j − t|
///                                                     for every position j of the list, once for each time that it is in it
///     o = Σ e^(s_j)·v_j / Σ e^(s_j)                   LSE = ln Σ e^(s_j)
public struct ReferencePagedAttention: Sendable {
    public let softmaxScale: Float?
    public let logitsSoftCap: Float?

    /// - Parameters:
    ///   - softmaxScale: the factor on q·k; nil means 1/√headDim.
    ///   - logitsSoftCap: the bound of the scores; nil means none.
    public init(softmaxScale: Float? = nil, logitsSoftCap: Float? = nil) {
        self.softmaxScale = softmaxScale
        self.logitsSoftCap = logitsSoftCap
    }

    /// Computes the row of one query of one head.
    /// - Parameters:
    ///   - query: `headDim` channels.
    ///   - keys: the rows of the KV head, by position.
    ///   - values: as many rows, all of one length.
    ///   - positions: the keys that the query sees.
    ///   - aliBi: a slope, the position t of the query, and the form of the distance.
    ///   - sinkLogit: a score more, whose value is 0; nil means none.
    ///   - head: stored in the result, for messages.
    ///   - token: stored in the result, for messages.
    /// - Returns: the row, with the sensitivity for `AttentionErrorBound`. Without positions its output is 0 and its LSE −∞.
    public func row(
        query: [Double], keys: [[Double]], values: [[Double]], positions: [Int],
        aliBi: (slope: Float, position: Int, form: AliBiForm)? = nil, sinkLogit: Float? = nil, head: Int = 0, token: Int = 0
    ) -> ReferenceAttention.Row {
        let scale = softmaxScale.map(Double.init) ?? 1 / Double(query.count).squareRoot()
        let seen = positions.map { keys[$0] }
        var scores = Self.scores(
            query: query, keys: seen, softmaxScale: scale, logitsSoftCap: logitsSoftCap.map(Double.init))
        if let aliBi {
            for (index, position) in positions.enumerated() {
                let distance = Double(position - aliBi.position)
                scores[index] += Double(aliBi.slope) * (aliBi.form == .symmetric ? -abs(distance) : distance)
            }
        }
        var magnitudes = seen.map { key in zip(query, key).reduce(0) { $0 + abs(scale * $1.0 * $1.1) } }
        if let sinkLogit {
            scores.append(Double(sinkLogit))
            magnitudes.append(0)
        }
        return ReferenceAttention.Row(
            head: head, token: token, valueDim: values.first?.count ?? 0, scores: scores, magnitudes: magnitudes
        ) { $0 < positions.count ? values[positions[$0]][$1] : 0 }
    }

    /// The scores of one query against some keys.
    public static func scores(
        query: [Double], keys: [[Double]], softmaxScale: Double, logitsSoftCap: Double? = nil
    ) -> [Double] {
        keys.map { key in
            let score = zip(query, key).reduce(0) { $0 + softmaxScale * $1.0 * $1.1 }
            return logitsSoftCap.map { $0 * hyperbolicTangent(score / $0) } ?? score
        }
    }

    /// The positions that a streaming head sees: the first `sink`, and the `window` that end at the query's own.
    ///
    /// - Source: StreamingLLM (arXiv 2309.17453); LServe's decoding kernel, whose 256 local tokens include the current one.
    public static func streamingPositions(of position: Int, sink: Int, window: Int) -> [Int] {
        (0...position).filter { $0 < sink || $0 > position - window }
    }

    /// The positions of pages, in the order of the list, up to the end of the sequence.
    public static func positions(ofPages pages: [Int], pageSize: Int, length: Int) -> [Int] {
        pages.flatMap { page in (page * pageSize..<(page + 1) * pageSize).filter { $0 < length } }
    }
}

extension Tensor where Element: AttentionElement {
    /// The rows of a head of a tensor `[heads, tokens, channels]` in `Double`, for the oracles of a cache. Rank 2 is one head.
    public func rows(ofHead head: Int = 0) -> [[Double]] {
        let (tokens, channels) = (shape[shape.count - 2], shape[shape.count - 1])
        return (head * tokens..<(head + 1) * tokens).map { row in
            (row * channels..<(row + 1) * channels).map { Double(self[flat: $0].floatValue) }
        }
    }
}
