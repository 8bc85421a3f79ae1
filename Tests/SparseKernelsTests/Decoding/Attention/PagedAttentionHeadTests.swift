import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Paged attention: selected heads")
struct PagedAttentionHeadTests {
    static let lengths = [1, 16, 17, 330, 2100]
    static let queryLengths = [1, 2, 5, 1, 3]

    /// Some heads for each sequence, none for the second and all for the third.
    static func some(_ heads: Int, seed: UInt64) throws -> HeadSelection {
        var generator = SplitMix64(seed: seed)
        var (offsets, indices): ([Int], [Int32]) = ([0], [])
        for sequence in lengths.indices {
            for head in 0..<heads where sequence == 2 || sequence != 1 && generator.uniform() < 0.5 {
                indices.append(Int32(head))
            }
            offsets.append(indices.count)
        }
        return try HeadSelection(sequences: lengths.count, heads: heads, offsets: offsets, indices: indices)
    }

    /// The rows of all queries, as bits: those of `state` for selected heads, and zeros and −∞ for others.
    private static func masked(_ state: AttentionState, _ selection: HeadSelection, queryLengths: [Int]) -> [[UInt32]] {
        let all = bits(state)
        let (heads, tokens) = (state.output.shape[0], state.output.shape[1])
        let skipped = Array(repeating: Float(0).bitPattern, count: state.output.shape[2]) + [(-Float.infinity).bitPattern]
        var rows = all
        var first = 0
        for (sequence, count) in queryLengths.enumerated() {
            let list = selection.list(sequence: sequence)
            for head in 0..<heads where !list.contains(Int32(head * selection.heads / heads)) {
                for token in first..<first + count { rows[head * tokens + token] = skipped }
            }
            first += count
        }
        return rows
    }

    @Test("selected heads have the bits of attention in all heads, others are zero", arguments: KVFormat.allCases)
    func selected(_ format: KVFormat) throws {
        let fixture = try PagedAttentionFixture(format, lengths: Self.lengths)
        for queryLengths in [Self.queryLengths, [1, 1, 1, 1, 1]] {
            let query = try PagedAttentionTests.query(heads: 6, queryLengths)
            for mask: KVMask in [.causal, .full, .window(left: 20, right: 0), .streaming(sink: 5, window: 40)] {
                for set in InstructionSet.available {
                    let attention = try fixture.attention(queryHeads: 6, mask: mask, set)
                    let dense = try attention(
                        query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: queryLengths)
                    for heads in [2, 6] {
                        let selection = try Self.some(heads, seed: UInt64(heads))
                        for threads in [1, 7] {
                            let state = try attention(
                                query: query, cache: fixture.cache, sequences: fixture.sequences,
                                queryLengths: queryLengths,
                                heads: selection, on: WorkerPool(threads: threads))
                            #expect(
                                bits(state) == Self.masked(dense, selection, queryLengths: queryLengths),
                                "\(set), \(format), \(mask), \(heads) heads, \(threads) threads")
                        }
                    }
                }
            }
        }
    }

    @Test("heads and tokens are selected together", arguments: [KVFormat.float16, .int8])
    func withTokens(_ format: KVFormat) throws {
        let fixture = try PagedAttentionFixture(format, lengths: Self.lengths)
        let query = try PagedAttentionTests.query(heads: 6, Self.queryLengths)
        for (unit, lists) in [(16, 2), (16, 6), (1, 2), (1, 6)] {
            let tokens = try PagedAttentionSelectionTests.selection(unit: unit, heads: lists) { sequence, head, limit in
                (0..<limit).filter { ($0 + head) % 3 != sequence % 3 }
            }
            for set in InstructionSet.available {
                let attention = try fixture.attention(queryHeads: 6, set)
                let whole = try attention(
                    query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths,
                    selection: tokens)
                for heads in [2, 6] {
                    let selection = try Self.some(heads, seed: 3)
                    let state = try attention(
                        query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths,
                        selection: tokens, heads: selection)
                    #expect(
                        bits(state) == Self.masked(whole, selection, queryLengths: Self.queryLengths),
                        "\(set), unit \(unit), \(lists) lists, \(heads) heads")
                }
            }
        }
    }

    @Test("selected heads agree with the oracle, ALiBi slopes and soft caps of their own included")
    func oracle() throws {
        let fixture = try PagedAttentionFixture(.float16, lengths: Self.lengths)
        let query = try PagedAttentionTests.query(heads: 6, Self.queryLengths)
        let slopes: [Float] = [0.5, 0.25, 0.125, 0.0625, 0.03, 0.01]
        for set in InstructionSet.available {
            let attention = try fixture.attention(queryHeads: 6, logitsSoftCap: 3, aliBiSlopes: slopes, set)
            let selection = try Self.some(6, seed: 8)
            let expected = try fixture.expected(attention, query: query, queryLengths: Self.queryLengths) {
                sequence, head, position in
                selection.list(sequence: sequence).contains(Int32(head)) ? Array(0..<max(0, position + 1)) : []
            }
            let state = try attention(
                query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths,
                heads: selection)
            PagedAttentionFixture.compare(state, expected, "\(set)")
        }
    }

    @Test("forked sequences select heads of their own; all heads are attention without a selection; sinks are skipped, too")
    func forksAndSinks() throws {
        let fixture = try PagedAttentionFixture(.float16, lengths: [2100])
        let fork = try fixture.cache.fork(fixture.sequences[0])
        let sequences = [fixture.sequences[0], fork]
        let query = try PagedAttentionTests.query(heads: 6, [1, 1])
        let attention = try PagedAttention(
            queryHeads: 6, configuration: fixture.cache.configuration,
            modifiers: ScoreModifiers(sinkLogits: [1, 2, 3, 4, 5, 6]))
        let dense = try attention(query: query, cache: fixture.cache, sequences: sequences)
        for heads in [2, 6] {
            let all = try HeadSelection(all: heads, sequences: 2)
            #expect(bits(try attention(query: query, cache: fixture.cache, sequences: sequences, heads: all)) == bits(dense))
            let some = try HeadSelection(sequences: 2, heads: heads, offsets: [0, 1, 2], indices: [0, 1])
            let state = try attention(query: query, cache: fixture.cache, sequences: sequences, heads: some)
            #expect(bits(state) == Self.masked(dense, some, queryLengths: [1, 1]))
        }
    }

    // MARK: - Selections

    @Test("the strongest heads are those of a sort; ties go to the lower head")
    func strongest() throws {
        let scores = try Tensor<Float>([3, 4], [1, 3, 2, 3, -.infinity, 0, -0, .infinity, 5, 5, 5, 5])
        let selection = try HeadSelection.strongest(scores, count: 2)
        #expect(selection.offsets == [0, 2, 4, 6] && selection.indices == [1, 3, 1, 3, 0, 1])
        #expect(selection.density == 0.5)
        #expect(try HeadSelection.strongest(scores, count: 0).indices.isEmpty)
        #expect(try HeadSelection.strongest(scores, count: 4) == HeadSelection(all: 4, sequences: 3))
        #expect(try HeadSelection(all: 4, sequences: 0).density == 1)
    }

    @Test("errors name what disagrees, with both numbers")
    func errors() throws {
        let scores = try Tensor<Float>([2, 3], [1, 2, 3, 4, .nan, 5])
        expectError(.invalidArgument, "count", containing: "0 to 3", "4") {
            _ = try HeadSelection.strongest(scores, count: 4)
        }
        expectError(.invalidArgument, "scores[1, 1]", containing: "nan") {
            _ = try HeadSelection.strongest(scores, count: 1)
        }
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, sequences: Int = 2, heads: Int = 3, _ offsets: [Int],
            _ indices: [Int32], sourceLocation: SourceLocation = #_sourceLocation
        ) {
            expectError(code, argument, sourceLocation: sourceLocation) {
                _ = try HeadSelection(sequences: sequences, heads: heads, offsets: offsets, indices: indices)
            }
        }
        expect(.invalidArgument, "heads", heads: 0, [0, 0, 0], [])
        expect(.invalidShape, "offsets", [0, 1], [0])
        expect(.invalidShape, "offsets", sequences: -1, [], [])
        expect(.invalidShape, "offsets", [0, 1, 1], [0, 1])
        expect(.invalidShape, "offsets[1]", [0, 3, 2], [0, 1])
        expect(.invalidArgument, "indices[1]", [0, 2, 2], [1, 1])
        expect(.invalidArgument, "indices[0]", [0, 1, 2], [-1, 1])
        expect(.invalidArgument, "indices[1]", [0, 1, 2], [0, 3])

        let fixture = try PagedAttentionFixture(.float16, lengths: Self.lengths)
        let attention = try fixture.attention(queryHeads: 6)
        let query = try PagedAttentionTests.query(heads: 6, Self.queryLengths)
        for (selection, argument, numbers) in [
            (try HeadSelection(all: 2, sequences: 4), "heads.sequences", ["5", "4"]),
            (try HeadSelection(all: 3, sequences: 5), "heads.heads", ["kvHeads (2)", "queryHeads (6)", "3"]),
        ] {
            expectError(.invalidShape, argument, containing: numbers) {
                _ = try attention(
                    query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths,
                    heads: selection)
            }
        }
    }
}
