import SequenceParallel

/// The tokens of a pass that this rank runs, and where their logits go. A session alone runs all of them.
struct PassRows {
    private let rows: LanguageSession.LogitRows
    private let rank: Int
    private(set) var tokens = PassTokens()
    /// The rows of the pass that are finished, unless all are.
    private(set) var needed: [Int] = []
    /// The row of the result for each that is finished.
    private(set) var targets: [Int] = []

    init(_ rows: LanguageSession.LogitRows, rank: Int) { (self.rows, self.rank) = (rows, rank) }

    /// Adds what this rank runs of a segment.
    ///
    /// - Parameters:
    ///   - list: the tokens that a sequence gets in this call, and `range` those of the pass.
    ///   - firstRow: the row of the result where those of the list begin.
    ///   - shards: the ranks that run the tokens of the segment; nil when this one runs all.
    ///   - owners: for rows of the result, the rank that has them where only one has.
    mutating func add(
        _ list: [Int], _ range: Range<Int>, _ segment: PassSegment, firstRow: Int, _ shards: TokenShards?,
        in owners: inout [Int?]
    ) {
        // The length of the sequence after the call is what angles may depend on.
        let before = segment.before - range.lowerBound
        for part in shards?.ranges[rank] ?? [0..<segment.count] {
            let own = range.lowerBound + part.lowerBound..<range.lowerBound + part.upperBound
            if rows == .all {
                targets += own.map { firstRow + $0 }
            } else if own.upperBound == list.count {
                needed.append(tokens.ids.count + own.count - 1)
                targets.append(firstRow)
            }
            tokens.append(list[own], after: before + own.lowerBound, length: before + list.count)
        }
        guard let shards else { return }
        switch rows {
        case .all: for token in 0..<segment.count { owners[firstRow + range.lowerBound + token] = shards.owner(of: token) }
        case .last: if segment.isLast { owners[firstRow] = shards.owner(of: segment.count - 1) }
        }
    }
}
