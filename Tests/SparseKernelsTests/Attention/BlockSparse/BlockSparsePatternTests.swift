import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Patterns other than masks of equal blocks: token streaming, runs and single keys, clusters, and mixtures of them.
@Suite("Block-sparse patterns")
struct BlockSparsePatternTests {
    // MARK: - Streaming

    /// Sinks and windows that are empty, overlap, exceed the sequence, or end at tile and block edges.
    static let streams = [
        (0, 1), (0, 40), (0, 1000), (1, 1), (4, 16), (5, 64), (64, 64), (100, 100), (128, 1), (150, 200), (210, 1), (211, 3),
        (1000, 1), (Int.max, 5), (3, Int.max), (Int.max, Int.max),
    ]

    @Test("streaming agrees with the oracle", arguments: streams, [(150, 210), (210, 210), (1, 210), (49, 50)])
    func streaming(_ stream: (sink: Int, local: Int), _ lengths: (queries: Int, keys: Int)) throws {
        let shape = try AttentionShape(
            queryLength: lengths.queries, keyLength: lengths.keys, queryHeads: 2, kvHeads: 1, headDim: 12, valueDim: 7)
        let pattern = HeadPattern.streaming(sink: stream.sink, local: stream.local)
        try expectMatches(shape, [pattern], isCausal: true, "\(stream), \(lengths)")
    }

    /// The window hides key blocks at the beginning of later tasks, so that steps of the online softmax and bits differ.
    @Test("streaming without sinks is a causal window", arguments: InstructionSet.available, [1, 20, 129, 500])
    func streamingIsAWindow(_ set: InstructionSet, _ local: Int) throws {
        let shape = try AttentionShape(queryLength: 200, keyLength: 260, queryHeads: 2, kvHeads: 1, headDim: 16)
        let operands = try BlockSparseOperands(shape)
        let state = try BlockSparseAttention(
            shape, heads: [.streaming(sink: 0, local: local)], isCausal: true, instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value)
        try expectMatchesReference(
            state, ReferenceAttention(shape, mask: .causal(window: local)), query: operands.query, key: operands.key,
            value: operands.value, "\(set)")
    }

    @Test("streaming takes soft caps and ALiBi slopes")
    func streamingScoring() throws {
        let shape = try AttentionShape(queryLength: 90, keyLength: 140, queryHeads: 2, kvHeads: 2, headDim: 16)
        let modifiers = ScoreModifiers(softmaxScale: 0.5, logitsSoftCap: 4, aliBiSlopes: [0.25, -0.1])
        try expectMatches(shape, [.streaming(sink: 7, local: 30)], isCausal: true, modifiers: modifiers)
    }

    // MARK: - Runs and single keys

    @Test("runs and single keys agree with the oracle", arguments: [1, 5, 40, 300], [1, 16, 64, 200, 256])
    func runs(_ longest: Int, _ blockSize: Int) throws {
        let shape = try AttentionShape(queryLength: 230, keyLength: 300, queryHeads: 2, kvHeads: 1, headDim: 12, valueDim: 7)
        let query = try BlockPartition(length: 230, blockSize: blockSize)
        for isCausal in [true, false] {
            let runs = try KeyRuns.random(
                query: query, keyLength: 300, longest: longest, seed: UInt64(longest * 1000 + blockSize))
            try expectMatches(shape, [.runs(runs)], isCausal: isCausal, "\(isCausal ? "causal" : "full")")
        }
    }

    /// More single keys than one step has, and no runs.
    @Test("single keys alone agree with the oracle", arguments: [1, 2, 127, 128, 129, 260])
    func singleKeys(_ count: Int) throws {
        let shape = try AttentionShape(queryLength: 50, keyLength: 600, queryHeads: 1, kvHeads: 1, headDim: 17, valueDim: 9)
        let query = try BlockPartition(length: 50, blockSize: 24)
        let keys = (0..<count).map { Int32($0 * 2) }
        let runs = try KeyRuns(
            query: query, keyLength: 600, runOffsets: [0, 0, 0, 0], runs: [], keyOffsets: [0, count, count, 2 * count],
            keys: keys + keys)
        for isCausal in [true, false] { try expectMatches(shape, [.runs(runs)], isCausal: isCausal) }
    }

    @Test("single keys on and after the diagonal follow the causal limit")
    func singleKeysOnTheDiagonal() throws {
        let shape = try AttentionShape(queryLength: 40, keyLength: 40, queryHeads: 1, kvHeads: 1, headDim: 8)
        let query = try BlockPartition(length: 40, blockSize: 16)
        // Every key is a single key in each block, which is plain causal attention.
        let all = (0..<40).map { Int32($0) }
        let runs = try KeyRuns(
            query: query, keyLength: 40, runOffsets: [0, 0, 0, 0], runs: [], keyOffsets: [0, 40, 80, 120],
            keys: all + all + all)
        try expectMatches(shape, [.runs(runs)], isCausal: true)
        // There are single keys before, between and after runs that cross the diagonal.
        let mixed = try KeyRuns(
            query: query, keyLength: 40, runOffsets: [0, 2, 4, 5], runs: [2..<4, 6..<9, 17..<18, 20..<40, 0..<33],
            keyOffsets: [0, 6, 9, 12], keys: [0, 1, 4, 9, 15, 39, 3, 16, 18, 33, 38, 39])
        try expectMatches(shape, [.runs(mixed)], isCausal: true)
    }

    @Test("runs without single keys take ALiBi slopes")
    func runScoring() throws {
        let shape = try AttentionShape(queryLength: 60, keyLength: 90, queryHeads: 2, kvHeads: 1, headDim: 8)
        let query = try BlockPartition(length: 60, blockSize: 30)
        let runs = try KeyRuns(
            query: query, keyLength: 90, runOffsets: [0, 2, 3], runs: [3..<20, 31..<60, 5..<90], keyOffsets: [0, 0, 0],
            keys: [])
        let modifiers = ScoreModifiers(aliBiSlopes: [0.25, -0.125])
        try expectMatches(shape, [.runs(runs)], isCausal: true, modifiers: modifiers)
    }

    @Test("single keys take soft caps")
    func singleKeyCap() throws {
        let shape = try AttentionShape(queryLength: 60, keyLength: 90, queryHeads: 2, kvHeads: 1, headDim: 8)
        let runs = try KeyRuns.random(
            query: BlockPartition(length: 60, blockSize: 30), keyLength: 90, longest: 9, seed: 4)
        try expectMatches(
            shape, [.runs(runs)], isCausal: true, modifiers: ScoreModifiers(softmaxScale: 0.9, logitsSoftCap: 2))
    }

    // MARK: - Clusters

    /// Sizes such as clustering makes: arbitrary ones, some empty clusters, also first and last, and one larger than a task.
    static let clusterSizes: [(query: [Int], key: [Int])] = [
        ([10, 0, 47, 1, 62, 30], [0, 3, 90, 17, 0, 0, 60]), ([150], [170]), ([0, 150, 0], [0, 0, 170, 0]),
        (Array(repeating: 1, count: 150), [85, 85]), ([1, 149], Array(repeating: 5, count: 34)),
    ]

    @Test("blocks of any sizes agree with the oracle", arguments: clusterSizes.indices, [true, false])
    func clusters(_ index: Int, _ isCausal: Bool) throws {
        let sizes = Self.clusterSizes[index]
        let shape = try AttentionShape(queryLength: 150, keyLength: 170, queryHeads: 2, kvHeads: 2, headDim: 12, valueDim: 7)
        let grid = try BlockGrid(
            query: BlockPartition(sizes: sizes.query), key: BlockPartition(sizes: sizes.key), isCausal: isCausal)
        for density: Float in [0, 0.4, 1] {
            let mask = try BlockMask.random(grid, heads: 2, density: density, seed: 17)
            try expectMatches(shape, (0..<2).map { .blockSparse(mask, head: $0) }, isCausal: isCausal, "\(density)")
        }
    }

    @Test("blocks of more than 192 queries are cut into tasks")
    func largeBlocks() throws {
        let shape = try AttentionShape(queryLength: 500, keyLength: 520, queryHeads: 1, kvHeads: 1, headDim: 8)
        let sizes = try BlockGrid(
            query: BlockPartition(sizes: [193, 0, 307]), key: BlockPartition(sizes: [300, 220]), isCausal: true)
        let mask = try BlockMask(grid: sizes) { _, row, column in row >= column }
        try expectMatches(shape, [.blockSparse(mask, head: 0)], isCausal: true)
        let runs = try KeyRuns(
            query: BlockPartition(length: 500, blockSize: 400), keyLength: 520, runOffsets: [0, 1, 2],
            runs: [30..<330, 100..<520], keyOffsets: [0, 3, 4], keys: [5, 29, 400, 99])
        try expectMatches(shape, [.runs(runs)], isCausal: true)
    }

    // MARK: - Mixes

    static func mixes(_ shape: AttentionShape) throws -> [HeadPattern] {
        let mask = try BlockMask.random(BlockGrid(shape, blockSize: 32, isCausal: true), heads: 3, density: 0.5, seed: 23)
        let query = try BlockPartition(length: shape.queryLength, blockSize: 48)
        let runs = try KeyRuns.random(query: query, keyLength: shape.keyLength, longest: 20, seed: 29)
        return [
            .dense, .streaming(sink: 4, local: 20), .blockSparse(mask, head: 2), .runs(runs), .blockSparse(mask, head: 0),
            .streaming(sink: 0, local: 64),
        ]
    }

    @Test("patterns may differ from query head to query head")
    func mixedQueryHeads() throws {
        let shape = try AttentionShape(queryLength: 100, keyLength: 130, queryHeads: 6, kvHeads: 2, headDim: 12)
        try expectMatches(shape, Self.mixes(shape), isCausal: true)
    }

    @Test("patterns may differ from KV head to KV head", arguments: 0..<3)
    func mixedKVHeads(_ first: Int) throws {
        let shape = try AttentionShape(queryLength: 100, keyLength: 130, queryHeads: 6, kvHeads: 2, headDim: 12)
        try expectMatches(shape, Array(Self.mixes(shape)[first * 2..<first * 2 + 2]), isCausal: true)
    }

    @Test("one pattern for all heads has the bits of repeating it", arguments: InstructionSet.available)
    func sharedPattern(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 100, keyLength: 130, queryHeads: 6, kvHeads: 2, headDim: 12)
        let operands = try BlockSparseOperands(shape)
        for pattern in try Self.mixes(shape) {
            let plans = try [1, 2, 6].map {
                try BlockSparseAttention(
                    shape, heads: Array(repeating: pattern, count: $0), isCausal: true, instructionSet: set)
            }
            let states = try plans.map { try $0(query: operands.query, key: operands.key, value: operands.value) }
            for (plan, state) in zip(plans, states) {
                #expect(plan.visiblePairs == plans[0].visiblePairs && plan.scratchByteCount == plans[0].scratchByteCount)
                #expect(state.output.bits == states[0].output.bits && state.logSumExp.bits == states[0].logSumExp.bits)
            }
        }
    }
}
