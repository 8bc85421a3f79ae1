import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Queries with a range of keys of their own: prefix language models, CoT-VLA, and ranges that follow no rule.
@Suite("Key limits: one range of keys per query")
struct KeyLimitsTests {
    /// Ranges without a rule: some empty, some with every key.
    static func random(_ shape: AttentionShape, seed: UInt64) -> KeyLimits {
        var random = SplitMix64(seed: seed)
        return KeyLimits(
            (0..<shape.queryLength).map { query in
                if query % 11 == 4 { return 0..<shape.keyLength }
                let (a, b) = (
                    Int.random(in: 0...shape.keyLength, using: &random), Int.random(in: 0...shape.keyLength, using: &random)
                )
                return query % 7 == 2 ? a..<a : min(a, b)..<max(a, b)
            })
    }

    private func expectMatches(
        _ shape: AttentionShape, _ limits: KeyLimits, modifiers: ScoreModifiers = ScoreModifiers(), bias: Tensor<Float>? = nil,
        _ set: InstructionSet, sees: (Int, Int) -> Bool, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let operands = try BlockSparseOperands(shape)
        let attention = try DenseAttention(shape, limits: limits, modifiers: modifiers, instructionSet: set)
        #expect(
            attention.visiblePairs
                == shape.queryHeads * (0..<shape.queryLength).reduce(0) { $0 + limits.ranges[$1].count })
        let state =
            if let bias {
                try attention(query: operands.query, key: operands.key, value: operands.value, bias: bias)
            } else {
                try attention(query: operands.query, key: operands.key, value: operands.value)
            }
        let rows = try referenceRows(
            ReferenceAttention(shape, modifiers: modifiers), query: operands.query, key: operands.key, value: operands.value,
            bias: bias, hides: { !sees($0, $1) })
        SparseKernelsTests.expectMatches(
            state.output, state.logSumExp, rows, headDim: shape.headDim, logitsSoftCap: modifiers.logitsSoftCap, "\(set)",
            sourceLocation: sourceLocation)
    }

    @Test(
        "full attention inside spans, a mask elsewhere", arguments: InstructionSet.available,
        [
            ([20..<90], 90), ([0..<33], 90), ([31..<45, 61..<75], 55), ([40..<41, 89..<90, 10..<10], 90),
            ([5..<30, 25..<60], 90),
            ([], 90), ([0..<90], 1),
        ] as [([Range<Int>], Int)])
    func spans(_ set: InstructionSet, _ masks: ([Range<Int>], Int)) throws {
        let (spans, queries) = masks
        let shape = try AttentionShape(
            queryLength: queries, keyLength: 90, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
        for mask in [AttentionMask.causal, .causal(window: 9), .window(left: 30, right: 4), .full] {
            let limits = try KeyLimits(shape, mask: mask, fullWithin: spans)
            try expectMatches(shape, limits, set) { query, key in
                let position = query + 90 - queries
                return mask.isVisible(query: query, key: key, queryLength: queries, keyLength: 90)
                    || spans.contains { $0.contains(position) && $0.contains(key) }
            }
        }
    }

    @Test("ranges that follow no rule, with every modifier", arguments: InstructionSet.available)
    func ranges(_ set: InstructionSet) throws {
        for (queries, keys, heads, kvHeads) in [
            (70, 300, 4, 2), (200, 150, 2, 1), (1, 260, 8, 1), (33, 129, 3, 3), (5, 7, 6, 2),
        ] {
            let shape = try AttentionShape(
                queryLength: queries, keyLength: keys, queryHeads: heads, kvHeads: kvHeads, headDim: 12, valueDim: 7)
            let limits = Self.random(shape, seed: UInt64(queries))
            let slopes = (0..<heads).map { 0.25 * Float($0) - 0.25 }
            for modifiers in [
                ScoreModifiers(), ScoreModifiers(softmaxScale: 0.4, logitsSoftCap: 3),
                ScoreModifiers(aliBiSlopes: slopes, aliBiForm: .symmetric), ScoreModifiers(sinkLogits: slopes),
            ] {
                try expectMatches(shape, limits, modifiers: modifiers, set) { limits.ranges[$0].contains($1) }
            }
            let bias = try Tensor<Float>([heads, queries, keys]) { $0 % 5 == 0 ? -.infinity : Float($0 % 9) / 8 }
            try expectMatches(shape, limits, bias: bias, set) { limits.ranges[$0].contains($1) }
        }
    }

    @Test("limits that say what a mask says give its bits, on any threads", arguments: InstructionSet.available)
    func sameAsMasks(_ set: InstructionSet) throws {
        for (queries, heads, kvHeads) in [(130, 4, 2), (200, 2, 2), (17, 8, 1), (64, 6, 2)] {
            let shape = try AttentionShape(
                queryLength: queries, keyLength: 310, queryHeads: heads, kvHeads: kvHeads, headDim: 20, valueDim: 13)
            let operands = try BlockSparseOperands(shape)
            for mask in [AttentionMask.causal, .full, .window(left: nil, right: 30)] {
                let limits = try KeyLimits(shape, mask: mask, fullWithin: [])
                let expected = try DenseAttention(shape, mask: mask, instructionSet: set)(
                    query: operands.query, key: operands.key, value: operands.value)
                for threads in [1, 2, 7] {
                    let state = try DenseAttention(shape, limits: limits, instructionSet: set)(
                        query: operands.query, key: operands.key, value: operands.value, on: WorkerPool(threads: threads))
                    #expect(state.output.bits == expected.output.bits, "\(set), \(mask)")
                    #expect(state.logSumExp.bits == expected.logSumExp.bits, "\(set), \(mask)")
                }
            }
        }
        #expect(KeyLimits(below: [3, 0, -2]).ranges == [0..<3, 0..<0, 0..<0])
    }

    @Test("rows of a cache, of every format", arguments: InstructionSet.available, KVFormat.allCases)
    func cached(_ set: InstructionSet, _ format: KVFormat) throws {
        let fixture = try CachedRowsTests.Fixture(format, tokens: 305, instructionSet: set)
        let cached = try fixture.cache.rows(of: fixture.sequence)
        for queries in [70, 8] {
            let shape = try AttentionShape(
                queryLength: queries, keyLength: 305, queryHeads: 6, kvHeads: 2, headDim: 20, valueDim: 13)
            let query = try Tensor<Float>.normal([6, queries, 20], seed: 3)
            let limits = try KeyLimits(shape, fullWithin: [290..<305, 240..<260])
            let attention = try DenseAttention(shape, limits: limits, instructionSet: set)
            let expected = try attention(query: query, key: fixture.key, value: fixture.value)
            var output = try Tensor<Float>(zeros: [6, queries, 13])
            try attention.run(query: query.view(), key: cached.key, value: cached.value, output: output.mutableView())
            #expect(output.bits == expected.output.bits)
            let rows = try referenceRows(
                ReferenceAttention(shape), query: query, key: fixture.key, value: fixture.value,
                hides: { !limits.isVisible(query: $0, key: $1) })
            SparseKernelsTests.expectMatches(expected.output, expected.logSumExp, rows, headDim: 20, "\(set), \(format)")
        }
    }

    @Test("what is hidden from a query may be anything", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 60, keyLength: 140, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
        let operands = try BlockSparseOperands(shape)
        let limits = Self.random(shape, seed: 8)
        let hidden = 57
        let attention = try DenseAttention(shape, limits: limits, instructionSet: set)
        let clean = try attention(query: operands.query, key: operands.key, value: operands.value)
        let bias = try Tensor<Float>(zeros: [1, 60, 140])
        for bad in [Float.infinity, -.infinity, .nan] {
            var (key, value) = (operands.key, operands.value)
            for head in 0..<2 {
                for channel in 0..<12 { key[head, hidden, channel] = bad }
                for channel in 0..<7 { value[head, hidden, channel] = bad }
            }
            for state in [
                try attention(query: operands.query, key: key, value: value),
                try attention(query: operands.query, key: key, value: value, bias: bias),
            ] {
                for row in 0..<4 * 60 {
                    let (a, b) = (state.output.elements[row * 7..<row * 7 + 7], clean.output.elements[row * 7..<row * 7 + 7])
                    if limits.isVisible(query: row % 60, key: hidden) {
                        #expect(a.allSatisfy { !$0.isFinite }, "\(set), \(bad), row \(row)")
                    } else {
                        #expect(a.map(\.bitPattern) == b.map(\.bitPattern), "\(set), \(bad), row \(row)")
                    }
                }
            }
        }
    }

    @Test("errors name the range and what it leaves")
    func errors() throws {
        let shape = try AttentionShape(queryLength: 3, keyLength: 10, queryHeads: 1, kvHeads: 1, headDim: 4)
        expectError(.invalidShape, "limits", containing: "3", "2") {
            _ = try DenseAttention(shape, limits: KeyLimits([0..<1, 0..<1]))
        }
        expectError(.invalidArgument, "limits[1]", containing: "10", "0..<11") {
            _ = try DenseAttention(shape, limits: KeyLimits(below: [1, 11, 2]))
        }
        expectError(.invalidArgument, "limits[2]", containing: "10", "-1..<2") {
            _ = try DenseAttention(shape, limits: KeyLimits([0..<1, 0..<1, -1..<2]))
        }
        expectError(.invalidArgument, "spans[1]", containing: "10", "5..<11") {
            _ = try KeyLimits(shape, fullWithin: [0..<10, 5..<11])
        }
        expectError(.invalidArgument, "mask.window", containing: "1", "0") {
            _ = try KeyLimits(shape, mask: .causal(window: 0), fullWithin: [])
        }
        let empty = try AttentionShape(queryLength: 0, keyLength: 10, queryHeads: 1, kvHeads: 1, headDim: 4)
        let attention = try DenseAttention(empty, limits: KeyLimits(empty, fullWithin: [2..<5]))
        #expect(attention.visiblePairs == 0)
    }
}
