import SparseKernelsReference
import TestSupport
import Testing

@testable import SparseKernels

@Suite("Cascade attention")
struct CascadeAttentionTests {
    /// A tree: five branches share 2048 tokens, of which three share 1024 more; a relative from 1100 on; a stranger.
    private static func tree(_ format: KVFormat) throws -> PagedAttentionFixture {
        let fixture = try PagedAttentionFixture(format, lengths: [2100, 1050])
        let (cache, root) = (fixture.cache, fixture.sequences[0])
        let trunk = try cache.fork(root, at: 2060)
        try fixture.append(1100, to: trunk)
        var branches: [PagedKVCache.SequenceID] = []
        for tokens in [1, 7, 40] {
            branches.append(try cache.fork(trunk))
            try fixture.append(tokens, to: branches.last!)
        }
        let sibling = try cache.fork(root)
        try fixture.append(3, to: sibling)
        let early = try cache.fork(root, at: 1100)
        try fixture.append(9, to: early)
        // Relatives do not follow each other.
        fixture.sequences = [branches[0], fixture.sequences[1], root, branches[1], early, sibling, branches[2]]
        return fixture
    }

    private static func cascade(
        _ fixture: PagedAttentionFixture, minimumRows: Int = 1, cap: Float? = nil, sinks: [Float]? = nil,
        _ set: InstructionSet? = nil
    ) throws -> CascadeAttention {
        try CascadeAttention(
            queryHeads: 6, configuration: fixture.cache.configuration,
            modifiers: ScoreModifiers(logitsSoftCap: cap, sinkLogits: sinks), minimumRows: minimumRows, instructionSet: set)
    }

    @Test("branches of branches agree with the oracle, on any number of threads", arguments: KVFormat.allCases)
    func oracle(_ format: KVFormat) throws {
        let fixture = try Self.tree(format)
        let ones = Array(repeating: 1, count: fixture.sequences.count)
        let query = try PagedAttentionTests.query(heads: 6, ones)
        let cap: Float? = format == .float16 ? 3 : nil
        let exact = try fixture.expected(fixture.attention(queryHeads: 6, logitsSoftCap: cap), query: query, queryLengths: ones)
        var largest = 0.0
        for sequence in fixture.sequences {
            largest = try fixture.cache.values(of: sequence).elements.reduce(largest) { max($0, Double(abs($1))) }
        }
        // Parts are as exact as the whole; each of at most two merges adds the rounding of its weights.
        let expected = exact.map {
            TokenKernelTests.Expected(
                row: $0.row, output: 2 * $0.output + 2 * ($0.logSumExp + 4 * AttentionErrorBound.unitRoundoff) * largest,
                logSumExp: 2 * $0.logSumExp + 4 * AttentionErrorBound.unitRoundoff * abs($0.row.logSumExp))
        }
        for set in InstructionSet.available {
            let cascade = try Self.cascade(fixture, cap: cap, set)
            var all: [[[UInt32]]] = []
            for threads in [1, 2, 7] {
                let state = try cascade(
                    query: query, cache: fixture.cache, sequences: fixture.sequences, on: WorkerPool(threads: threads))
                PagedAttentionFixture.compare(state, expected, "\(set), \(format)")
                all.append(bits(state))
            }
            #expect(all[0] == all[1] && all[0] == all[2], "\(set), \(format)")
        }
    }

    @Test("what fewer rows share is paged attention, to the bit")
    func minimum() throws {
        let fixture = try Self.tree(.float16)
        let query = try PagedAttentionTests.query(heads: 6, Array(repeating: 1, count: 7))
        let paged = try PagedAttention(queryHeads: 6, configuration: fixture.cache.configuration)
        let expected = bits(try paged(query: query, cache: fixture.cache, sequences: fixture.sequences))
        // Six relatives of three query heads share 1024 tokens.
        for rows in [19, Int.max] {
            let cascade = try Self.cascade(fixture, minimumRows: rows)
            #expect(bits(try cascade(query: query, cache: fixture.cache, sequences: fixture.sequences)) == expected)
        }
        let batch = { (rows: Int) in
            try PagedBatch(
                paged, step: PageTables(of: fixture.sequences, in: fixture.cache, layer: 0), queryLengths: nil, queryTokens: 7,
                selection: nil, separateRows: rows)
        }
        #expect(try batch(18).separate.map(\.tokens) == [0..<1024])
        #expect(try batch(10).separate.map(\.tokens) == [0..<1024, 1024..<2048])
        #expect(try batch(9).separate.map(\.tokens) == [0..<1024, 1024..<2048, 2048..<3072])
        // Without relatives there is nothing to share, and with biases by position nothing is.
        let alone = try Self.cascade(fixture)
        let one = Array(fixture.sequences[1...1])
        let first = try Tensor(query.view(), heads: Array(0..<6), tokens: 1..<2)
        #expect(
            bits(try alone(query: first, cache: fixture.cache, sequences: one))
                == bits(try paged(query: first, cache: fixture.cache, sequences: one)))
        let biased = try CascadeAttention(
            queryHeads: 6, configuration: fixture.cache.configuration,
            modifiers: ScoreModifiers(aliBiSlopes: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), minimumRows: 1)
        #expect(biased.minimumRows == .max)
    }

    @Test("a learned logit in the denominator counts once")
    func sinks() throws {
        let fixture = try Self.tree(.float32)
        let query = try PagedAttentionTests.query(heads: 6, Array(repeating: 1, count: 7))
        let sinks: [Float] = [0, 3, -2, 8, 1, 0.5]
        let cascade = try Self.cascade(fixture, sinks: sinks)
        let state = try cascade(query: query, cache: fixture.cache, sequences: fixture.sequences)
        let paged = try cascade.attention(query: query, cache: fixture.cache, sequences: fixture.sequences)
        for (a, b) in zip(state.output.elements, paged.output.elements) { #expect(abs(a - b) < 1e-5) }
        for (a, b) in zip(state.logSumExp.elements, paged.logSumExp.elements) { #expect(abs(a - b) < 1e-5) }
    }

    @Test("elements that are not finite affect the branches that see them, and no others")
    func nonFinite() throws {
        let fixture = try Self.tree(.float32)
        let query = try PagedAttentionTests.query(heads: 6, Array(repeating: 1, count: 7))
        let cascade = try Self.cascade(fixture)
        let clean = bits(try cascade(query: query, cache: fixture.cache, sequences: fixture.sequences))
        // A token that the trunk's branches alone have, in pages that were forked.
        let nan = try Tensor<Float>([2, 1, 8]) { _ in .nan }
        let value = try Tensor<Float>([2, 1, 5]) { _ in .nan }
        try fixture.cache.append(key: nan.view(), value: value.view(), to: fixture.sequences[3])
        let spoilt = try cascade(query: query, cache: fixture.cache, sequences: fixture.sequences)
        for (row, (a, b)) in zip(bits(spoilt), clean).enumerated() {
            if row % 7 == 3 { #expect(Float(bitPattern: a[0]).isNaN) } else { #expect(a == b) }
        }
    }

    @Test("operands that do not fit are errors, empty batches are not")
    func errors() throws {
        let fixture = try Self.tree(.float16)
        let cache = fixture.cache
        expectError(.invalidArgument, "minimumRows") { _ = try Self.cascade(fixture, minimumRows: 0) }
        expectError(.invalidShape, "queryHeads") { _ = try CascadeAttention(queryHeads: 3, configuration: cache.configuration) }
        let cascade = try Self.cascade(fixture)
        let query = try PagedAttentionTests.query(heads: 6, [1, 1])
        expectError(.invalidShape, "query") { _ = try cascade(query: query, cache: cache, sequences: fixture.sequences) }
        expectError(.invalidArgument, "layer") {
            _ = try cascade(query: query, cache: cache, sequences: Array(fixture.sequences.prefix(2)), layer: 1)
        }
        var small = try Tensor<Float>(zeros: [6, 1, 5])
        expectError(.invalidShape, "output") {
            try cascade.run(
                query: query.view(), cache: cache, sequences: Array(fixture.sequences.prefix(2)), output: small.mutableView())
        }
        let none = try cascade(query: Tensor<Float>(zeros: [6, 0, 8]), cache: cache, sequences: [])
        #expect(none.output.shape == [6, 0, 5])
        let freed = fixture.sequences[0]
        try cache.free(freed)
        expectError(.unknownSequence, "sequence") {
            _ = try cascade(query: query, cache: cache, sequences: [freed, fixture.sequences[1]])
        }
    }
}
