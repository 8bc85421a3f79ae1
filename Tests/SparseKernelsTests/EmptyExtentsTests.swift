import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Without keys, or for queries before the first key, every operator gives what dense attention does: output 0 and LSE −∞.
@Suite("Empty sequences and more queries than keys")
struct EmptyExtentsTests {
    typealias Packed = BlockSparseAttention.PackedSequence

    static func shape(_ queries: Int, _ keys: Int) throws -> AttentionShape {
        try AttentionShape(queryLength: queries, keyLength: keys, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
    }

    static let lengths = [(0, 0), (0, 5), (0, 200), (5, 0), (200, 0)]

    static func expectEmpty(
        _ state: AttentionState, _ shape: AttentionShape, _ label: String, sourceLocation: SourceLocation = #_sourceLocation
    ) {
        #expect(state.output.shape == [4, shape.queryLength, 7], "\(label)", sourceLocation: sourceLocation)
        #expect(state.logSumExp.shape == [4, shape.queryLength], "\(label)", sourceLocation: sourceLocation)
        #expect(state.output.elements.allSatisfy { $0.bitPattern == 0 }, "\(label)", sourceLocation: sourceLocation)
        #expect(state.logSumExp.elements.allSatisfy { $0 == -.infinity }, "\(label)", sourceLocation: sourceLocation)
    }

    @Test("attention without queries or without keys gives empty results", arguments: InstructionSet.available, lengths)
    func attention(_ set: InstructionSet, _ lengths: (Int, Int)) throws {
        let shape = try Self.shape(lengths.0, lengths.1)
        let operands = try BlockSparseOperands(shape)
        let modifiers = ScoreModifiers(logitsSoftCap: 2, aliBiSlopes: [1, 2, 3, 4])
        for mask in [AttentionMask.full, .causal, .causal(window: 3), .window(left: 2, right: 4)] {
            let dense = try DenseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: set)
            #expect(dense.visiblePairs == 0 && dense.scratchByteCount > 0)
            try Self.expectEmpty(dense(query: operands.query, key: operands.key, value: operands.value), shape, "\(mask)")
            let bias = try Tensor<Float>(zeros: [1, shape.queryLength, shape.keyLength])
            try Self.expectEmpty(
                dense(query: operands.query, key: operands.key, value: operands.value, bias: bias), shape, "bias")
        }
        for isCausal in [true, false] {
            let grid = try BlockGrid(shape, blockSize: 16, isCausal: isCausal)
            var patterns: [HeadPattern] = [.dense, .blockSparse(.full(grid), head: 0), .dense, .dense]
            if isCausal { patterns[2] = .streaming(sink: 3, local: 4) }
            let sparse = try BlockSparseAttention(
                shape, heads: patterns, isCausal: isCausal, modifiers: modifiers, instructionSet: set)
            #expect(sparse.visiblePairs == 0 && sparse.density == 1)
            try Self.expectEmpty(sparse(query: operands.query, key: operands.key, value: operands.value), shape, "sparse")
        }
        // Like any state, it can be merged and compared.
        var state = try AttentionState(heads: 4, tokens: shape.queryLength, valueDim: 7)
        try state.merge(DenseAttention(shape)(query: operands.query, key: operands.key, value: operands.value))
        Self.expectEmpty(state, shape, "merged")
        #expect(try AttentionComparison(state, with: state).recall == 1)
    }

    @Test("empty operands may be views without memory")
    func views() throws {
        let shape = try Self.shape(0, 3)
        let keyTensor = try Tensor<BFloat16>(zeros: [2, 3, 12])
        let valueTensor = try Tensor<Float16>(zeros: [2, 3, 7])
        let none: [Float] = []
        var output: [BFloat16] = []
        let noQuery = try TensorView(none.span, heads: 4, tokens: 0, channels: 12, layout: .nhd)
        let key = try keyTensor.view()
        let value = try valueTensor.view()
        let noOutput = try MutableTensorView(output.mutableSpan, heads: 4, tokens: 0, channels: 7)
        try DenseAttention(shape).run(query: noQuery, key: key, value: value, output: noOutput)

        let noKeys = try Self.shape(3, 0)
        var result = [Float](repeating: 77, count: 4 * 3 * 7)
        let queryTensor = try Tensor<Float>(zeros: [4, 3, 12])
        let query = try queryTensor.view()
        let noKey = try TensorView(none.span, heads: 2, tokens: 0, channels: 12)
        let noValue = try TensorView(none.span, heads: 2, tokens: 0, channels: 7)
        let view = try MutableTensorView(result.mutableSpan, heads: 4, tokens: 3, channels: 7)
        try DenseAttention(noKeys).run(query: query, key: noKey, value: noValue, output: view)
        #expect(result.allSatisfy { $0.bitPattern == 0 })
    }

    // MARK: - Packed batches

    @Test("cumulative lengths that repeat are empty sequences, which write nothing")
    func offsets() throws {
        let sequences = try Packed.sequences(queryOffsets: [0, 0, 1, 1, 2], keyOffsets: [0, 0, 3, 3, 8], heads: [[.dense]])
        #expect(sequences.map(\.queries) == [0..<0, 0..<1, 1..<1, 1..<2])
        #expect(sequences.map(\.keys) == [0..<0, 0..<3, 3..<3, 3..<8])
        let shape = try AttentionShape(queryLength: 2, keyLength: 8, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
        let operands = try BlockSparseOperands(shape)
        for set in InstructionSet.available {
            let state = try BlockSparseAttention(shape, sequences: sequences, isCausal: true, instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value)
            let packed = try BlockSparseAttention(
                shape, sequences: sequences.filter { !$0.queries.isEmpty }, isCausal: true, instructionSet: set)(
                    query: operands.query, key: operands.key, value: operands.value)
            #expect(state == packed && state.logSumExp.elements.allSatisfy { $0.isFinite })
        }
    }

    @Test("sequences without keys, queries or both agree with the oracle, among others", arguments: [true, false])
    func packed(_ isCausal: Bool) throws {
        let lengths = [(0, 0), (7, 0), (0, 9), (60, 33), (3, 50), (0, 0), (200, 5), (1, 0), (0, 4)]
        let (queries, keys) = lengths.reduce((0, 0)) { ($0.0 + $1.0, $0.1 + $1.1) }
        let shape = try AttentionShape(
            queryLength: queries, keyLength: keys, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
        let operands = try BlockSparseOperands(shape)
        var (queryOffsets, keyOffsets) = ([0], [0])
        var patterns: [[HeadPattern]] = []
        for (index, (q, k)) in lengths.enumerated() {
            queryOffsets.append(queryOffsets[index] + q)
            keyOffsets.append(keyOffsets[index] + k)
            let grid = try BlockGrid(queryLength: q, keyLength: k, queryBlockSize: 16, keyBlockSize: 8, isCausal: isCausal)
            let mask = try BlockMask.random(grid, density: 0.7, seed: UInt64(index))
            let runs = try KeyRuns.random(
                query: BlockPartition(length: q, blockSize: 20), keyLength: k, longest: 5, seed: UInt64(index))
            patterns.append([.dense, .blockSparse(mask, head: 0), .runs(runs), .dense])
        }
        let sequences = try Packed.sequences(queryOffsets: queryOffsets, keyOffsets: keyOffsets, heads: patterns)
        for set in InstructionSet.available {
            let plan = try BlockSparseAttention(shape, sequences: sequences, isCausal: isCausal, instructionSet: set)
            let state = try plan(query: operands.query, key: operands.key, value: operands.value)
            var pairs = 0
            for (index, (q, k)) in lengths.enumerated() where q > 0 {
                let part = try AttentionShape(
                    queryLength: q, keyLength: k, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
                let sees = visibility(patterns[index], part, isCausal: isCausal)
                pairs += countPairs(part, sees)
                let (range, keyRange) = (sequences[index].queries, sequences[index].keys)
                let rows = try referenceRows(
                    part, query: BlockSparsePackedTests.tokens(operands.query, range),
                    key: BlockSparsePackedTests.tokens(operands.key, keyRange),
                    value: BlockSparsePackedTests.tokens(operands.value, keyRange), sees: sees)
                let lse = try Tensor<Float>([4, q]) {
                    state.logSumExp[flat: $0 / q * queries + range.lowerBound + $0 % q]
                }
                try expectMatches(
                    BlockSparsePackedTests.tokens(state.output, range), lse, rows, headDim: 12, "\(set), sequence \(index)")
            }
            #expect(plan.visiblePairs == pairs)
        }
    }

    @Test("a batch of only empty sequences gives empty results")
    func packedNothing() throws {
        let shape = try Self.shape(0, 0)
        let operands = try BlockSparseOperands(shape)
        for sequences in [[], try Packed.sequences(queryOffsets: [0, 0, 0], keyOffsets: [0, 0, 0], heads: [[.dense]])] {
            let plan = try BlockSparseAttention(shape, sequences: sequences, isCausal: true)
            try Self.expectEmpty(plan(query: operands.query, key: operands.key, value: operands.value), shape, "")
        }
    }

    // MARK: - More queries than keys

    @Test(
        "causal patterns of more queries than keys agree with the oracle",
        arguments: [(60, 10), (200, 3), (131, 130), (300, 129)])
    func moreQueries(_ lengths: (queries: Int, keys: Int)) throws {
        let shape = try Self.shape(lengths.queries, lengths.keys)
        for patterns in try AttentionWindowTests.patterns(shape, isCausal: true) {
            try expectMatches(shape, patterns, isCausal: true, "\(lengths)")
        }
        let grid = try BlockGrid(shape, blockSize: 16, isCausal: true)
        for mask in try [
            BlockMask.full(grid), .causal(grid), .slidingWindow(grid, tokens: 20),
            .streaming(grid, sinkBlocks: 1, localBlocks: 2),
            .dilated(grid, localBlocks: 3, dilation: 2), .aShape(grid, sinkTokens: 3, localTokens: 9),
            .verticalSlash(grid, columns: [0, 1], distances: [0, 2]),
        ] {
            try expectMatches(shape, [.blockSparse(mask, head: 0)], isCausal: true, "\(lengths)")
            #expect(mask.density <= 1 && mask.visiblePairs <= BlockMask.full(grid).visiblePairs)
        }
    }

    @Test("a full mask has the bits of dense attention", arguments: InstructionSet.available, [(60, 10), (200, 3), (300, 129)])
    func fullMask(_ set: InstructionSet, _ lengths: (queries: Int, keys: Int)) throws {
        let shape = try Self.shape(lengths.queries, lengths.keys)
        let operands = try BlockSparseOperands(shape)
        let mask = try BlockMask.full(BlockGrid(shape, blockSize: 16, isCausal: true))
        let (a, b) = try (
            BlockSparseAttention(shape, mask: mask, instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value),
            DenseAttention(shape, mask: .causal, instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value)
        )
        #expect(a.output.bits == b.output.bits && a.logSumExp.bits == b.logSumExp.bits)
    }

    @Test("grids: rows before the first key reach no column, the others up to the diagonal")
    func grids() throws {
        let grid = try BlockGrid(queryLength: 50, keyLength: 20, queryBlockSize: 8, keyBlockSize: 4, isCausal: true)
        for row in 0..<grid.blockRows {
            let queries = grid.query[row]
            let last = queries.upperBound - 1 - 30
            #expect(grid.reachableColumns(ofRow: row) == 0..<(last < 0 ? 0 : last / 4 + 1))
            for column in 0..<grid.blockColumns {
                let pairs = queries.reduce(0) { sum, query in sum + grid.key[column].count { $0 <= query - 30 } }
                #expect(grid.visiblePairs(row: row, column: column) == pairs)
            }
        }
        #expect(BlockMask.full(grid).density == 1)
    }

    // MARK: - Partitions, grids and masks of nothing

    @Test("partitions, grids and masks of no tokens", arguments: [(0, 0), (0, 9), (9, 0)], [true, false])
    func nothing(_ lengths: (Int, Int), _ isCausal: Bool) throws {
        #expect(try BlockPartition(length: 0, blockSize: 4).count == 0)
        #expect(try BlockPartition(length: 0, blockSize: 4) == BlockPartition(length: 0, blockSize: 7))
        #expect(try BlockPartition(length: 0, blockSize: 4) == BlockPartition(sizes: []))
        #expect(try Set([BlockPartition(length: 0, blockSize: 4), BlockPartition(sizes: [])]).count == 1)
        #expect(try BlockPartition(sizes: [0, 0]).count == 2)
        let uniform = try BlockGrid(
            queryLength: lengths.0, keyLength: lengths.1, queryBlockSize: 4, keyBlockSize: 2, isCausal: isCausal)
        let varying = try BlockGrid(
            query: BlockPartition(sizes: [0, lengths.0, 0]), key: BlockPartition(sizes: [0, lengths.1, 0]), isCausal: isCausal)
        for grid in [uniform, varying] {
            #expect(grid.reachableBlocks == 0)
            let mask = BlockMask.full(grid)
            #expect(mask.columnIndices.isEmpty && mask.density == 1 && mask.visiblePairs == 0)
            #expect(mask.description.contains("1 head") && mask.svg().hasPrefix("<svg"))
            #expect(try BlockMask(grid: grid, booleans: mask.booleans()) == mask)
            #expect(try mask.union(mask) == mask && mask.intersection(mask) == mask && mask.head(0) == mask)
            #expect(try BlockMask(stacking: [mask, mask]).heads == 2)
            var masks = try [
                BlockMask.causal(grid), .slidingWindow(grid, tokens: 3), .streaming(grid, sinkBlocks: 1, localBlocks: 1),
                .dilated(grid, localBlocks: 2, dilation: 1),
            ]
            if isCausal { masks.append(try .aShape(grid, sinkTokens: 1, localTokens: 1)) }
            if !isCausal { #expect(try mask.permuted() == mask) }
            #expect(masks.allSatisfy { $0.columnIndices.isEmpty })
            let scores = try BlockScores(grid: grid, values: Tensor(zeros: [2, grid.blockRows, grid.blockColumns]))
            for rule in [BlockSelection.Rule.topP(0.5), .topK(3), .threshold(0)] {
                #expect(try BlockSelection(rule, sinkBlocks: 1, recentBlocks: 1)(scores).columnIndices.isEmpty)
            }
        }
    }

    // MARK: - Scoring

    @Test("scoring without queries or without keys gives empty scores or none", arguments: InstructionSet.available, lengths)
    func scoring(_ set: InstructionSet, _ lengths: (Int, Int)) throws {
        let shape = try Self.shape(lengths.0, lengths.1)
        let operands = try BlockSparseOperands(shape)
        for isCausal in [true, false] {
            let grid = try BlockGrid(shape, blockSize: 16, isCausal: isCausal)
            let size = [4, grid.blockRows, grid.blockColumns]
            for precision in ScoringPrecision.allCases {
                let scoring = try AntidiagonalScoring(shape, grid: grid, stride: 8, precision: precision, instructionSet: set)
                #expect(try scoring(query: operands.query, key: operands.key).values.shape == size)
            }
            let pooled = try MeanPoolScoring(shape, grid: grid, normalizes: true, padding: .zeros, instructionSet: set)
            #expect(try pooled(query: operands.query, key: operands.key).values.shape == size)
        }
        let scores = try VerticalSlashScoring(shape, instructionSet: set)(query: operands.query, key: operands.key)
        #expect(scores.vertical == (try Tensor<Float>(zeros: [4, lengths.1])) && scores.slash == scores.vertical)
        let lines = try VerticalSlashSelection(vertical: 1, slash: 1)(scores, head: 0)
        let index = try VerticalSlashIndex(lines, queryLength: lengths.0, keyLength: lengths.1)
        #expect(index.columns.isEmpty && index.blockStarts.isEmpty)
        try expectMatches(shape, [.runs(index.keyRuns)], isCausal: true)
    }

    @Test(
        "antidiagonal scores of more queries than keys: rows sum to their groups that see a key",
        arguments: InstructionSet.available, [(60, 10), (200, 33), (131, 130)])
    func antidiagonals(_ set: InstructionSet, _ lengths: (queries: Int, keys: Int)) throws {
        let shape = try Self.shape(lengths.queries, lengths.keys)
        let operands = try BlockSparseOperands(shape)
        let grid = try BlockGrid(shape, blockSize: 16, isCausal: true)
        for precision in ScoringPrecision.allCases {
            // A stride of 1 gives the exact mass of every block.
            let exact = try AntidiagonalScoring(shape, grid: grid, stride: 1, precision: precision, instructionSet: set)(
                query: operands.query, key: operands.key)
            let strided = try AntidiagonalScoring(shape, grid: grid, stride: 4, precision: precision, instructionSet: set)(
                query: operands.query, key: operands.key)
            let offset = lengths.keys - lengths.queries
            for head in 0..<4 {
                for row in 0..<grid.blockRows {
                    let seeing = grid.query[row].count { $0 + offset >= 0 }
                    let groups = stride(from: grid.query[row].lowerBound, to: grid.query[row].upperBound, by: 4).count {
                        $0 + 3 + offset >= 0
                    }
                    for (scores, expected) in [(exact, seeing), (strided, groups)] {
                        let line = (0..<grid.blockColumns).map { scores[head, row, $0] }
                        #expect(abs(line.reduce(0, +) - Float(expected)) < 1e-4, "\(precision), row \(row)")
                        let end = grid.reachableColumns(ofRow: row).upperBound
                        #expect(line[end...].allSatisfy { $0 == 0 })
                    }
                }
            }
        }
    }

    @Test("the last queries vote that see a key", arguments: InstructionSet.available)
    func verticalSlash(_ set: InstructionSet) throws {
        let (long, short) = try (Self.shape(100, 20), Self.shape(20, 20))
        let operands = try BlockSparseOperands(long)
        let last = try BlockSparsePackedTests.tokens(operands.query, 80..<100)
        let (a, b) = try (
            VerticalSlashScoring(long, instructionSet: set)(query: operands.query, key: operands.key),
            VerticalSlashScoring(short, instructionSet: set)(query: last, key: operands.key)
        )
        #expect(a == b)
        let lines = VerticalSlashLines(keys: [0, 3, 7], distances: [0, 1, 6])
        let grid = try BlockGrid(long, blockSize: 16, isCausal: true)
        let index = try VerticalSlashIndex(lines, queryLength: 100, keyLength: 20, blockSize: 16)
        try expectMatches(long, [.runs(index.keyRuns)], isCausal: true)
        #expect(try index.blockCover(grid).columns(head: 0, row: 0).isEmpty)
        // The pair of every line is in a run or a single key.
        for query in 80..<100 {
            let block = query / 16
            let kept = Set(index.keyRuns.runs(block: block).flatMap { Array($0) } + index.columns(block: block).map { Int($0) })
            for key in 0...query - 80 where [0, 3, 7].contains(key) || [0, 1, 6].contains(query - 80 - key) {
                #expect(kept.contains(key), "query \(query), key \(key)")
            }
        }
    }
}
