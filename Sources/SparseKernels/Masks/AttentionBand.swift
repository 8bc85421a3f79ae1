/// A band of keys around each query's own position, exact to the token, with keys that every query sees and queries that see
/// every key.
///
/// Query *i* sees keys from `left` before to `right` after its own position, both included, and all `globalKeys`. A query in
/// `globalQueries` sees every key. A causal limit or window of the plan applies on top to all of them.
///
/// Global tokens serve as attention sinks, as text beside video tokens, and as the global tokens of Longformer (Beltagy et al.,
/// 2020, section 3.1).
public struct AttentionBand: Hashable, Sendable {
    /// Keys before the query's own position that it sees.
    public let left: Int
    /// Keys after the query's own position that it sees.
    public let right: Int
    /// Keys that every query sees: ascending, disjoint and not empty.
    public let globalKeys: [Range<Int>]
    /// Queries that see every key: ascending, disjoint and not empty.
    public let globalQueries: [Range<Int>]

    /// Ranges may overlap and come in any order; they are stored as disjoint ascending ones. Plans refuse negative sides, and
    /// ranges outside their tokens.
    public init(left: Int, right: Int, globalKeys: [Range<Int>] = [], globalQueries: [Range<Int>] = []) {
        self.left = left
        self.right = right
        self.globalKeys = Self.union(globalKeys)
        self.globalQueries = Self.union(globalQueries)
    }

    /// The ranges without overlaps and gaps between them, ascending; empty ones are dropped.
    package static func union(_ ranges: [Range<Int>]) -> [Range<Int>] {
        var result: [Range<Int>] = []
        for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) where !range.isEmpty {
            if let last = result.last, range.lowerBound <= last.upperBound {
                result[result.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
            } else {
                result.append(range)
            }
        }
        return result
    }

    /// Whether `query` sees `key`, both counted from the start of the sequence.
    ///
    /// - Parameter position: the key position of query 0, which is `keyLength` − `queryLength` in plans.
    public func isVisible(query: Int, key: Int, position: Int = 0) -> Bool {
        let distance = key - query - position
        return (distance >= -left && distance <= right) || globalKeys.contains { $0.contains(key) }
            || globalQueries.contains { $0.contains(query) }
    }

    /// Throws unless the band fits a sequence of the given lengths.
    func validate(queryLength: Int, keyLength: Int, named name: String) throws(SparseKernelsError) {
        for (side, tokens) in [("left", left), ("right", right)] {
            try require(tokens >= 0, .invalidArgument, "\(name).\(side)", expected: "at least 0", actual: "\(tokens)")
        }
        for (side, ranges, length) in [("globalKeys", globalKeys, keyLength), ("globalQueries", globalQueries, queryLength)] {
            guard let first = ranges.first, let last = ranges.last else { continue }
            try require(
                first.lowerBound >= 0 && last.upperBound <= length, .invalidShape, "\(name).\(side)",
                expected: "ranges within 0..<\(length)", actual: "\(first.lowerBound)..<\(last.upperBound)")
        }
    }

    /// The parts of `range` outside of `ranges`, which are ascending and disjoint.
    static func parts(of range: Range<Int>, outside ranges: [Range<Int>]) -> [Range<Int>] {
        var (parts, first): ([Range<Int>], Int) = ([], range.lowerBound)
        for hole in ranges where hole.upperBound > first && hole.lowerBound < range.upperBound {
            if hole.lowerBound > first { parts.append(first..<hole.lowerBound) }
            first = hole.upperBound
        }
        if first < range.upperBound { parts.append(first..<range.upperBound) }
        return parts
    }
}
