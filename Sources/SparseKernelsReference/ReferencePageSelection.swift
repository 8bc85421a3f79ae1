/// Pages of keys, their bounds and the released rules that choose among them, in `Double`.
///
/// From the channelwise extremes of a page's keys, a query's score is an upper bound of its products with these keys:
///
///     score = Σ_c max(q_c·max_c, q_c·min_c) ≥ q·k      for every key k of the page; no 1/√headDim
///
/// - Source: Quest (arXiv 2406.10774), algorithm 1; LServe (arXiv 2502.14866), section 4.
public struct ReferencePageSelection: Sendable {
    public let pageSize: Int
    /// The extremes of every page, by channel. Those of the last page are over the keys that exist.
    public let maxima: [[Double]]
    public let minima: [[Double]]

    /// - Parameters:
    ///   - keys: the keys of one head, by position; at least one.
    ///   - pageSize: keys per page, except the last one.
    public init(keys: [[Double]], pageSize: Int) {
        self.pageSize = pageSize
        var (maxima, minima): ([[Double]], [[Double]]) = ([], [])
        for start in stride(from: 0, to: keys.count, by: pageSize) {
            let page = keys[start..<min(keys.count, start + pageSize)]
            maxima.append(page.dropFirst().reduce(keys[start]) { zip($0, $1).map { max($0, $1) } })
            minima.append(page.dropFirst().reduce(keys[start]) { zip($0, $1).map { min($0, $1) } })
        }
        self.maxima = maxima
        self.minima = minima
    }

    /// The bounds of all pages.
    public func scores(query: [Double]) -> [Double] {
        zip(maxima, minima).map { high, low in
            query.indices.reduce(0) { $0 + max(query[$1] * high[$1], query[$1] * low[$1]) }
        }
    }

    /// The scores of physical pages: the largest score of each one's logical pages.
    public static func physicalScores(_ scores: [Double], logicalPages: Int) -> [Double] {
        stride(from: 0, to: scores.count, by: logicalPages).map { scores[$0..<min(scores.count, $0 + logicalPages)].max()! }
    }

    // MARK: - Rules

    /// The selected pages, ascending.
    public struct Pages: Hashable, Sendable {
        public var indices: [Int]
        /// The lowest score that was selected freely minus the highest one that was not: smaller errors do not change the
        /// selection.
        public var margin: Double
    }

    /// The `count` pages with the largest scores among the first `candidates`, equal ones by lower index, plus the `forced`
    /// ones.
    public static func largest(
        _ count: Int, of scores: [Double], candidates: Int? = nil, forced: [Int] = []
    ) -> Pages {
        let order = (0..<(candidates ?? scores.count)).sorted { (scores[$0], -$0) > (scores[$1], -$1) }
        let kept = max(0, min(count, order.count))
        let margin = kept > 0 && kept < order.count ? scores[order[kept - 1]] - scores[order[kept]] : .infinity
        return Pages(indices: (order.prefix(kept) + forced).sorted(), margin: margin)
    }

    /// Quest's accuracy code: max(3, budget/pageSize) pages. The last page is a candidate like the others.
    /// - Source: `evaluation/quest_attention.py` of mit-han-lab/Quest.
    public static func questAccuracy(_ scores: [Double], length: Int, pageSize: Int, tokenBudget: Int) -> Pages {
        largest(max(3, min(length, tokenBudget) / pageSize), of: scores)
    }

    /// Quest's CUDA path: budget/pageSize pages, one of which is always the last page.
    /// - Source: `quest/` of mit-han-lab/Quest.
    public static func questKernel(_ scores: [Double], pageSize: Int, tokenBudget: Int) -> Pages {
        let last = scores.count - 1
        return largest(min(tokenBudget / pageSize, scores.count) - 1, of: scores, candidates: last, forced: [last])
    }

    /// The copy of Quest's accuracy code in Twilight: at least one page, and one more for a remainder of the budget.
    /// - Source: `twilight/pyimpl/quest.py` of tsinghua-ideal/Twilight. With `sparsity_rate`, its budget is ⌊length·rate⌋.
    public static func twilightQuest(_ scores: [Double], pageSize: Int, tokenBudget: Int) -> Pages {
        largest(max(1, tokenBudget / pageSize) + (tokenBudget % pageSize == 0 ? 0 : 1), of: scores)
    }

    /// LServe's selector for the scores of physical pages: max(3, budget/pageSize) pages, one of which is always the last page.
    /// With up to `tokenBudget` cached tokens every page is selected.
    /// - Source: the dynamic selector of mit-han-lab/omniserve.
    public static func lserve(_ scores: [Double], cachedTokens: Int, pageSize: Int, tokenBudget: Int) -> Pages {
        let last = scores.count - 1
        let count = cachedTokens <= tokenBudget ? scores.count : min(max(3, tokenBudget / pageSize), scores.count)
        return largest(count - 1, of: scores, candidates: last, forced: [last])
    }
}
