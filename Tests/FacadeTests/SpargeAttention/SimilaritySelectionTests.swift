import SpargeAttention
import SparseKernelsReference
import Testing

extension ReferenceBlockPrediction {
    /// An oracle with a head's settings.
    init(grid: BlockGrid, head: SimilaritySelection.Head) {
        let rule: Rule =
            switch head.rule {
            case .cdfThreshold(let mass): .cdfThreshold(mass)
            case .keepRatio(let ratio): .keepRatio(ratio)
            }
        self.init(grid: grid, rule: rule, similarityThreshold: head.similarityThreshold)
    }
}

@Suite("Similarity selection")
struct SimilaritySelectionTests {
    typealias Head = SimilaritySelection.Head

    static func summary(_ heads: Int, _ partition: BlockPartition, channels: Int, seed: UInt64) throws -> BlockSummary {
        var generator = SplitMix64(seed: seed)
        return try BlockSummary(
            partition: partition, means: .normal([heads, partition.count, channels], seed: seed + 1),
            similarities: Tensor([heads, partition.count]) { _ in generator.uniform() })
    }

    static func block(_ summary: BlockSummary, _ head: Int, _ index: Int) -> ReferenceBlockPrediction.Block {
        let (blocks, channels) = (summary.partition.count, summary.channels)
        return ReferenceBlockPrediction.Block(
            mean: (0..<channels).map { Double(summary.means[flat: (head * blocks + index) * channels + $0]) },
            similarity: Double(summary.similarities[flat: head * blocks + index]))
    }

    /// The error of scores in `Float` is e = 6·√d·u·Σ|q̄k̄|/√d (see `ReferenceMatrixProduct`) and the rounding of scale and
    /// product. Ranks are certain when neighbours at the cut are 2e apart, and running sums of probabilities when they are 4e
    /// from the mass. Similarities are given, so their comparison is exact.
    static func expectMatchesOracle(_ grid: BlockGrid, _ head: Head, seed: UInt64, _ set: InstructionSet) throws {
        let (queryHeads, kvHeads, channels) = (4, 2, 24)
        let query = try summary(queryHeads, grid.query, channels: channels, seed: seed)
        let key = try summary(kvHeads, grid.key, channels: channels, seed: seed + 7)
        let mask = try SimilaritySelection(grid: grid, heads: [head], instructionSet: set)(query: query, key: key)
        let oracle = ReferenceBlockPrediction(grid: grid, head: head)
        var decided = 0
        for h in 0..<queryHeads {
            let keys = (0..<grid.blockColumns).map { block(key, h / 2, $0) }
            for row in 0..<grid.blockRows {
                let query = block(query, h, row)
                let expected = oracle.row(row, query: query, keys: keys)
                let magnitude = keys.reduce(0.0) { largest, key in
                    max(largest, zip(query.mean, key.mean).reduce(0.0) { $0 + abs($1.0 * $1.1) })
                }
                let error = (6 + 2) * 0x1p-24 * magnitude
                if expected.scoreMargin <= 2 * error || expected.massMargin <= 4 * error { continue }
                decided += 1
                #expect(mask.columns(head: h, row: row).map { Int($0) } == expected.columns, "\(set) head \(h) row \(row)")
            }
        }
        #expect(decided >= queryHeads * grid.blockRows * 9 / 10)
    }

    @Test("masks agree with the oracle", arguments: InstructionSet.available)
    func oracle(_ set: InstructionSet) throws {
        var seed: UInt64 = 40
        for (queryLength, keyLength, queryBlock, keyBlock) in [
            (70, 70, 8, 4), (64, 64, 4, 8), (37, 90, 16, 3), (1, 50, 8, 8), (7, 7, 16, 16), (60, 41, 7, 5),
        ] {
            for isCausal in queryLength <= keyLength ? [false, true] : [false] {
                let grid = try BlockGrid(
                    queryLength: queryLength, keyLength: keyLength, queryBlockSize: queryBlock, keyBlockSize: keyBlock,
                    isCausal: isCausal)
                for rule in [
                    SimilaritySelection.Rule.cdfThreshold(0), .cdfThreshold(0.6), .cdfThreshold(0.98), .cdfThreshold(1),
                    .keepRatio(0), .keepRatio(0.3), .keepRatio(1),
                ] {
                    for threshold: Float in [-0.1, 0.2, 0.7, 1] {
                        try Self.expectMatchesOracle(grid, Head(rule, similarityThreshold: threshold), seed: seed, set)
                        seed += 1
                    }
                }
            }
        }
    }

    /// One row of queries (1, 0) and keys (ln w, 0) minus a common term, so that the weights w are the probabilities.
    static func row(_ weights: [Float], similarities: [Float]? = nil) throws -> (BlockGrid, BlockSummary, BlockSummary) {
        let count = weights.count
        let grid = try BlockGrid(
            queryLength: 2, keyLength: 2 * count, queryBlockSize: 2, keyBlockSize: 2, isCausal: false)
        let query = try BlockSummary(
            partition: grid.query, means: Tensor([1, 1, 1], [1]), similarities: Tensor([1, 1], [1]))
        let key = try BlockSummary(
            partition: grid.key, means: Tensor([1, count, 1], weights),
            similarities: Tensor([1, count], similarities ?? [Float](repeating: 1, count: count)))
        return (grid, query, key)
    }

    @Test("the column that crosses the mass is not kept, ties go to the lower column")
    func boundaries() throws {
        // Equal scores have probability 1/4 each.
        let (grid, query, key) = try Self.row([3, 3, 3, 3])
        func kept(_ rule: SimilaritySelection.Rule, first: Bool = false) throws -> [Int32] {
            let selection = try SimilaritySelection(
                grid: grid, heads: [Head(rule, similarityThreshold: 0)], keepsFirstColumn: first)
            return try Array(selection(query: query, key: key).columns(head: 0, row: 0))
        }
        #expect(try kept(.cdfThreshold(0.5)) == [0, 1])
        #expect(try kept(.cdfThreshold(0.74)) == [0, 1])
        #expect(try kept(.cdfThreshold(0.1)) == [0])
        #expect(try kept(.cdfThreshold(0)) == [0])
        #expect(try kept(.cdfThreshold(1)) == [0, 1, 2, 3])
        #expect(try kept(.keepRatio(0.5)) == [0, 1])
        #expect(try kept(.keepRatio(0.74)) == [0, 1])
        #expect(try kept(.keepRatio(0)) == [0])
    }

    @Test("blocks of unlike tokens, NaN and the sink are kept")
    func forced() throws {
        let (grid, query, key) = try Self.row([1, 2, 3, 9, 5], similarities: [1, 0.2, 1, 1, .nan])
        func kept(_ threshold: Float, first: Bool = false, query: BlockSummary) throws -> [Int32] {
            let selection = try SimilaritySelection(
                grid: grid, heads: [Head(.keepRatio(0.2), similarityThreshold: threshold)], keepsFirstColumn: first)
            return try Array(selection(query: query, key: key).columns(head: 0, row: 0))
        }
        #expect(try kept(-0.1, query: query) == [3, 4])
        #expect(try kept(0.2, query: query) == [1, 3, 4])
        #expect(try kept(0.2, first: true, query: query) == [0, 1, 3, 4])
        #expect(try kept(1, query: query) == [0, 1, 2, 3, 4])
        for similarity: Float in [.nan, -0.5] {
            let unlike = try BlockSummary(
                partition: grid.query, means: query.means, similarities: Tensor([1, 1], [similarity]))
            #expect(try kept(-0.1, query: unlike) == [0, 1, 2, 3, 4])
        }
        let infinite = try BlockSummary(
            partition: grid.query, means: Tensor([1, 1, 1], [.infinity]), similarities: query.similarities)
        #expect(try kept(-0.1, query: infinite) == [0, 1, 2, 3, 4])
    }

    @Test("settings may differ per query head, and threads do not change masks")
    func perHead() throws {
        let grid = try BlockGrid(queryLength: 300, keyLength: 400, queryBlockSize: 8, keyBlockSize: 4, isCausal: true)
        let query = try Self.summary(4, grid.query, channels: 16, seed: 1)
        let key = try Self.summary(2, grid.key, channels: 16, seed: 2)
        let heads = [
            Head(.cdfThreshold(0.9), similarityThreshold: 0.1), Head(.keepRatio(0.1), similarityThreshold: -1),
            Head(.cdfThreshold(0.3), similarityThreshold: -0.1), Head(.keepRatio(0.5), similarityThreshold: 0.5),
        ]
        let together = try SimilaritySelection(grid: grid, heads: heads)(query: query, key: key, on: .serial)
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            #expect(try SimilaritySelection(grid: grid, heads: heads)(query: query, key: key, on: pool) == together)
        }
        for (index, head) in heads.enumerated() {
            let alone = try SimilaritySelection(grid: grid, heads: [head])(query: query, key: key)
            for row in 0..<grid.blockRows {
                #expect(alone.columns(head: index, row: row) == together.columns(head: index, row: row))
            }
        }
    }

    @Test("bad settings and summaries are errors that name them")
    func badInput() throws {
        let grid = try BlockGrid(queryLength: 20, keyLength: 30, queryBlockSize: 8, keyBlockSize: 4, isCausal: true)
        let good = Head(.keepRatio(0.5), similarityThreshold: 0)
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, _ heads: [Head], scale: Float? = nil,
            sourceLocation: SourceLocation = #_sourceLocation
        ) {
            let error = #expect(throws: SparseKernelsError.self, sourceLocation: sourceLocation) {
                try SimilaritySelection(grid: grid, heads: heads, softmaxScale: scale)
            }
            #expect(error?.code == code && error?.argument == argument, sourceLocation: sourceLocation)
        }
        expect(.invalidShape, "heads", [])
        for value in [-0.01, 1.01, .nan, .infinity] {
            expect(.invalidArgument, "heads[1].keepRatio", [good, Head(.keepRatio(value), similarityThreshold: 0)])
            expect(.invalidArgument, "heads[0].cdfThreshold", [Head(.cdfThreshold(value), similarityThreshold: 0)])
        }
        expect(.invalidArgument, "heads[0].similarityThreshold", [Head(.keepRatio(0.5), similarityThreshold: .nan)])
        expect(.invalidArgument, "softmaxScale", [good], scale: .infinity)

        let query = try Self.summary(4, grid.query, channels: 8, seed: 1)
        func expectRun(
            _ argument: String, _ heads: [Head], _ query: BlockSummary, _ key: BlockSummary,
            sourceLocation: SourceLocation = #_sourceLocation
        ) {
            let error = #expect(throws: SparseKernelsError.self, sourceLocation: sourceLocation) {
                try SimilaritySelection(grid: grid, heads: heads)(query: query, key: key)
            }
            #expect(error?.code == .invalidShape && error?.argument == argument, sourceLocation: sourceLocation)
        }
        let key = try Self.summary(2, grid.key, channels: 8, seed: 2)
        expectRun("query.partition", [good], key, key)
        expectRun("key.partition", [good], query, query)
        expectRun("key.means", [good], query, try Self.summary(2, grid.key, channels: 7, seed: 2))
        expectRun("key.means", [good], query, try Self.summary(3, grid.key, channels: 8, seed: 2))
        expectRun("query.means", [good, good], query, key)
    }
}
