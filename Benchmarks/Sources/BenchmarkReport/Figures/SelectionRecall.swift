/// The fraction of the softmax mass of some queries that a choice of tokens keeps.
public struct SelectionRecall: Sendable {
    /// The mass of every token, one row per query. Every row sums to 1.
    public let masses: [[Double]]

    public init(_ masses: [[Double]]) {
        self.masses = masses
    }

    /// The mean over the queries of the mass of the tokens that each keeps. A token that a query does not have counts as 0.
    ///
    /// - Parameter tokens: the tokens that the query of this row keeps, each once.
    public func recall(_ tokens: (Int) -> [Range<Int>]) -> Double {
        var kept = 0.0
        for row in masses.indices {
            for range in tokens(row) {
                for token in range.clamped(to: masses[row].indices) { kept += masses[row][token] }
            }
        }
        return masses.isEmpty ? 0 : kept / Double(masses.count)
    }

    /// All masses, for finding the smallest number of tokens with some recall.
    public var curve: MassCurve { MassCurve(masses.lazy.joined().map { Float($0) }) }

    /// The number of masses, which is the number of tokens of all queries together.
    public var count: Int { masses.map(\.count).reduce(0, +) }

    /// The smallest budget, a multiple of `step` up to `limit` or `limit` itself, whose recall reaches `target`; nil when none
    /// does. The recall must not fall as the budget grows.
    public static func leastBudget(
        reaching target: Double, step: Int, limit: Int, recall: (Int) throws -> Double
    ) rethrows -> Int? {
        // The tolerance keeps rounding of a sum from requiring another page.
        func reaches(_ budget: Int) throws -> Bool { try recall(budget) >= target * (1 - 1e-9) }
        guard try reaches(limit) else { return nil }
        var (below, above) = (0, (limit + step - 1) / step)
        while above - below > 1 {
            let middle = (below + above) / 2
            if try reaches(middle * step) { above = middle } else { below = middle }
        }
        return min(above * step, limit)
    }
}
