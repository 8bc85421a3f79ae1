import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Selection: reuse of pages")
struct ReusableSelectionTests {
    static func append(_ count: Int, to sequence: PagedKVCache.SequenceID, of cache: PagedKVCache, seed: UInt64) throws {
        let key = try Tensor<Float16>.normal([2, count, 24], seed: seed)
        try cache.append(key: key.view(), value: key.view(), to: sequence)
    }

    @Test(
        "selects when the length is a multiple of the interval, and adds the pages of later tokens",
        arguments: [1, 3, 4, 5, 64])
    func intervals(_ interval: Int) throws {
        let fixture = try PageSelectionFixture(lengths: [610], pages: 20)
        let (cache, sequence) = (fixture.cache, fixture.sequences[0])
        for last in [0, 1] {
            let selector = try PageSelector(
                queryHeads: 4, configuration: cache.configuration, tokenBudget: 256, forcedLast: last)
            var reusable = try ReusableSelection(selector, interval: interval)
            var (expected, selected, selections) = ([[Int]](), 0, 0)
            for step in 0..<80 {
                let length = try cache.length(of: sequence)
                let query = try Tensor<Float>.normal([4, 1, 24], seed: UInt64(step + 50))
                if step == 0 || length % interval == 0 {
                    expected = try selector.select(query: query.view(), cache: cache, sequences: [sequence]).lists(sequence: 0)
                    (selected, selections) = (length, selections + 1)
                }
                let actual = try reusable.select(query: query.view(), cache: cache, sequences: [sequence])
                // The pages that hold a token appended since the selection.
                let later = length > selected ? Set(selected / 64...(length - 1) / 64) : []
                #expect(actual.lists(sequence: 0) == expected.map { later.union($0).sorted() }, "\(length)")
                try Self.append(1, to: sequence, of: cache, seed: UInt64(step))
            }
            #expect(reusable.selectionCount == selections)
            try cache.truncate(sequence, to: 610)
        }
    }

    @Test("every sequence of a batch follows its own length")
    func batches() throws {
        let fixture = try PageSelectionFixture(lengths: [610, 0, 333, 64], pages: 40)
        let cache = fixture.cache
        let selector = try PageSelector(
            queryHeads: 4, configuration: cache.configuration, tokenBudget: 192, sharing: .queryHead)
        var batch = try ReusableSelection(selector)
        var alone = try fixture.sequences.map { _ in try ReusableSelection(selector) }
        for step in 0..<9 {
            let query = try Tensor<Float>.normal([4, 4, 24], seed: UInt64(step))
            let together = try batch.select(query: query.view(), cache: cache, sequences: fixture.sequences)
            for (index, sequence) in fixture.sequences.enumerated() {
                let row = try Tensor<Float>([4, 1, 24]) { query[flat: ($0 / 24 * 4 + index) * 24 + $0 % 24] }
                let single = try alone[index].select(query: row.view(), cache: cache, sequences: [sequence])
                #expect(single.lists(sequence: 0) == together.lists(sequence: index), "\(step), \(index)")
                try Self.append(1 + index, to: sequence, of: cache, seed: UInt64(step))
            }
        }
    }

    @Test("a shorter sequence, a forgotten one and a new one with an old slot are selected anew")
    func invalidation() throws {
        let fixture = try PageSelectionFixture(lengths: [601], pages: 20)
        let (cache, sequence) = (fixture.cache, fixture.sequences[0])
        let selector = try PageSelector(queryHeads: 4, configuration: cache.configuration, tokenBudget: 192)
        var reusable = try ReusableSelection(selector, interval: 100)
        func select(_ sequence: PagedKVCache.SequenceID) throws -> KVSelection {
            try reusable.select(query: fixture.query.view(), cache: cache, sequences: [sequence])
        }
        _ = try select(sequence)
        _ = try select(sequence)
        #expect(reusable.selectionCount == 1)
        reusable.forget(sequence)
        _ = try select(sequence)
        #expect(reusable.selectionCount == 2)
        try cache.truncate(sequence, to: 450)
        let shorter = try select(sequence)
        #expect(reusable.selectionCount == 3 && shorter.lists(sequence: 0).allSatisfy { $0.last == 7 })
        try cache.free(sequence)
        expectError(.unknownSequence, "sequence") { _ = try select(sequence) }
        let next = cache.makeSequence()
        try Self.append(333, to: next, of: cache, seed: 5)
        _ = try select(next)
        #expect(reusable.selectionCount == 4)
        // Entries of freed sequences are removed meanwhile.
        for index in 0..<200 {
            let short = cache.makeSequence()
            try Self.append(1, to: short, of: cache, seed: UInt64(index))
            _ = try select(short)
            try cache.free(short)
        }
        #expect(reusable.selectionCount == 204)
    }

    @Test("pages of given tokens are added to every list")
    func covering() throws {
        let selection = try KVSelection(
            unit: 16, sequences: 2, heads: 2, offsets: [0, 3, 4, 4, 5], indices: [0, 2, 5, 3, 4])
        let covered = try selection.covering([40..<70, 0..<0])
        #expect(covered.lists(sequence: 0) == [[0, 2, 3, 4, 5], [2, 3, 4]])
        #expect(covered.lists(sequence: 1) == [[], [4]])
        #expect(try selection.covering([5..<5, 66..<67]).lists(sequence: 1) == [[4], [4]])
        #expect(try selection.covering([0..<0, 0..<0]) == selection)
        let tokens = try KVSelection(unit: 1, sequences: 1, heads: 1, offsets: [0, 2], indices: [3, 9])
        #expect(try tokens.covering([8..<11]).lists(sequence: 0) == [[3, 8, 9, 10]])
        expectError(.invalidShape, "positions") { _ = try selection.covering([0..<1]) }
        expectError(.invalidArgument, "positions[1]") { _ = try selection.covering([0..<1, -1..<1]) }
        expectError(.invalidArgument, "positions[0]") { _ = try selection.covering([0..<Int.max, 0..<1]) }
    }

    @Test("bad options and operands are errors that name them")
    func errors() throws {
        let fixture = try PageSelectionFixture(lengths: [100, 70])
        let selector = try PageSelector(queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: 64)
        expectError(.invalidArgument, "interval") { _ = try ReusableSelection(selector, interval: 0) }
        var reusable = try ReusableSelection(selector)
        expectError(.invalidArgument, "sequences") {
            _ = try reusable.select(
                query: fixture.query.view(), cache: fixture.cache, sequences: [fixture.sequences[0], fixture.sequences[0]])
        }
        expectError(.invalidShape, "query") {
            _ = try reusable.select(query: fixture.query.view(), cache: fixture.cache, sequences: [fixture.sequences[0]])
        }
        #expect(reusable.selectionCount == 0)
    }
}
