import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Every wrong argument of block-sparse attention is a typed error that names the argument, the rule and the value.
@Suite("Block-sparse errors")
struct BlockSparseErrorsTests {
    typealias PackedSequence = BlockSparseAttention.PackedSequence

    static func shape() throws -> AttentionShape {
        try AttentionShape(queryLength: 20, keyLength: 30, queryHeads: 6, kvHeads: 3, headDim: 8)
    }

    /// Expects that a plan with these patterns is refused.
    static func expectRefused(
        _ code: SparseKernelsError.Code, _ argument: String, containing texts: [String] = [], _ patterns: [HeadPattern],
        isCausal: Bool = true, modifiers: ScoreModifiers = ScoreModifiers(), pvSkipThreshold: Float? = nil,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        expectError(code, argument, containing: texts, sourceLocation: sourceLocation) {
            _ = try BlockSparseAttention(
                shape(), heads: patterns, isCausal: isCausal, modifiers: modifiers, pvSkipThreshold: pvSkipThreshold)
        }
    }

    // MARK: - Plans

    @Test("options outside their domain are refused")
    func options() throws {
        for threshold: Float in [0, -0.0, -1, .nan, .infinity, -.infinity] {
            Self.expectRefused(
                .invalidArgument, "pvSkipThreshold", containing: ["\(threshold)"], [.dense], pvSkipThreshold: threshold)
        }
        Self.expectRefused(.invalidArgument, "softmaxScale", [.dense], modifiers: ScoreModifiers(softmaxScale: .nan))
        Self.expectRefused(.invalidArgument, "logitsSoftCap", [.dense], modifiers: ScoreModifiers(logitsSoftCap: 0))
        Self.expectRefused(.invalidShape, "aliBiSlopes", [.dense], modifiers: ScoreModifiers(aliBiSlopes: [1]))
        // The initialiser with a mask throws the same error.
        let mask = try BlockMask(grid: BlockGrid(Self.shape(), blockSize: 8, isCausal: true)) { _, _, _ in true }
        expectError(.invalidArgument, "pvSkipThreshold", containing: ["-2"]) {
            _ = try BlockSparseAttention(Self.shape(), mask: mask, pvSkipThreshold: -2)
        }
    }

    @Test("patterns must be 1, one per KV head or one per query head", arguments: [0, 2, 4, 5, 7, 12])
    func patternCounts(_ count: Int) throws {
        Self.expectRefused(
            .invalidShape, "heads", containing: ["3", "6", "\(count)"], Array(repeating: .dense, count: count))
        if count > 0 {
            let grid = try BlockGrid(Self.shape(), blockSize: 8, isCausal: true)
            let mask = try BlockMask(grid: grid, heads: count) { _, _, _ in true }
            expectError(.invalidShape, "heads", containing: ["mask heads", "\(count)"]) {
                _ = try BlockSparseAttention(Self.shape(), mask: mask)
            }
        }
    }

    @Test("streaming needs a causal plan, a sink of 0 or more and a window of 1 or more")
    func streaming() {
        Self.expectRefused(
            .invalidArgument, "heads[0]", containing: ["causal"], [.streaming(sink: 1, local: 2)], isCausal: false)
        let later: [HeadPattern] = [.dense, .streaming(sink: -1, local: 2), .dense]
        Self.expectRefused(.invalidArgument, "heads[1].sink", containing: ["-1"], later)
        for local in [0, -3, Int.min] {
            Self.expectRefused(
                .invalidArgument, "heads[0].local", containing: ["\(local)"], [.streaming(sink: 0, local: local)])
        }
    }

    @Test("masks must be made for the lengths and the diagonal of the plan")
    func masks() throws {
        func mask(_ queries: Int, _ keys: Int, isCausal: Bool = true) throws -> BlockMask {
            try BlockMask(
                grid: BlockGrid(
                    queryLength: queries, keyLength: keys, queryBlockSize: 8, keyBlockSize: 8, isCausal: isCausal)
            ) { _, _, _ in true }
        }
        for head in [-1, 1] {
            try Self.expectRefused(
                .invalidArgument, "heads[0].head", containing: ["\(head)"], [.blockSparse(mask(20, 30), head: head)])
        }
        try Self.expectRefused(
            .invalidShape, "heads[0].mask", containing: ["20 × 30", "19 × 30"], [.blockSparse(mask(19, 30), head: 0)])
        try Self.expectRefused(
            .invalidShape, "heads[2].mask", containing: ["20 × 32"], [.dense, .dense, .blockSparse(mask(20, 32), head: 0)])
        let full = try mask(20, 30, isCausal: false)
        Self.expectRefused(.invalidArgument, "heads[0].mask", containing: ["not causal"], [.blockSparse(full, head: 0)])
        try Self.expectRefused(
            .invalidArgument, "heads[0].mask", containing: ["not causal"], [.blockSparse(mask(20, 30), head: 0)],
            isCausal: false)
    }

    @Test("runs must be made for the lengths of the plan")
    func runs() throws {
        func runs(_ queries: Int, _ keys: Int, single: [Int32] = []) throws -> HeadPattern {
            .runs(
                try KeyRuns(
                    query: BlockPartition(length: queries, blockSize: queries), keyLength: keys, runOffsets: [0, 1],
                    runs: [3..<9], keyOffsets: [0, single.count], keys: single))
        }
        try Self.expectRefused(.invalidShape, "heads[0].runs", containing: ["20 × 30", "21 × 30"], [runs(21, 30)])
        try Self.expectRefused(.invalidShape, "heads[0].runs", containing: ["20 × 29"], [runs(20, 29)])
        #expect(throws: Never.self) {
            try BlockSparseAttention(Self.shape(), heads: [runs(20, 30, single: [1])], isCausal: true)
        }
    }

    // MARK: - Packed batches

    @Test("sequences must cover the queries in order, and keys must lie inside the operand")
    func sequences() throws {
        func expect(
            _ argument: String, containing texts: [String], _ sequences: [PackedSequence],
            sourceLocation: SourceLocation = #_sourceLocation
        ) {
            expectError(.invalidShape, argument, containing: texts, sourceLocation: sourceLocation) {
                _ = try BlockSparseAttention(Self.shape(), sequences: sequences, isCausal: true)
            }
        }
        func sequence(_ queries: Range<Int>, _ keys: Range<Int>, _ heads: [HeadPattern] = [.dense]) -> PackedSequence {
            PackedSequence(queries: queries, keys: keys, heads: heads)
        }
        expect("sequences", containing: ["20", "0"], [])
        expect("sequences", containing: ["20", "19"], [sequence(0..<10, 0..<10), sequence(10..<19, 10..<30)])
        expect("queries", containing: ["1..<20"], [sequence(1..<20, 0..<30)])
        expect("queries", containing: ["0..<21"], [sequence(0..<21, 0..<30)])
        // The first range leaves a gap, the second overlaps.
        for queries in [11..<20, 9..<20] {
            expect(
                "sequences[1].queries", containing: ["\(queries)"],
                [sequence(0..<10, 0..<10), sequence(queries, 10..<30)])
        }
        for keys in [10..<31, -1..<20] {
            expect(
                "sequences[1].keys", containing: ["\(keys)"], [sequence(0..<10, 0..<10), sequence(10..<20, keys)])
        }
        expect(
            "sequences[1].heads", containing: ["2"],
            [sequence(0..<10, 0..<10), sequence(10..<20, 0..<10, [.dense, .dense])])
        expectError(.invalidArgument, "sequences[1].heads[0].local", containing: ["0"]) {
            let sequences = [sequence(0..<10, 0..<10), sequence(10..<20, 0..<10, [.streaming(sink: 0, local: 0)])]
            _ = try BlockSparseAttention(Self.shape(), sequences: sequences, isCausal: true)
        }
    }

    // MARK: - Key runs

    @Test("runs and keys out of order, out of range or on top of each other are refused")
    func keyRuns() throws {
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, containing texts: [String], runOffsets: [Int] = [0, 1, 2],
            runs: [Range<Int>] = [2..<5, 0..<9], keyOffsets: [Int] = [0, 1, 2], keys: [Int32] = [7, 9],
            sourceLocation: SourceLocation = #_sourceLocation
        ) {
            expectError(code, argument, containing: texts, sourceLocation: sourceLocation) {
                _ = try KeyRuns(
                    query: BlockPartition(length: 8, blockSize: 4), keyLength: 10, runOffsets: runOffsets, runs: runs,
                    keyOffsets: keyOffsets, keys: keys)
            }
        }
        expect(.invalidShape, "runOffsets", containing: ["3", "2"], runOffsets: [0, 2])
        expect(.invalidShape, "keyOffsets", containing: ["3", "4"], keyOffsets: [0, 0, 1, 2])
        expect(.invalidArgument, "runOffsets", containing: ["2", "1"], runOffsets: [0, 1, 1])
        expect(.invalidArgument, "keyOffsets", containing: ["1"], keyOffsets: [1, 1, 2])
        expect(.invalidArgument, "runOffsets[2]", containing: ["3", "2"], runOffsets: [0, 3, 2])
        expect(.invalidArgument, "runOffsets[1]", containing: ["-1"], runOffsets: [0, -1, 2])
        expect(.invalidArgument, "keyOffsets[2]", containing: ["3", "2"], keyOffsets: [0, 3, 2])
        // The cases are: empty, past the keys, before the previous run, and overlapping it.
        expect(.invalidArgument, "runs[1]", containing: ["3..<3"], runs: [2..<5, 3..<3])
        expect(.invalidArgument, "runs[1]", containing: ["3..<11"], runs: [2..<5, 3..<11])
        expect(.invalidArgument, "runs[0]", containing: ["-1..<5"], runs: [-1..<5, 0..<9])
        expect(.invalidArgument, "runs[1]", containing: ["0..<2"], runOffsets: [0, 2, 2], runs: [2..<5, 0..<2])
        expect(.invalidArgument, "runs[1]", containing: ["4..<6"], runOffsets: [0, 2, 2], runs: [2..<5, 4..<6])
        // The cases are: inside a run, past the keys, negative, repeated, and descending.
        expect(.invalidArgument, "keys[0]", containing: ["4"], keys: [4, 9])
        expect(.invalidArgument, "keys[1]", containing: ["10"], keys: [7, 10])
        expect(.invalidArgument, "keys[0]", containing: ["-1"], keys: [-1, 9])
        expect(.invalidArgument, "keys[1]", containing: ["7"], keyOffsets: [0, 2, 2], keys: [7, 7])
        expect(.invalidArgument, "keys[1]", containing: ["6"], keyOffsets: [0, 2, 2], keys: [7, 6])
        let runs = try KeyRuns(
            query: BlockPartition(length: 8, blockSize: 4), keyLength: 10, runOffsets: [0, 2, 3], runs: [2..<5, 5..<6, 0..<9],
            keyOffsets: [0, 2, 3], keys: [1, 6, 9])
        #expect(Array(runs.runs(block: 0)) == [2..<5, 5..<6] && Array(runs.runs(block: 1)) == [0..<9])
        #expect(Array(runs.keys(block: 0)) == [1, 6] && Array(runs.keys(block: 1)) == [9])
    }

    // MARK: - Operands

    @Test("an operand that disagrees with the plan is named, and nothing is written", arguments: InstructionSet.available)
    func operands(_ set: InstructionSet) throws {
        let attention = try BlockSparseAttention(Self.shape(), heads: [.dense], isCausal: true, instructionSet: set)
        for (argument, axis) in ["query", "key", "value", "output"].flatMap({ name in (0..<3).map { (name, $0) } }) {
            func extents(_ name: String, _ shape: [Int]) -> [Int] {
                shape.enumerated().map { $1 + (name == argument && $0 == axis ? 1 : 0) }
            }
            let query = try Tensor<Float>(zeros: extents("query", [6, 20, 8]))
            let key = try Tensor<Float>(zeros: extents("key", [3, 30, 8]))
            let value = try Tensor<Float>(zeros: extents("value", [3, 30, 8]))
            var output = try Tensor<Float>(extents("output", [6, 20, 8])) { _ in 77 }
            var logSumExp = [Float](repeating: 77, count: 120)
            expectError(.invalidShape, argument) {
                try attention.run(
                    query: query.view(), key: key.view(), value: value.view(), output: output.mutableView(),
                    logSumExp: logSumExp.mutableSpan)
            }
            #expect(output.elements.allSatisfy { $0 == 77 } && logSumExp.allSatisfy { $0 == 77 })
        }
        let operands = try BlockSparseOperands(Self.shape())
        var output = try Tensor<Float>(zeros: [6, 20, 8])
        for count in [0, 119, 121] {
            var logSumExp = [Float](repeating: 77, count: count)
            expectError(.invalidShape, "logSumExp", containing: ["120", "\(count)"]) {
                try attention.run(
                    query: operands.query.view(), key: operands.key.view(), value: operands.value.view(),
                    output: output.mutableView(), logSumExp: logSumExp.mutableSpan)
            }
        }
    }
}
