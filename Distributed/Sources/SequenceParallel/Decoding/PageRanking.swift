/// The competition of the pages of all ranks: what ranks tell each other, and who wins.
///
/// For a sequence a rank sends the number of its pages, the first tokens of those at its ends, which may be forced, and for
/// each list the first tokens and scores of its best pages. Of the pages that win, a rank has at most as many as it sends.
struct PageRanking {
    private let selector: PageSelector
    private let ranks: Int
    /// For each sequence, the most pages of a list that a rank sends; 0 when all pages of the sequence are kept.
    private let candidates: [Int]
    /// The word of a rank's message where a sequence begins.
    private let starts: [Int]
    /// Words of a rank's message.
    let wordCount: Int
    var byteCount: Int { wordCount * MemoryLayout<Int>.stride }

    /// A page as ranks tell each other. Pages of a higher key come first, and of one key those of earlier tokens.
    private struct Candidate {
        let key: Int32
        let token: Int
    }

    init(_ selector: PageSelector, ranks: Int, entries: [ShardedKVCache.Entry], layer: Int) {
        self.selector = selector
        self.ranks = ranks
        let pageSize = selector.configuration.pageSize
        var (candidates, starts, words) = ([Int](), [Int](), 0)
        for entry in entries {
            let length = entry.lengths[layer]
            // Discarded pages are counted, because only their owners know them; then too many compete, and not too few.
            var (pages, most) = (0, 0)
            for rank in 0..<ranks {
                let own = (entry.tokens.count(of: rank, below: length) + pageSize - 1) / pageSize
                pages += own
                most = max(most, own)
            }
            let competes = length > selector.tokenBudget && pages > selector.pageBudget
            candidates.append(competes ? min(most, selector.pageBudget) : 0)
            starts.append(words)
            if competes {
                words += 1 + selector.forcedFirst + selector.forcedLast + selector.lists * candidates[candidates.count - 1] * 2
            }
        }
        (self.candidates, self.starts, wordCount) = (candidates, starts, words)
    }

    /// Whether pages of a sequence have to be left out, perhaps.
    func competes(_ sequence: Int) -> Bool { candidates[sequence] > 0 }

    // MARK: - Messages

    /// Writes what a rank says of a sequence into its part of a message.
    func write(
        _ pages: RankPages, ofSequence sequence: Int, rank: Int, to message: MessageBuffer
    ) throws(SparseKernelsError) {
        var words = message.mutableElements(Int.self, atByte: rank * byteCount, count: wordCount)
        var place = starts[sequence]
        let count = pages.positions.count
        words[place] = count
        place += 1
        for index in 0..<selector.forcedFirst {
            words[place] = index < count ? pages.tokens[index] : -1
            place += 1
        }
        for index in 0..<selector.forcedLast {
            words[place] = index < count ? pages.tokens[count - 1 - index] : -1
            place += 1
        }
        guard let scores = pages.scores else { return }
        for list in 0..<selector.lists {
            let row = scores.span.extracting(list * count..<(list + 1) * count)
            let best = try TopK.select(scores: row, count: candidates[sequence])
            for index in 0..<candidates[sequence] {
                words[place] = index < best.count ? pages.tokens[best[index]] : -1
                words[place + 1] = index < best.count ? Int(Self.key(row[best[index]])) : 0
                place += 2
            }
        }
    }

    /// The pages of a list that a rank reads, as positions in its page table.
    func best(
        ofSequence sequence: Int, list: Int, _ own: RankPages, rank: Int, _ message: MessageBuffer
    ) -> [Int32] {
        let (first, last) = (selector.forcedFirst, selector.forcedLast)
        var (pages, firsts, lasts): (Int, [Int], [Int]) = (0, [], [])
        var found: [Candidate] = []
        for rank in 0..<ranks {
            let words = message.elements(Int.self, atByte: rank * byteCount, count: wordCount)
            var place = starts[sequence]
            pages += words[place]
            place += 1
            for _ in 0..<first {
                if words[place] >= 0 { firsts.append(words[place]) }
                place += 1
            }
            for _ in 0..<last {
                if words[place] >= 0 { lasts.append(words[place]) }
                place += 1
            }
            place += list * candidates[sequence] * 2
            for _ in 0..<candidates[sequence] {
                if words[place] >= 0 {
                    found.append(Candidate(key: Int32(truncatingIfNeeded: words[place + 1]), token: words[place]))
                }
                place += 2
            }
        }
        if pages <= selector.pageBudget { return own.positions }
        var kept = Set(firsts.sorted().prefix(first))
        kept.formUnion(lasts.sorted(by: >).prefix(last))
        found.removeAll { kept.contains($0.token) }
        found.sort { $0.key != $1.key ? $0.key > $1.key : $0.token < $1.token }
        for candidate in found.prefix(selector.pageBudget - kept.count) { kept.insert(candidate.token) }
        var positions: [Int32] = []
        for (index, token) in own.tokens.enumerated() where kept.contains(token) { positions.append(own.positions[index]) }
        return positions
    }

    /// An integer with the order of scores: −∞ < … < −x < 0 < x < … < ∞ < NaN. The zeros are equal, and so are all NaN.
    private static func key(_ score: Float) -> Int32 {
        let bits = Int32(bitPattern: (score + 0).bitPattern)
        return score.isNaN ? .max : bits ^ ((bits >> 31) & .max)
    }
}
