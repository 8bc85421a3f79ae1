/// What a rank computes and passes on in the steps of a ring.
///
/// In step s, group r has the keys and values of group r − s (modulo the groups). What its queries see of them follows from the
/// positions of both, for any order of tokens:
///
/// * Queries are cut into *slices* of neighbouring rows, which lie in one shard and mostly in one run of positions.
/// * What a slice sees of a visiting segment is one range of rows per query, because positions ascend in both. Often it is the
///   same for all queries, a rectangle: all pieces of a zigzag ring but those on the diagonal. A diagonal is the causal mask of
///   ``DenseAttention``, and all else, such as windows, are ranges of keys.
/// * A visiting group that a slice sees nothing of is no work. One that no later group sees any of is not passed on.
///
/// Slices with their pieces are in the order in which they are computed. Partial results of a slice merge by steps and
/// segments, so in an order that depends on nothing but positions.
struct RingSchedule {
    /// Keys that a query sees: those from `left` tokens before it to `right` tokens after it.
    struct Reach {
        let left: Int
        let right: Int

        /// Sides without a limit are as long as the sequence.
        init(_ mask: AttentionMask, length: Int) {
            left = min(mask.left ?? length, length)
            right = min(mask.right ?? length, length)
        }
    }

    /// Rows of the own group that are computed together.
    struct Slice {
        let rows: Range<Int>
        /// The rank of the group that the rows belong to.
        let place: Int
    }

    enum Form {
        /// Every query of the slice sees every key of the piece.
        case all
        /// The last query sees all keys of the piece, and each one before it one key less.
        case causal
        /// The keys of each query, counted from the first one of the piece.
        case limits([Range<Int>])
    }

    /// What a slice sees of a visiting segment.
    struct Piece {
        let slice: Int
        /// Rows of the visiting group.
        let keys: Range<Int>
        let form: Form
        /// Whether the slice has seen no keys before.
        var isFirst: Bool
        /// Whether it sees none afterwards.
        var isLast: Bool
        /// Pairs of a query and a key that it sees.
        let pairs: Int
    }

    struct Step {
        /// The visiting group.
        let group: Int
        /// Whether its keys and values come, for this rank or to be passed on.
        let arrives: Bool
        /// Whether they are passed on.
        let isPassedOn: Bool
        /// By slices.
        let pieces: [Piece]
    }

    let own: GroupRows
    let slices: [Slice]
    let steps: [Step]
    /// The rows of each group.
    let counts: [Int]

    /// Where runs of positions have fewer rows than this on average, slices go across them.
    private static let leastRunLength = 16

    /// - Parameters:
    ///   - shards: who has which tokens.
    ///   - grid: the ranks.
    ///   - rank: the rank that computes.
    ///   - mask: what queries see, by positions in the sequence.
    ///   - sliceRows: the most rows of a slice.
    init(_ shards: TokenShards, _ grid: RankGrid, rank: Int, mask: AttentionMask, sliceRows: Int) {
        let groups = (0..<grid.ring).map { GroupRows(shards, ranks: grid.ranks(ofGroup: $0)) }
        let (ring, group) = (grid.ring, grid.group(of: rank))
        let reach = Reach(mask, length: shards.length)
        let own = groups[group]
        var slices: [Slice] = []
        // The rows of this rank come last: the output of others is sent while there is something left to compute.
        for turn in 1...grid.ulysses {
            let place = (grid.place(of: rank) + turn) % grid.ulysses
            slices += Self.slices(own, place: place, sliceRows: sliceRows)
        }

        /// Whether `holder`, which has the rows of group `visitor`, passes them on.
        func passesOn(_ visitor: Int, from holder: Int) -> Bool {
            var next = (holder + 1) % ring
            while next != visitor {
                if Self.sees(groups[next], groups[visitor], reach) { return true }
                next = (next + 1) % ring
            }
            return false
        }
        var steps: [[Piece]] = []
        var (hasSeen, lastStep) = (Array(repeating: false, count: slices.count), [Int: (step: Int, piece: Int)]())
        for step in 0..<ring {
            let visitor = groups[(group + ring - step) % ring]
            var pieces: [Piece] = []
            for (index, slice) in slices.enumerated() {
                for segment in visitor.segments {
                    guard let seen = Self.keys(of: slice, own, segment, visitor, reach) else { continue }
                    lastStep[index] = (step, pieces.count)
                    pieces.append(
                        Piece(
                            slice: index, keys: seen.keys, form: seen.form, isFirst: !hasSeen[index], isLast: false,
                            pairs: seen.pairs))
                    hasSeen[index] = true
                }
            }
            steps.append(pieces)
        }
        for last in lastStep.values { steps[last.step][last.piece].isLast = true }
        self.steps = steps.enumerated().map { step, pieces in
            let visitor = (group + ring - step) % ring
            return Step(
                group: visitor, arrives: step > 0 && passesOn(visitor, from: (group + ring - 1) % ring),
                isPassedOn: step < ring - 1 && passesOn(visitor, from: group), pieces: pieces)
        }
        (self.own, self.slices) = (own, slices)
        counts = groups.map(\.count)
    }

    /// Pairs of a query and a key that the rank computes scores of, per head.
    var visiblePairs: Int { steps.reduce(0) { $0 + $1.pieces.reduce(0) { $0 + $1.pairs } } }

    // MARK: - Slices

    /// The slices of a rank's rows. They depend on the shards and the size only, so that every rank of the group has the same.
    static func slices(_ group: GroupRows, place: Int, sliceRows: Int) -> [Slice] {
        let rows = group.rows(ofPlace: place)
        let starts = group.runs.map(\.row).filter { $0 > rows.lowerBound && $0 < rows.upperBound }
        // Queries of one run mostly see the same keys.
        var cuts = [rows.lowerBound]
        if (starts.count + 1) * Self.leastRunLength <= rows.count { cuts += starts }
        cuts.append(rows.upperBound)
        var slices: [Slice] = []
        for (start, end) in zip(cuts, cuts.dropFirst()) {
            for first in stride(from: start, to: end, by: sliceRows) {
                slices.append(Slice(rows: first..<min(end, first + sliceRows), place: place))
            }
        }
        return slices
    }

    // MARK: - Visibility

    /// Whether some query of a group sees some key of another.
    private static func sees(_ queries: GroupRows, _ keys: GroupRows, _ reach: Reach) -> Bool {
        for run in queries.runs {
            for segment in keys.segments {
                let from = keys.firstRow(from: run.tokens.lowerBound - reach.left, inSegment: segment)
                let to = keys.firstRow(from: run.tokens.upperBound + reach.right, inSegment: segment)
                if from < to { return true }
            }
        }
        return false
    }

    /// What the queries of a slice see of a segment; nil if nothing.
    private static func keys(
        of slice: Slice, _ own: GroupRows, _ segment: Range<Int>, _ visitor: GroupRows, _ reach: Reach
    ) -> (keys: Range<Int>, form: Form, pairs: Int)? {
        func keys(ofRow row: Int) -> (from: Int, to: Int) {
            let token = own.token(ofRow: row)
            let from = visitor.firstRow(from: token - reach.left, inSegment: segment)
            return (from, max(from, visitor.firstRow(from: token + reach.right + 1, inSegment: segment)))
        }
        let count = slice.rows.count
        let (first, last) = (keys(ofRow: slice.rows.lowerBound), keys(ofRow: slice.rows.upperBound - 1))
        // Tokens of a slice ascend, and so do both limits.
        let seen = first.from..<last.to
        if seen.isEmpty { return nil }
        if first == last { return (seen, .all, count * seen.count) }
        let isOneRun = own.token(ofRow: slice.rows.upperBound - 1) - own.token(ofRow: slice.rows.lowerBound) == count - 1
        if isOneRun && first.from == last.from && last.to - first.to == count - 1 {
            // The next token sees at most one key more, so here each sees one more.
            return (seen, .causal, count * seen.count - count * (count - 1) / 2)
        }
        var (limits, pairs): ([Range<Int>], Int) = ([], 0)
        limits.reserveCapacity(count)
        for row in slice.rows {
            let (from, to) = keys(ofRow: row)
            limits.append(from - seen.lowerBound..<to - seen.lowerBound)
            pairs += to - from
        }
        return pairs == 0 ? nil : (seen, .limits(limits), pairs)
    }
}
