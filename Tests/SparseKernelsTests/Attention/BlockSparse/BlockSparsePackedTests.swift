import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Sequences of different lengths in one call: each is attended as if it were alone.
@Suite("Packed batches")
struct BlockSparsePackedTests {
    /// Lengths of one sequence and the patterns of its heads: 1 in all, 2 (per KV head) or 4 (per query head).
    struct Sequence: Sendable {
        var queries: Int
        var keys: Range<Int>
        var patterns: @Sendable (_ queries: Int, _ keys: Int, _ isCausal: Bool) throws -> [HeadPattern]
    }

    static let dense: @Sendable (Int, Int, Bool) throws -> [HeadPattern] = { _, _, _ in [.dense] }

    static let masked: @Sendable (Int, Int, Bool) throws -> [HeadPattern] = { queries, keys, isCausal in
        let grid = try BlockGrid(
            queryLength: queries, keyLength: keys, queryBlockSize: 16, keyBlockSize: 24, isCausal: isCausal)
        let mask = try BlockMask.random(grid, heads: 4, density: 0.6, seed: UInt64(queries))
        return (0..<4).map { .blockSparse(mask, head: $0) }
    }

    static let mixed: @Sendable (Int, Int, Bool) throws -> [HeadPattern] = { queries, keys, isCausal in
        let runs = try KeyRuns.random(
            query: BlockPartition(length: queries, blockSize: 20), keyLength: keys, longest: 9, seed: UInt64(keys))
        return [isCausal ? .streaming(sink: 2, local: 11) : .dense, .runs(runs)]
    }

    static let batches: [[Sequence]] = [
        // Lengths of 1, queries shorter than keys, and adjacent sequences.
        [
            Sequence(queries: 1, keys: 0..<1, patterns: dense), Sequence(queries: 60, keys: 1..<90, patterns: masked),
            Sequence(queries: 1, keys: 90..<190, patterns: mixed), Sequence(queries: 49, keys: 190..<239, patterns: mixed),
        ],
        // A prefix of keys that all sequences share, keys out of order, and gaps that no sequence reads.
        [
            Sequence(queries: 30, keys: 0..<100, patterns: masked), Sequence(queries: 30, keys: 0..<100, patterns: mixed),
            Sequence(queries: 7, keys: 150..<239, patterns: dense), Sequence(queries: 20, keys: 20..<60, patterns: masked),
        ],
        [Sequence(queries: 200, keys: 30..<239, patterns: masked)],
    ]

    @Test("every sequence is attended alone", arguments: batches.indices, [true, false])
    func packed(_ index: Int, _ isCausal: Bool) throws {
        for modifiers in [ScoreModifiers(), ScoreModifiers(logitsSoftCap: 4)] {
            try Self.check(Self.batches[index], isCausal: isCausal, modifiers: modifiers)
        }
    }

    @Test("positions of ALiBi count within a sequence", arguments: [true, false])
    func slopes(_ isCausal: Bool) throws {
        let batch = [
            Sequence(queries: 20, keys: 0..<31, patterns: Self.masked),
            Sequence(queries: 9, keys: 31..<70, patterns: Self.dense),
            Sequence(queries: 40, keys: 60..<239, patterns: Self.masked),
        ]
        try Self.check(batch, isCausal: isCausal, modifiers: ScoreModifiers(aliBiSlopes: [0.25, -0.125, 0.5, 0]))
    }

    /// The oracle attends each sequence by itself, from its part of the packed operands.
    static func check(_ batch: [Sequence], isCausal: Bool, modifiers: ScoreModifiers) throws {
        let queries = batch.reduce(0) { $0 + $1.queries }
        let shape = try AttentionShape(
            queryLength: queries, keyLength: 239, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
        let operands = try BlockSparseOperands(shape)
        var sequences: [BlockSparseAttention.PackedSequence] = []
        var rows: [[ReferenceAttention.Row]] = Array(repeating: [], count: 4)
        var pairs = 0
        var first = 0
        for sequence in batch {
            let patterns = try sequence.patterns(sequence.queries, sequence.keys.count, isCausal)
            sequences.append(.init(queries: first..<first + sequence.queries, keys: sequence.keys, heads: patterns))
            let part = try AttentionShape(
                queryLength: sequence.queries, keyLength: sequence.keys.count, queryHeads: 4, kvHeads: 2, headDim: 12,
                valueDim: 7)
            let sees = visibility(patterns, part, isCausal: isCausal)
            pairs += countPairs(part, sees)
            let alone = try referenceRows(
                part, modifiers: modifiers, query: tokens(operands.query, first..<first + sequence.queries),
                key: tokens(operands.key, sequence.keys), value: tokens(operands.value, sequence.keys), sees: sees)
            for row in alone { rows[row.head].append(row) }
            first += sequence.queries
        }
        for set in InstructionSet.available {
            let attention = try BlockSparseAttention(
                shape, sequences: sequences, isCausal: isCausal, modifiers: modifiers, instructionSet: set)
            #expect(attention.visiblePairs == pairs)
            let result = try attend(attention, query: operands.query, key: operands.key, value: operands.value)
            expectMatches(
                result.output, result.logSumExp, rows.flatMap { $0 }, headDim: 12, logitsSoftCap: modifiers.logitsSoftCap,
                "\(set)")
        }
    }

    /// Some tokens of every head.
    static func tokens(_ tensor: Tensor<Float>, _ range: Range<Int>) throws -> Tensor<Float> {
        let (heads, all, channels) = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
        return try Tensor([heads, range.count, channels]) { flat in
            let (row, channel) = (flat / channels, flat % channels)
            return tensor[flat: (row / range.count * all + range.lowerBound + row % range.count) * channels + channel]
        }
    }

    @Test("a sequence has the bits that it has alone", arguments: InstructionSet.available)
    func sameBitsAsAlone(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 80, keyLength: 239, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
        let operands = try BlockSparseOperands(shape)
        let (a, b) = try (Self.masked(30, 139, true), Self.masked(50, 100, true))
        let packed = try BlockSparseAttention(
            shape,
            sequences: [
                .init(queries: 0..<30, keys: 100..<239, heads: a), .init(queries: 30..<80, keys: 0..<100, heads: b),
            ], isCausal: true, instructionSet: set)(query: operands.query, key: operands.key, value: operands.value)
        for (queries, keys, patterns) in [(0..<30, 100..<239, a), (30..<80, 0..<100, b)] {
            let part = try AttentionShape(
                queryLength: queries.count, keyLength: keys.count, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
            let alone = try BlockSparseAttention(part, heads: patterns, isCausal: true, instructionSet: set)(
                query: Self.tokens(operands.query, queries), key: Self.tokens(operands.key, keys),
                value: Self.tokens(operands.value, keys))
            #expect(try Self.tokens(packed.output, queries).bits == alone.output.bits)
        }
    }

    @Test("offsets name the same sequences")
    func offsets() throws {
        typealias Packed = BlockSparseAttention.PackedSequence
        let sequences = try Packed.sequences(queryOffsets: [0, 3, 10], keyOffsets: [0, 5, 20], heads: [[.dense]])
        #expect(sequences.map(\.queries) == [0..<3, 3..<10] && sequences.map(\.keys) == [0..<5, 5..<20])
        #expect(sequences.allSatisfy { $0.heads == [.dense] })
        let shape = try AttentionShape(queryLength: 10, keyLength: 20, queryHeads: 2, kvHeads: 1, headDim: 4)
        let plan = try BlockSparseAttention(shape, sequences: sequences, isCausal: true)
        // Rows of sequence 0 see 3, 4 and 5 keys, those of sequence 1 see 9 to 15, in two heads.
        #expect(plan.visiblePairs == 2 * (12 + 84))

        for (queries, keys, heads, argument) in [
            ([0], [0], [[HeadPattern.dense]], "queryOffsets"), ([0, 3, 10], [0, 5], [[.dense]], "keyOffsets"),
            ([0, 3, 10], [0, 5, 20], [[.dense], [.dense], [.dense]], "heads"),
            ([0, 3, 2], [0, 5, 20], [[.dense]], "queryOffsets[2]"), ([0, 3, 10], [0, 5, 4], [[.dense]], "keyOffsets[2]"),
        ] {
            let error = #expect(throws: SparseKernelsError.self) {
                try Packed.sequences(queryOffsets: queries, keyOffsets: keys, heads: heads)
            }
            #expect(error?.argument == argument)
        }
    }
}
