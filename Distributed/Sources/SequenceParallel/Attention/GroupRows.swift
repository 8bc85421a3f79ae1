/// The rows that every rank of a Ulysses group has after the exchange: the tokens of its ranks, one rank behind the other.
///
/// Tokens ascend within a *segment*. Shards in order and zigzag shards give one segment; others have at most one per rank.
struct GroupRows {
    /// Consecutive tokens in consecutive rows.
    struct Run {
        let tokens: Range<Int>
        /// The row of the first one.
        let row: Int
    }

    let runs: [Run]
    /// Ranges of runs whose tokens ascend.
    let segments: [Range<Int>]
    /// The first row of each rank of the group, and the number of all rows.
    let starts: [Int]

    var count: Int { starts[starts.count - 1] }

    init(_ shards: TokenShards, ranks: Range<Int>) {
        var (runs, segments, starts): ([Run], [Range<Int>], [Int]) = ([], [], [0])
        var (row, first) = (0, 0)
        for rank in ranks {
            for tokens in shards.ranges[rank] {
                if let last = runs.last {
                    if tokens.lowerBound < last.tokens.upperBound {
                        segments.append(first..<runs.count)
                        first = runs.count
                    } else if tokens.lowerBound == last.tokens.upperBound {
                        runs[runs.count - 1] = Run(tokens: last.tokens.lowerBound..<tokens.upperBound, row: last.row)
                        row += tokens.count
                        continue
                    }
                }
                runs.append(Run(tokens: tokens, row: row))
                row += tokens.count
            }
            starts.append(row)
        }
        if first < runs.count { segments.append(first..<runs.count) }
        (self.runs, self.segments, self.starts) = (runs, segments, starts)
    }

    /// The rows of a rank of the group.
    func rows(ofPlace place: Int) -> Range<Int> { starts[place]..<starts[place + 1] }

    /// The token of a row.
    func token(ofRow row: Int) -> Int {
        var (low, high) = (0, runs.count)
        while high - low > 1 {
            let middle = (low + high) / 2
            if runs[middle].row <= row { low = middle } else { high = middle }
        }
        return runs[low].tokens.lowerBound + row - runs[low].row
    }

    /// The first row of a segment whose token is `token` or a later one; the row behind the segment if there is none.
    func firstRow(from token: Int, inSegment segment: Range<Int>) -> Int {
        var (low, high) = (segment.lowerBound, segment.upperBound)
        while low < high {
            let middle = (low + high) / 2
            if runs[middle].tokens.upperBound <= token { low = middle + 1 } else { high = middle }
        }
        if low == segment.upperBound {
            let last = runs[low - 1]
            return last.row + last.tokens.count
        }
        return runs[low].row + max(0, token - runs[low].tokens.lowerBound)
    }
}
