/// Which rank has which tokens of a sequence that grows, and in which of its rows. All ranks keep the same copy.
struct ShardedTokens: Sendable {
    /// Adjacent tokens in adjacent rows of one rank.
    struct Run: Equatable, Sendable {
        var tokens: Range<Int>
        /// The row of the first token, counted over all tokens that the rank has of the sequence.
        let row: Int
    }

    /// The runs of each rank, ascending in tokens and rows.
    private(set) var runs: [[Run]]
    /// The tokens of all ranks.
    private(set) var length = 0

    init(ranks: Int) { runs = Array(repeating: [], count: ranks) }

    // MARK: - Questions

    /// The tokens that a rank has.
    func count(of rank: Int) -> Int { runs[rank].last.map { $0.row + $0.tokens.count } ?? 0 }

    /// The number of runs of a rank that begin below a position.
    private func runCount(of rank: Int, below position: Int) -> Int {
        let own = runs[rank]
        var (low, high) = (0, own.count)
        while low < high {
            let middle = (low + high) / 2
            if own[middle].tokens.lowerBound < position { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// The tokens below a position that a rank has.
    /// - Complexity: O(log runs).
    func count(of rank: Int, below position: Int) -> Int {
        let count = runCount(of: rank, below: position)
        if count == 0 { return 0 }
        let run = runs[rank][count - 1]
        return run.row + min(position, run.tokens.upperBound) - run.tokens.lowerBound
    }

    /// The rows that a rank has of some tokens.
    func rows(of rank: Int, in tokens: Range<Int>) -> Range<Int> {
        let first = count(of: rank, below: tokens.lowerBound)
        return first..<max(first, count(of: rank, below: tokens.upperBound))
    }

    /// The rank that has a token, which must exist.
    func owner(of token: Int) -> Int {
        for rank in runs.indices {
            let count = runCount(of: rank, below: token + 1)
            if count > 0, runs[rank][count - 1].tokens.upperBound > token { return rank }
        }
        preconditionFailure("token \(token) outside of a sequence of \(length)")
    }

    /// The token in a row of a rank.
    func token(ofRow row: Int, of rank: Int) -> Int {
        let own = runs[rank]
        var (low, high) = (0, own.count)
        while low < high {
            let middle = (low + high) / 2
            if own[middle].row <= row { low = middle + 1 } else { high = middle }
        }
        let run = own[low - 1]
        return run.tokens.lowerBound + row - run.row
    }

    /// The parts of a range of tokens that a rank has, ascending.
    func ranges(of rank: Int, in tokens: Range<Int>) -> [Range<Int>] {
        var result: [Range<Int>] = []
        for run in runs[rank][max(0, runCount(of: rank, below: tokens.lowerBound) - 1)...] {
            if run.tokens.lowerBound >= tokens.upperBound { break }
            let part = run.tokens.clamped(to: tokens)
            if !part.isEmpty { result.append(part) }
        }
        return result
    }

    // MARK: - Growing and shrinking

    /// Appends tokens of one rank.
    mutating func append(_ count: Int, to rank: Int) {
        if count == 0 { return }
        if let last = runs[rank].last, last.tokens.upperBound == length {
            runs[rank][runs[rank].count - 1].tokens = last.tokens.lowerBound..<length + count
        } else {
            runs[rank].append(Run(tokens: length..<length + count, row: self.count(of: rank)))
        }
        length += count
    }

    /// Appends tokens of all ranks.
    mutating func append(_ shards: TokenShards) {
        for piece in shards.pieces { append(piece.tokens.count, to: piece.rank) }
    }

    mutating func truncate(to length: Int) {
        for rank in runs.indices {
            while let last = runs[rank].last, last.tokens.upperBound > length {
                runs[rank].removeLast()
                if last.tokens.lowerBound < length {
                    runs[rank].append(Run(tokens: last.tokens.lowerBound..<length, row: last.row))
                }
            }
        }
        self.length = min(self.length, length)
    }
}
