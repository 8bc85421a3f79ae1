import SparseKernels

/// How the backward pass of attention is cut into tasks, by the shape alone.
///
/// A task has some query heads of a group and a strip of the keys. Tasks of one group add to the same gradients of keys and values, and
/// tasks of one head to the same gradients of queries; so all tasks but the first of each write partial gradients, which are added in
/// order at the end.
struct AttentionGradientTiling: Sendable {
    /// A run of keys, and the queries that see some of them.
    struct Strip: Sendable {
        var keys: Range<Int>
        var queries: Range<Int>
    }

    /// Tasks that keep 16 threads busy. Strips of more tasks would pack queries more often and write more partial gradients.
    private static let leastTasks = 16
    /// The fewest keys of a strip, on average. Packing the queries once more and adding their partial gradients takes 2% of the
    /// time of 256 keys of 64 channels.
    private static let stripKeys = 256
    /// Strips end at multiples of this many keys.
    private static let unit = 32

    /// The tasks of a group of query heads: 1, or a divisor of the group.
    let parts: Int
    /// Strips of keys, which together are all keys; at least one.
    let strips: [Strip]
    /// Where the partial gradients of a strip's queries begin, in rows of a head; 0 for the first strip, which has none.
    let partialRows: [Int]
    /// Partial rows of queries per query head.
    let partialRowCount: Int
    /// Pairs of one head that the mask leaves.
    let visiblePairs: Int
    /// Query i sees key j when i + from ≤ j < i + to.
    let limits: (from: Int, to: Int)

    init(_ shape: AttentionShape, limits: (from: Int, to: Int)) {
        self.limits = limits
        let group = shape.queryHeadsPerKVHead
        let wanted = (Self.leastTasks + shape.kvHeads - 1) / shape.kvHeads
        parts = (1...group).first { group % $0 == 0 && $0 >= wanted } ?? group
        let units = shape.kvHeads * parts

        let queries = shape.queryLength
        func seeing(_ keys: Range<Int>) -> Range<Int> {
            if keys.isEmpty { return 0..<0 }
            let first = min(max(0, keys.lowerBound - limits.to + 1), queries)
            return first..<max(first, min(queries, keys.upperBound - limits.from))
        }
        visiblePairs = Self.pairs(below: shape.keyLength, queries: queries, limits)
        let most = min((Self.leastTasks + units - 1) / units, max(1, shape.keyLength / Self.stripKeys))
        var strips: [Strip] = []
        var first = 0
        for index in 1...most {
            var end = shape.keyLength
            if index < most {
                let share = visiblePairs / most * index
                end = Self.keys(holding: share, from: first, of: shape.keyLength, queries: queries, limits)
                if end == first { continue }
            }
            strips.append(Strip(keys: first..<end, queries: seeing(first..<end)))
            first = end
        }
        self.strips = strips
        var rows = 0
        partialRows = strips.indices.map { index in
            defer { rows += index == 0 ? 0 : strips[index].queries.count }
            return rows
        }
        partialRowCount = rows
    }

    /// The pairs of a head with one of the first `keys` keys.
    private static func pairs(below keys: Int, queries: Int, _ limits: (from: Int, to: Int)) -> Int {
        pairsBelowDiagonal(rows: queries, columns: keys, offset: limits.to)
            - pairsBelowDiagonal(rows: queries, columns: keys, offset: limits.from)
    }

    /// The fewest keys, in whole units, that have `share` pairs.
    private static func keys(
        holding share: Int, from first: Int, of keyLength: Int, queries: Int, _ limits: (from: Int, to: Int)
    ) -> Int {
        var (low, high) = (first / unit, keyLength / unit)
        while low < high {
            let middle = (low + high) / 2
            if pairs(below: middle * unit, queries: queries, limits) < share {
                low = middle + 1
            } else {
                high = middle
            }
        }
        return low * unit
    }

    /// Tasks of the first phase.
    func taskCount(_ shape: AttentionShape) -> Int { shape.kvHeads * parts * strips.count }

    /// Whether gradients of queries are added or cleared at the end.
    func completesQueries(_ shape: AttentionShape) -> Bool {
        strips.count > 1 || strips[0].queries != 0..<shape.queryLength
    }

    /// Floats of all partial gradients: of the queries, then of the keys, then of the values.
    func workspaceFloats(_ shape: AttentionShape) -> Int {
        valuePartials(shape) + shape.kvHeads * (parts - 1) * shape.keyLength * shape.valueDim
    }

    /// Where the partial gradients of keys begin.
    func keyPartials(_ shape: AttentionShape) -> Int { shape.queryHeads * partialRowCount * shape.headDim }

    /// Where the partial gradients of values begin.
    func valuePartials(_ shape: AttentionShape) -> Int {
        keyPartials(shape) + shape.kvHeads * (parts - 1) * shape.keyLength * shape.headDim
    }
}
