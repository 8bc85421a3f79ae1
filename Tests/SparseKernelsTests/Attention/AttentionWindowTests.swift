import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Windows with a left and a right side, like `window_size` of FlashAttention, and the symmetric form of ALiBi.
@Suite("Attention windows and symmetric ALiBi")
struct AttentionWindowTests {
    /// A side is nil, 0, less or more than a step of keys, or more than any sequence.
    static let sides: [(left: Int?, right: Int?)] = [
        (nil, nil), (0, 0), (0, nil), (nil, 0), (5, 0), (0, 7), (3, 50), (40, 2), (130, 129), (nil, 33), (64, nil),
        (1000, 1000),
        (.max, .max), (-1, 4), (9, -1),
    ]
    static let lengths: [(queries: Int, keys: Int)] = [(70, 150), (150, 150), (97, 40), (1, 130), (130, 1)]

    /// FlashAttention's documented rule: i + Lk − Lq − left ≤ j ≤ i + Lk − Lq + right, where −1 is no limit.
    static func sees(_ left: Int?, _ right: Int?, isCausal: Bool, _ i: Int, _ j: Int, _ lengths: (queries: Int, keys: Int))
        -> Bool
    {
        let distance = j - (i + lengths.keys - lengths.queries)
        let (left, right) = (left ?? -1, isCausal ? 0 : right ?? -1)
        return (left == -1 || -distance <= left) && (right == -1 || distance <= right)
    }

    @Test("dense attention sees the keys of the window and no other", arguments: InstructionSet.available, sides.indices)
    func dense(_ set: InstructionSet, _ index: Int) throws {
        let (left, right) = Self.sides[index]
        for (lengths, isCausal) in Self.lengths.flatMap({ [($0, true), ($0, false)] }) {
            let shape = try AttentionShape(
                queryLength: lengths.queries, keyLength: lengths.keys, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
            let operands = try BlockSparseOperands(shape)
            let attention = try DenseAttention(
                shape, mask: .window(left: left, right: right, isCausal: isCausal), instructionSet: set)
            let rule: Visibility = { Self.sees(left, right, isCausal: isCausal, $1, $2, lengths) }
            #expect(attention.visiblePairs == countPairs(shape, rule))
            let rows = try referenceRows(
                shape, query: operands.query, key: operands.key, value: operands.value, sees: rule)
            let state = try attention(query: operands.query, key: operands.key, value: operands.value)
            expectMatches(
                state.output, state.logSumExp, rows, headDim: 12, "\(set), \(lengths), \(isCausal ? "causal" : "full")")
        }
    }

    @Test("windows of both kinds are one kind", arguments: InstructionSet.available)
    func sameMasks(_ set: InstructionSet) throws {
        #expect(AttentionMask.causal(window: 20) == .window(left: 19, right: nil, isCausal: true))
        #expect(AttentionMask.causal(window: 20) == .window(left: 19, right: 0, isCausal: true))
        #expect(AttentionMask.full(window: 20) == .window(left: 19, right: 19))
        #expect(AttentionMask.full == .window(left: -1, right: -1) && AttentionMask.causal != .full)
        let shape = try AttentionShape(queryLength: 70, keyLength: 150, queryHeads: 2, kvHeads: 1, headDim: 12)
        let operands = try BlockSparseOperands(shape)
        func bits(_ mask: AttentionMask) throws -> [UInt32] {
            try DenseAttention(shape, mask: mask, instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value
            ).output.bits
        }
        #expect(try bits(.causal(window: 20)) == bits(.window(left: 19, right: 0)))
        #expect(try bits(.full(window: 20)) == bits(.window(left: 19, right: 19)))
        #expect(try bits(.causal) == bits(.window(left: nil, right: 0)))
    }

    @Test("a window whose keys are past an end of the sequence shows nothing: 0 and −∞", arguments: InstructionSet.available)
    func emptyRows(_ set: InstructionSet) throws {
        // Rows are at position −90 and later. With 10 keys to the right, rows 0..<80 see nothing.
        let shape = try AttentionShape(queryLength: 100, keyLength: 10, queryHeads: 2, kvHeads: 1, headDim: 8)
        let operands = try BlockSparseOperands(shape)
        let state = try DenseAttention(shape, mask: .window(left: 3, right: 10), instructionSet: set)(
            query: operands.query, key: operands.key, value: operands.value)
        for row in 0..<200 {
            let isEmpty = row % 100 < 80
            #expect((state.logSumExp[flat: row] == -.infinity) == isEmpty)
            let channels = state.output.elements[row * 8..<(row + 1) * 8]
            #expect(channels.allSatisfy { $0.bitPattern == 0 } == isEmpty)
        }
    }

    // MARK: - Block-sparse

    static func patterns(_ shape: AttentionShape, isCausal: Bool) throws -> [[HeadPattern]] {
        let grid = try BlockGrid(shape, blockSize: 16, isCausal: isCausal)
        let mask = try BlockMask.random(grid, heads: 4, density: 0.6, seed: 23)
        let query = try BlockPartition(length: shape.queryLength, blockSize: 48)
        let runs = try KeyRuns.random(query: query, keyLength: shape.keyLength, longest: 20, seed: 29)
        let singles = try KeyRuns.random(query: query, keyLength: shape.keyLength, longest: 1, seed: 31)
        var patterns: [[HeadPattern]] = [
            [.dense], (0..<4).map { .blockSparse(mask, head: $0) }, [.runs(runs), .runs(singles)],
        ]
        if isCausal {
            patterns.append([.streaming(sink: 4, local: 20), .streaming(sink: 30, local: 3)])
            patterns.append([.streaming(sink: 0, local: 64), .dense, .runs(runs), .blockSparse(mask, head: 2)])
        }
        return patterns
    }

    @Test("every pattern is cut to the window", arguments: sides.indices, [true, false])
    func blockSparse(_ index: Int, _ isCausal: Bool) throws {
        let window = AttentionWindow(left: Self.sides[index].left, right: Self.sides[index].right)
        for (queries, keys) in [(100, 130), (90, 50)] {
            let shape = try AttentionShape(
                queryLength: queries, keyLength: keys, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
            for patterns in try Self.patterns(shape, isCausal: isCausal) {
                try expectMatches(shape, patterns, isCausal: isCausal, window: window, "\(window), \(queries)×\(keys)")
            }
        }
    }

    @Test("a window over dense heads is that of dense attention", arguments: InstructionSet.available, sides.indices)
    func denseBits(_ set: InstructionSet, _ index: Int) throws {
        let window = AttentionWindow(left: Self.sides[index].left, right: Self.sides[index].right)
        let shape = try AttentionShape(queryLength: 100, keyLength: 230, queryHeads: 4, kvHeads: 2, headDim: 12)
        let operands = try BlockSparseOperands(shape)
        for isCausal in [true, false] {
            let sparse = try BlockSparseAttention(
                shape, heads: [.dense], isCausal: isCausal, window: window, instructionSet: set)
            let dense = try DenseAttention(
                shape, mask: AttentionMask(isCausal: isCausal, window: window), instructionSet: set)
            #expect(sparse.visiblePairs == dense.visiblePairs && sparse.density == 1)
            let (a, b) = try (
                sparse(query: operands.query, key: operands.key, value: operands.value),
                dense(query: operands.query, key: operands.key, value: operands.value)
            )
            // With a left side, keys at the beginning of later tasks are hidden. The two operators cut tasks differently, and
            // so the steps of the online softmax differ. The oracle compares those cases.
            if window.left == nil {
                #expect(a.output.bits == b.output.bits && a.logSumExp.bits == b.logSumExp.bits)
            }
        }
    }

    @Test("density counts what the window leaves")
    func density() throws {
        let shape = try AttentionShape(queryLength: 64, keyLength: 64, queryHeads: 1, kvHeads: 1, headDim: 4)
        let grid = try BlockGrid(shape, blockSize: 16, isCausal: true)
        // The diagonal blocks contain 4 · 136 of the pairs at distance 0...15, of which there are 64 · 16 − 120.
        let mask = try BlockMask(grid: grid) { _, row, column in row == column }
        let plan = try BlockSparseAttention(shape, mask: mask, window: AttentionWindow(left: 15, right: nil))
        #expect(plan.visiblePairs == 544 && plan.density == 544.0 / 904)
        // Blocks outside the window cost nothing, whether kept or not.
        let full = try BlockSparseAttention(shape, mask: .full(grid), window: AttentionWindow(left: 15, right: nil))
        #expect(full.visiblePairs == 904 && full.density == 1)
    }

    @Test("windows count within a sequence of a packed batch", arguments: [true, false])
    func packed(_ isCausal: Bool) throws {
        let shape = try AttentionShape(queryLength: 90, keyLength: 170, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
        let operands = try BlockSparseOperands(shape)
        let window = AttentionWindow(left: 6, right: 3)
        let parts = [(0..<30, 0..<100), (30..<30, 100..<100), (30..<80, 100..<120), (80..<90, 120..<170)]
        for modifiers in [
            ScoreModifiers(), ScoreModifiers(logitsSoftCap: 3, aliBiSlopes: [0.25, 0.5, 1, -0.5], aliBiForm: .symmetric),
        ] {
            for set in InstructionSet.available {
                let packed = try BlockSparseAttention(
                    shape, sequences: parts.map { .init(queries: $0.0, keys: $0.1, heads: [.dense]) }, isCausal: isCausal,
                    window: window, modifiers: modifiers, instructionSet: set)(
                        query: operands.query, key: operands.key, value: operands.value)
                for (queries, keys) in parts where !queries.isEmpty {
                    let part = try AttentionShape(
                        queryLength: queries.count, keyLength: keys.count, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
                    let (q, k, v) = try (
                        BlockSparsePackedTests.tokens(operands.query, queries),
                        BlockSparsePackedTests.tokens(operands.key, keys), BlockSparsePackedTests.tokens(operands.value, keys)
                    )
                    let mask = AttentionMask(isCausal: isCausal, window: window)
                    let rows = try referenceRows(
                        ReferenceAttention(part, mask: mask, modifiers: modifiers), query: q, key: k, value: v)
                    let lse = try Tensor<Float>([4, queries.count]) {
                        packed.logSumExp[flat: $0 / queries.count * 90 + queries.lowerBound + $0 % queries.count]
                    }
                    try expectMatches(
                        BlockSparsePackedTests.tokens(packed.output, queries), lse, rows, headDim: 12,
                        logitsSoftCap: modifiers.logitsSoftCap, "\(set)")
                }
            }
        }
    }

    // MARK: - ALiBi

    @Test("symmetric ALiBi lowers both sides", arguments: InstructionSet.available)
    func symmetric(_ set: InstructionSet) throws {
        let variants = [
            ScoreModifiers(aliBiSlopes: [0.25, 0.5, 1, -0.125], aliBiForm: .symmetric),
            ScoreModifiers(softmaxScale: 0.7, logitsSoftCap: 5, aliBiSlopes: [0.5, 0, 0.25, 2], aliBiForm: .symmetric),
        ]
        for modifiers in variants {
            for mask in [AttentionMask.full, .causal, .window(left: 20, right: 9), .window(left: nil, right: 40)] {
                for (queries, keys) in [(70, 150), (150, 60), (49, 49)] {
                    let shape = try AttentionShape(
                        queryLength: queries, keyLength: keys, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
                    let operands = try BlockSparseOperands(shape)
                    let state = try DenseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: set)(
                        query: operands.query, key: operands.key, value: operands.value)
                    try expectMatchesReference(
                        state, ReferenceAttention(shape, mask: mask, modifiers: modifiers), query: operands.query,
                        key: operands.key, value: operands.value, "\(set), \(mask)")
                }
            }
        }
    }

    @Test(
        "symmetric ALiBi is a bias of −slope·|i − j|, and under a causal limit the signed form",
        arguments: InstructionSet.available)
    func symmetricIsABias(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 60, keyLength: 100, queryHeads: 2, kvHeads: 1, headDim: 8)
        let operands = try BlockSparseOperands(shape)
        let slopes: [Float] = [0.5, 0.125]
        let bias = try Tensor<Float>([2, 60, 100]) { flat in
            let (head, query, key) = (flat / 6000, flat / 100 % 60, flat % 100)
            return -slopes[head] * Float(abs(query + 40 - key))
        }
        let symmetric = ScoreModifiers(aliBiSlopes: slopes, aliBiForm: .symmetric)
        let (a, b) = try (
            DenseAttention(shape, modifiers: symmetric, instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value),
            DenseAttention(shape, instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value, bias: bias)
        )
        // These products of slope and distance are exact, so that the sums are the same with and without fusing.
        #expect(a.output.bits == b.output.bits && a.logSumExp.bits == b.logSumExp.bits)
        let causal = try [AliBiForm.signed, .symmetric].map {
            try DenseAttention(
                shape, mask: .causal, modifiers: ScoreModifiers(aliBiSlopes: slopes, aliBiForm: $0), instructionSet: set)(
                    query: operands.query, key: operands.key, value: operands.value
                ).output.bits
        }
        #expect(causal[0] == causal[1])
    }

    @Test("every pattern takes slopes, single keys included", arguments: AliBiForm.allCases, [true, false])
    func slopesOfPatterns(_ form: AliBiForm, _ isCausal: Bool) throws {
        let shape = try AttentionShape(queryLength: 100, keyLength: 130, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
        let modifiers = ScoreModifiers(logitsSoftCap: 4, aliBiSlopes: [0.25, -0.125, 0.5, 0.0625], aliBiForm: form)
        for patterns in try Self.patterns(shape, isCausal: isCausal) {
            for window in [AttentionWindow.unlimited, AttentionWindow(left: 40, right: 25)] {
                try expectMatches(shape, patterns, isCausal: isCausal, window: window, modifiers: modifiers)
            }
        }
    }

    @Test("windows and slopes take 16-bit operands and give the same bits on any threads", arguments: InstructionSet.available)
    func types(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 130, keyLength: 210, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
        let operands = try BlockSparseOperands(shape)
        let (q, k) = (operands.query.converted(to: BFloat16.self), operands.key.converted(to: Float16.self))
        let v = operands.value.converted(to: BFloat16.self)
        let modifiers = ScoreModifiers(aliBiSlopes: [0.25, 0.5, 1, 0], aliBiForm: .symmetric)
        let mask = AttentionMask.window(left: 50, right: 20)
        let attention = try DenseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: set)
        let (output, lse) = try attend(attention, query: q, key: k, value: v, as: Float16.self, on: .serial)
        let rows = try referenceRows(
            ReferenceAttention(shape, mask: mask, modifiers: modifiers), query: q, key: k, value: v)
        expectMatches(output, lse, rows, headDim: 12, "\(set)")
        for threads in [2, 7] {
            let other = try attend(attention, query: q, key: k, value: v, as: Float16.self, on: WorkerPool(threads: threads))
            #expect(other.output.bits == output.bits && other.logSumExp.bits == lse.bits)
        }
    }
}
