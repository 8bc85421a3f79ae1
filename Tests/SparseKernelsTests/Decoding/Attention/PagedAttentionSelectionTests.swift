import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Paged attention: selections")
struct PagedAttentionSelectionTests {
    static let lengths = [1, 16, 17, 330, 2100]
    static let queryLengths = [1, 2, 5, 1, 3]

    /// A list for every sequence and head.
    static func selection(
        unit: Int, heads: Int, _ list: (_ sequence: Int, _ head: Int, _ limit: Int) -> [Int]
    ) throws -> KVSelection {
        var (offsets, indices): ([Int], [Int32]) = ([0], [])
        for (sequence, length) in lengths.enumerated() {
            for head in 0..<heads {
                indices += list(sequence, head, (length + unit - 1) / unit).map { Int32($0) }
                offsets.append(indices.count)
            }
        }
        return try KVSelection(
            unit: unit, sequences: lengths.count, heads: heads, offsets: offsets, indices: indices)
    }

    /// Some indices for each list, and none for every seventh one.
    private static func some(unit: Int, heads: Int, seed: UInt64) throws -> KVSelection {
        var generator = SplitMix64(seed: seed)
        var lists = 0
        return try selection(unit: unit, heads: heads) { _, _, limit in
            lists += 1
            return lists % 7 == 3 ? [] : (0..<limit).filter { _ in generator.uniform() < 0.4 }
        }
    }

    private static func all(unit: Int, heads: Int) throws -> KVSelection {
        try selection(unit: unit, heads: heads) { _, _, limit in Array(0..<limit) }
    }

    @Test("lists of pages and of tokens agree with the oracle", arguments: KVFormat.allCases)
    func lists(_ format: KVFormat) throws {
        let fixture = try PagedAttentionFixture(format, lengths: Self.lengths)
        let query = try PagedAttentionTests.query(heads: 6, Self.queryLengths)
        for (unit, heads) in [(16, 2), (16, 6), (1, 2), (1, 6)] {
            let selection = try Self.some(unit: unit, heads: heads, seed: UInt64(unit + heads))
            let expected = try fixture.expected(
                fixture.attention(queryHeads: 6), query: query, queryLengths: Self.queryLengths
            ) { sequence, head, position in
                let list = selection.list(sequence: sequence, head: head * heads / 6).map { Int($0) }
                return ReferencePagedAttention.positions(ofPages: list, pageSize: unit, length: position + 1)
            }
            for set in InstructionSet.available {
                let state = try fixture.attention(queryHeads: 6, set)(
                    query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths,
                    selection: selection)
                PagedAttentionFixture.compare(state, expected, "\(set), \(format), unit \(unit), \(heads) lists")
            }
        }
    }

    @Test("complete lists have the bits of attention without a selection", arguments: KVFormat.allCases)
    func completeLists(_ format: KVFormat) throws {
        let fixture = try PagedAttentionFixture(format, lengths: Self.lengths)
        let query = try PagedAttentionTests.query(heads: 6, Self.queryLengths)
        let pool = WorkerPool(threads: 7)
        for set in InstructionSet.available {
            let attention = try fixture.attention(queryHeads: 6, set)
            let dense = bits(
                try attention(
                    query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths))
            for (unit, heads) in [(16, 2), (16, 6), (1, 2), (1, 6)] {
                let state = try attention(
                    query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths,
                    selection: Self.all(unit: unit, heads: heads), on: pool)
                #expect(bits(state) == dense, "\(set), \(format), unit \(unit), \(heads) lists")
            }
        }
    }

    @Test("empty lists give zeros", arguments: InstructionSet.available)
    func emptyLists(_ set: InstructionSet) throws {
        let fixture = try PagedAttentionFixture(.float16, lengths: Self.lengths)
        let query = try PagedAttentionTests.query(heads: 4, Self.queryLengths)
        for unit in [1, 16] {
            let state = try fixture.attention(queryHeads: 4, set)(
                query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths,
                selection: Self.selection(unit: unit, heads: 2) { _, _, _ in [] })
            #expect(state.output.elements.allSatisfy { $0 == 0 })
            #expect(state.logSumExp.elements.allSatisfy { $0 == -.infinity })
        }
    }

    @Test("lists may and must leave out discarded pages")
    func discarded() throws {
        let fixture = try PagedAttentionFixture(.float16, lengths: Self.lengths)
        let attention = try fixture.attention(queryHeads: 4)
        let query = try PagedAttentionTests.query(heads: 4, Self.queryLengths)
        func state(_ selection: KVSelection) throws -> AttentionState {
            try attention(
                query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths,
                selection: selection)
        }
        // These are pages 3 and 4 of the fourth sequence.
        let pages = try Self.selection(unit: 16, heads: 2) { sequence, _, limit in
            (0..<limit).filter { sequence != 3 || $0 < 3 || $0 > 4 }
        }
        let tokens = try Self.selection(unit: 1, heads: 2) { sequence, _, limit in
            (0..<limit).filter { sequence != 3 || $0 < 48 || $0 >= 80 }
        }
        let before = try state(pages)
        try fixture.cache.discard(fixture.sequences[3], tokens: 48..<80)
        #expect(bits(try state(pages)) == bits(before))
        #expect(bits(try state(tokens)) == bits(before))
        for unit in [1, 16] {
            expectError(.notFound, "sequences[3]") { _ = try state(Self.all(unit: unit, heads: 2)) }
        }
    }

    // MARK: - Errors

    @Test("malformed lists are errors")
    func malformedLists() {
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, unit: Int = 1, sequences: Int = 1, heads: Int = 2,
            _ offsets: [Int], _ indices: [Int32] = [0, 1, 2], sourceLocation: SourceLocation = #_sourceLocation
        ) {
            expectError(code, argument, sourceLocation: sourceLocation) {
                _ = try KVSelection(unit: unit, sequences: sequences, heads: heads, offsets: offsets, indices: indices)
            }
        }
        expect(.invalidArgument, "unit", unit: 0, [0, 1, 3])
        expect(.invalidShape, "offsets", [0, 3])
        expect(.invalidShape, "offsets", [])
        expect(.invalidShape, "offsets", [1, 2, 3])
        expect(.invalidShape, "offsets", [0, 2, 2])
        expect(.invalidShape, "offsets", sequences: -1, [0, 1, 3])
        expect(.invalidShape, "offsets", sequences: -1, heads: -2, [0, 1, 3])
        expect(.invalidShape, "offsets", sequences: 2, heads: 0, [0])
        expect(.invalidShape, "offsets", sequences: .max, heads: .max, [0, 1, 3])
        expect(.invalidShape, "offsets", sequences: .max, heads: 1, [0, 1, 3])
        expect(.invalidShape, "offsets[2]", sequences: 3, heads: 1, [0, 2, 1, 3])
        expect(.invalidShape, "offsets[1]", [0, 100, 3])
        expect(.invalidShape, "offsets[1]", [0, .max, 3])
        expect(.invalidShape, "offsets[1]", [0, -1, 3])
        expect(.invalidArgument, "indices[1]", [0, 2, 3], [1, 1, 2])
        expect(.invalidArgument, "indices[2]", [0, 1, 3], [0, 5, 2])
        expect(.invalidArgument, "indices[0]", [0, 1, 3], [-1, 1, 2])
    }

    @Test("no sequences, and no indices")
    func smallestSelections() throws {
        #expect(try KVSelection(unit: 1, sequences: 0, heads: 4, offsets: [0], indices: []).indices.isEmpty)
        let empty = try KVSelection(unit: 16, sequences: 1, heads: 2, offsets: [0, 0, 1], indices: [9])
        #expect(empty.list(sequence: 0, head: 0).isEmpty && Array(empty.list(sequence: 0, head: 1)) == [9])
    }
}
