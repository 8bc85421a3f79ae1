import SequenceParallel
import SparseKernelsReference
import Testing

@Suite("Sharded page selection")
struct ShardedSelectionTests {
    /// The first tokens of the pages of each list, over all ranks, and the result.
    private struct Selected: Sendable {
        var pages: [[[Int]]] = []
        /// By sequence, the tokens of this rank.
        var tokens: [[Int]] = []
        var state: AttentionState
    }

    private static let lengths = [240, 47, 150, 0, 64]

    private static func problem(_ layout: ShardedProblem.Layout = .placement) -> ShardedProblem {
        ShardedProblem(
            format: .float16, metadata: PageMetadata(.minMax, logicalPageSize: 8), lengths: lengths, layout: layout)
    }

    private static func selector(
        _ configuration: KVCacheConfiguration, budget: Int, sharing: SelectionSharing, first: Int = 0, last: Int = 1
    ) throws(SparseKernelsError) -> PageSelector {
        try PageSelector(
            queryHeads: 4, configuration: configuration, tokenBudget: budget, sharing: sharing, forcedFirst: first,
            forcedLast: last)
    }

    private static func run(
        _ problem: ShardedProblem, ranks: Int, scope: ShardedPageSelector.Scope, budget: Int, sharing: SelectionSharing,
        first: Int = 0, last: Int = 1, discarding: Range<Int> = 0..<0
    ) throws -> [Selected] {
        try LocalCommunicator.run(ranks: ranks, timeLimit: 60) { (ranks) throws(SparseKernelsError) in
            let (cache, sequences) = try problem.sharded(on: ranks)
            try cache.discard(sequences[0], tokens: discarding)
            let selector = try ShardedPageSelector(
                Self.selector(cache.configuration, budget: budget, sharing: sharing, first: first, last: last), scope: scope,
                on: ranks)
            let attention = try ShardedPagedAttention(queryHeads: 4, configuration: cache.configuration, on: ranks)
            let query = try problem.query(sequences.count)
            let own = try selector.select(query: query, cache: cache, sequences: sequences, on: .serial)
            let state = try attention(query: query, cache: cache, sequences: sequences, selector: selector, on: .serial)
            var result = Selected(state: state)
            for (index, sequence) in sequences.enumerated() {
                let tokens = try cache.tokens(of: sequence).flatMap { $0 }
                result.tokens.append(tokens)
                result.pages.append(
                    (0..<own.heads).map { head in own.list(sequence: index, head: head).map { tokens[Int($0) * 16] } })
            }
            return result
        }
    }

    @Test("the best pages of all ranks are those of one machine", arguments: [1, 2, 3, 5, 8])
    func allRanks(_ ranks: Int) throws {
        let (cache, sequences) = try Self.problem().whole()
        for (budget, sharing, first, last) in [
            (96, SelectionSharing.kvHead, 0, 1), (64, .queryHead, 1, 2), (200, .kvHead, 2, 0), (5, .queryHead, 0, 0),
        ] {
            for layout in [ShardedProblem.Layout.placement, .zigzagPages] where (layout == .placement) == (budget % 3 != 0) {
                let problem = Self.problem(layout)
                let results = try Self.run(
                    problem, ranks: ranks, scope: .allRanks, budget: budget, sharing: sharing, first: first, last: last)
                let selector = try Self.selector(
                    cache.configuration, budget: budget, sharing: sharing, first: first, last: last)
                let query = try problem.query(sequences.count)
                let expected = try selector.select(query: query, cache: cache, sequences: sequences)
                for index in sequences.indices {
                    for list in 0..<expected.heads {
                        let pages = results.flatMap { $0.pages[index][list] }.sorted()
                        let one = expected.list(sequence: index, head: list).map { Int($0) * 16 }
                        #expect(pages == one, "\(ranks) ranks, budget \(budget), list \(list) of sequence \(index)")
                    }
                }
                try expectAttends(problem, results, "\(ranks) ranks, budget \(budget)")
            }
        }
    }

    @Test("ranks share a budget", arguments: [2, 3, 8])
    func eachRank(_ ranks: Int) throws {
        for layout in ShardedProblem.Layout.allCases {
            let problem = Self.problem(layout)
            let results = try Self.run(problem, ranks: ranks, scope: .eachRank, budget: 128, sharing: .kvHead)
            for result in results {
                // Pages of ⌈128 / ranks⌉ tokens, which short sequences may have all of, and at least a part of three pages.
                let most = max((127 / ranks) / 16 + 1, 2 / ranks + 1)
                for lists in result.pages { for list in lists { #expect(list.count <= most) } }
            }
            try expectAttends(problem, results, "\(ranks) ranks, \(layout)")
        }
    }

    @Test("pages that are cut compete, and discarded pages do not")
    func otherPages() throws {
        for layout in [ShardedProblem.Layout.ragged, .contiguous] {
            let problem = Self.problem(layout)
            try expectAttends(
                problem, Self.run(problem, ranks: 3, scope: .allRanks, budget: 96, sharing: .kvHead), "\(layout)")
        }
        let (cache, sequences) = try Self.problem().whole()
        try cache.discard(sequences[0], tokens: 30..<200)
        let expected = try Self.selector(cache.configuration, budget: 64, sharing: .kvHead, first: 1)
            .select(query: Self.problem().query(5), cache: cache, sequences: sequences)
        let results = try Self.run(
            Self.problem(), ranks: 3, scope: .allRanks, budget: 64, sharing: .kvHead, first: 1, discarding: 30..<200)
        for list in 0..<2 {
            let pages = results.flatMap { $0.pages[0][list] }.sorted()
            #expect(pages == expected.list(sequence: 0, head: list).map { Int($0) * 16 })
        }
    }

    /// Expects attention over the selected pages.
    private func expectAttends(
        _ problem: ShardedProblem, _ results: [Selected], _ label: String, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let owners = problem.lengths.indices.map { sequence in results.map { $0.tokens[sequence] } }
        // By sequence and list, the tokens of selected pages: rows of a rank, 16 at a time.
        var seen: [[Set<Int>]] = []
        for sequence in owners.indices {
            let lists = results[0].pages[sequence].count
            seen.append(
                (0..<lists).map { list in
                    var tokens: Set<Int> = []
                    for (rank, result) in results.enumerated() {
                        let own = owners[sequence][rank]
                        for first in result.pages[sequence][list] {
                            let row = own.firstIndex(of: first)!
                            tokens.formUnion(own[row..<min(own.count, row + 16)])
                        }
                    }
                    return tokens
                })
        }
        for result in results { #expect(bits(result.state) == bits(results[0].state), sourceLocation: sourceLocation) }
        let count = owners.count
        try ShardedOracle(problem).compare(
            results[0].state, query: problem.query(count), queryLengths: Array(repeating: 1, count: count), owners: owners,
            label, sourceLocation: sourceLocation
        ) { sequence, head, _, token in
            let lists = seen[sequence].count
            return seen[sequence][head / (4 / lists)].contains(token)
        }
    }
}
