import Testing

@testable import SparseKernels

/// Pages that several sequences share are attended once, which changes no bit of any result.
@Suite("Paged attention: shared prefixes")
struct PagedAttentionPrefixTests {
    /// Forks of one sequence, and other sequences.
    struct Family {
        let fixture: PagedAttentionFixture
        let sequences: [PagedKVCache.SequenceID]
        let queryLengths = [1, 1, 5, 2, 70, 1, 3, 2]

        init(_ format: KVFormat, parent length: Int) throws {
            // The third one has no relatives, and the second one has a child.
            fixture = try PagedAttentionFixture(format, lengths: [length, 1300, 1040])
            let cache = fixture.cache
            let (parent, other) = (fixture.sequences[0], fixture.sequences[1])
            let twin = try cache.fork(parent)
            let longer = try cache.fork(parent)
            try fixture.append(5, to: longer)
            let onBoundary = try cache.fork(parent, at: 2048)
            try fixture.append(2, to: onBoundary)
            let early = try cache.fork(parent, at: 1500)
            try fixture.append(700, to: early)
            let child = try cache.fork(other)
            try fixture.append(3, to: child)
            // Members of different families alternate in the call.
            sequences = [parent, other, longer, twin, early, fixture.sequences[2], child, onBoundary]
        }

        func query(heads: Int) throws -> Tensor<Float> {
            try PagedAttentionTests.query(heads: heads, queryLengths)
        }
    }

    @Test("forks have the same bits together, alone, and without sharing", arguments: KVFormat.allCases)
    func sameBits(_ format: KVFormat) throws {
        let family = try Family(format, parent: 2100)
        let query = try family.query(heads: 6)
        let pools = [1, 2, 7].map { WorkerPool(threads: $0) }
        for set in InstructionSet.available {
            let sharing = try family.fixture.attention(queryHeads: 6, set)
            let plain = try family.fixture.attention(queryHeads: 6, sharesPrefixes: false, set)
            let apart = bits(
                try plain(
                    query: query, cache: family.fixture.cache, sequences: family.sequences,
                    queryLengths: family.queryLengths))
            for pool in pools {
                let together = try sharing(
                    query: query, cache: family.fixture.cache, sequences: family.sequences,
                    queryLengths: family.queryLengths, on: pool)
                #expect(bits(together) == apart, "\(set), \(format), \(pool.threads) threads")
            }
            var first = 0
            for (index, (sequence, count)) in zip(family.sequences, family.queryLengths).enumerated() {
                let tokens = first..<first + count
                let alone = try sharing(
                    query: Tensor(query.view(), heads: Array(0..<6), tokens: tokens), cache: family.fixture.cache,
                    sequences: [sequence], queryLengths: [count])
                let rows = (0..<6).flatMap { head in tokens.map { apart[head * query.shape[1] + $0] } }
                #expect(bits(alone) == rows, "\(set), \(format), sequence \(index)")
                first += count
            }
        }
    }

    @Test("forks of a long parent agree with the oracle")
    func oracle() throws {
        let fixture = try PagedAttentionFixture(.int8, lengths: [3000])
        for tokens in [1, 3, 40] {
            fixture.sequences.append(try fixture.cache.fork(fixture.sequences[0]))
            try fixture.append(tokens, to: fixture.sequences.last!)
        }
        let query = try PagedAttentionTests.query(heads: 4, [1, 1, 2, 5])
        let attention = try fixture.attention(queryHeads: 4)
        let state = try attention(
            query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [1, 1, 2, 5])
        let expected = try fixture.expected(attention, query: query, queryLengths: [1, 1, 2, 5])
        PagedAttentionFixture.compare(state, expected, "forks of 3000 tokens")
    }

    private func batch(_ family: Family, sharesPrefixes: Bool = true, mask: KVMask = .causal) throws -> PagedBatch {
        try PagedBatch(
            family.fixture.attention(queryHeads: 6, mask: mask, sharesPrefixes: sharesPrefixes),
            step: PageTables(of: family.sequences, in: family.fixture.cache, layer: 0), queryLengths: family.queryLengths,
            queryTokens: family.queryLengths.reduce(0, +), selection: nil)
    }

    @Test("whole chunks that all members see are shared, level by level")
    func plan() throws {
        let family = try Family(.float16, parent: 2100)
        let batch = try batch(family)
        // Members of the first family share 1024 tokens. `early` leaves it at 1500, the others share 1024 tokens more, and the
        // first query of `onBoundary` is at 2048.
        let shared = Dictionary(uniqueKeysWithValues: batch.sequences.map { ($0.index, $0.sharedLength) })
        #expect([0, 2, 3, 7].map { shared[$0] } == [2048, 2048, 2048, 2048])
        #expect([1, 4, 6].map { shared[$0] } == [1024, 1024, 1024])
        #expect(shared[5] == 0 && batch.prefixLevels == 2)
        // Each row attends each token of its sequence once.
        let attended = batch.groups.filter { $0.kvHead == 0 }.reduce(0) { $0 + $1.list.count * $1.rows.count }
        let pairs = try zip(family.sequences, family.queryLengths).reduce(0) {
            $0 + (try family.fixture.cache.length(of: $1.0)) * $1.1 * 3
        }
        #expect(attended == pairs)
        // In any order, every query of every sequence has one row.
        #expect(batch.sequences.map(\.index).sorted() == Array(0..<8))
        #expect(batch.groupOfRow.allSatisfy { $0 >= 0 } && batch.groupOfRow.count == 85 * 6)

        for other in [
            try self.batch(family, sharesPrefixes: false), try self.batch(family, mask: .streaming(sink: 1, window: 9)),
        ] {
            #expect(other.sequences.map(\.index) == Array(0..<8) && other.prefixesOfRow.isEmpty)
        }
    }

    @Test("a call may name the same sequence twice")
    func twice() throws {
        let fixture = try PagedAttentionFixture(.float16, lengths: [2100])
        let sequence = fixture.sequences[0]
        let query = try PagedAttentionTests.query(heads: 4, [1, 2])
        let attention = try fixture.attention(queryHeads: 4)
        let both = try attention(
            query: query, cache: fixture.cache, sequences: [sequence, sequence], queryLengths: [1, 2])
        let last = try attention(
            query: Tensor(query.view(), heads: Array(0..<4), tokens: 1..<3), cache: fixture.cache, sequences: [sequence],
            queryLengths: [2])
        #expect(bits(both, tokens: 1..<3) == bits(last))
    }
}
