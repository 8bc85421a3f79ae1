import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// A block of a few queries against many keys: the heads of a group are stacked as rows of one task, and long keys are cut into
/// pieces that are merged.
@Suite("Dense attention of a block of queries")
struct BlockAttentionTests {
    static let masks: [AttentionMask] = [.full, .causal, .window(left: 40, right: 3), .window(left: nil, right: 50)]
    /// Queries, keys, query heads, KV heads: a group of one, of many, of more than a task has rows.
    static let shapes = [
        (1, 300, 8, 1), (8, 300, 8, 2), (32, 150, 16, 2), (31, 33, 6, 2), (97, 260, 12, 1), (128, 200, 4, 1), (191, 129, 2, 1),
        (3, 140, 200, 1), (2, 5, 96, 1), (5, 1, 4, 2), (40, 17, 6, 3),
    ]

    /// One head of a tensor.
    static func head(_ head: Int, of tensor: Tensor<Float>) throws -> Tensor<Float> {
        let (rows, channels) = (tensor.shape[1], tensor.shape[2])
        return try Tensor([1, rows, channels]) { tensor[flat: head * rows * channels + $0] }
    }

    @Test("a row has the bits that it has alone in its head", arguments: InstructionSet.available, masks)
    func bitsOfHeads(_ set: InstructionSet, _ mask: AttentionMask) throws {
        for (queries, keys, heads, kvHeads) in Self.shapes {
            let shape = try AttentionShape(
                queryLength: queries, keyLength: keys, queryHeads: heads, kvHeads: kvHeads, headDim: 20, valueDim: 13)
            let operands = try BlockSparseOperands(shape)
            for modifiers in [ScoreModifiers(), ScoreModifiers(softmaxScale: 0.3, logitsSoftCap: 2)] {
                let attention = try DenseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: set)
                let state = try attention(query: operands.query, key: operands.key, value: operands.value)
                let rows = try referenceRows(
                    ReferenceAttention(shape, mask: mask, modifiers: modifiers), query: operands.query, key: operands.key,
                    value: operands.value)
                expectMatches(
                    state.output, state.logSumExp, rows, headDim: 20, logitsSoftCap: modifiers.logitsSoftCap,
                    "\(set), \(shape), \(mask)")
                // With a left side, the steps of keys begin where those of a task do.
                if mask.left != nil { continue }
                let alone = try AttentionShape(
                    queryLength: queries, keyLength: keys, queryHeads: 1, kvHeads: 1, headDim: 20, valueDim: 13)
                let single = try DenseAttention(alone, mask: mask, modifiers: modifiers, instructionSet: set)
                for head in Set([0, heads / 2, heads - 1]) {
                    let kvHead = head / shape.queryHeadsPerKVHead
                    let expected = try single(
                        query: Self.head(head, of: operands.query), key: Self.head(kvHead, of: operands.key),
                        value: Self.head(kvHead, of: operands.value))
                    #expect(
                        try Self.head(head, of: state.output).bits == expected.output.bits, "\(set), \(shape), head \(head)")
                    #expect(
                        Array(state.logSumExp.bits[head * queries..<(head + 1) * queries]) == expected.logSumExp.bits,
                        "\(set), \(shape), head \(head)")
                }
            }
        }
    }

    @Test("both layouts, rows with gaps and 16 bits", arguments: InstructionSet.available, [AttentionMask.full, .causal])
    func layouts(_ set: InstructionSet, _ mask: AttentionMask) throws {
        let shape = try AttentionShape(
            queryLength: 23, keyLength: 210, queryHeads: 6, kvHeads: 2, headDim: 20, valueDim: 13)
        let operands = try BlockSparseOperands(shape)
        let attention = try DenseAttention(shape, mask: mask, instructionSet: set)
        let expected = try attention(query: operands.query, key: operands.key, value: operands.value)
        for (headStride, tokenStride) in [(20, 120), (20, 150), (23 * 20, 20), (23 * 31 + 5, 31)] {
            var memory = [Float](repeating: .nan, count: 6 * headStride + 23 * tokenStride + 32)
            for head in 0..<6 {
                for token in 0..<23 {
                    for x in 0..<20 { memory[head * headStride + token * tokenStride + x] = operands.query[head, token, x] }
                }
            }
            var result = [Float](repeating: 7, count: memory.count)
            var lse = [Float](repeating: 0, count: 6 * 23)
            func geometry(_ channels: Int) throws -> TensorGeometry {
                try TensorGeometry(
                    heads: 6, tokens: 23, channels: channels, headStride: headStride, tokenStride: tokenStride)
            }
            try attention.run(
                query: TensorView(memory.span, geometry: geometry(20)), key: operands.key.view(), value: operands.value.view(),
                output: MutableTensorView(result.mutableSpan, geometry: geometry(13)), logSumExp: lse.mutableSpan)
            #expect(lse.map(\.bitPattern) == expected.logSumExp.bits)
            var untouched = result
            for head in 0..<6 {
                for token in 0..<23 {
                    for x in 0..<13 {
                        let place = head * headStride + token * tokenStride + x
                        #expect(result[place].bitPattern == expected.output[head, token, x].bitPattern)
                        untouched[place] = 7
                    }
                }
            }
            #expect(untouched.allSatisfy { $0 == 7 }, "written between rows")
        }
        let (q, k, v) = (
            operands.query.converted(to: Float16.self), operands.key.converted(to: BFloat16.self),
            operands.value.converted(to: Float16.self)
        )
        let rows = try referenceRows(ReferenceAttention(shape, mask: mask), query: q, key: k, value: v)
        let half = try attend(attention, query: q, key: k, value: v, as: Float16.self)
        expectMatches(half.output, half.logSumExp, rows, headDim: 20, "\(set), half")
        let brain = try attend(attention, query: q, key: k, value: v, as: BFloat16.self)
        expectMatches(brain.output, brain.logSumExp, rows, headDim: 20, "\(set), bfloat16")
    }

    // MARK: - Pieces

    /// Queries, query heads, KV heads. The keys of the last one are not cut, as there are enough tasks.
    static let long = [(1, 4, 1), (8, 4, 2), (33, 2, 2), (2, 16, 16)]

    @Test("long keys are cut, whatever the modifiers, with the same bits on any threads", arguments: InstructionSet.available)
    func pieces(_ set: InstructionSet) throws {
        let keys = 6000
        for (queries, heads, kvHeads) in Self.long {
            let shape = try AttentionShape(
                queryLength: queries, keyLength: keys, queryHeads: heads, kvHeads: kvHeads, headDim: 12, valueDim: 7)
            let operands = try BlockSparseOperands(shape)
            let numbers = (0..<heads).map { 0.002 * Float($0) - 0.003 }
            let cases: [(AttentionMask, ScoreModifiers)] = [
                (.full, ScoreModifiers()), (.causal, ScoreModifiers(logitsSoftCap: 4)),
                (.window(left: 5000, right: 0), ScoreModifiers()), (.window(left: 300, right: 2), ScoreModifiers()),
                (.causal, ScoreModifiers(aliBiSlopes: numbers)), (.full, ScoreModifiers(sinkLogits: numbers.map { $0 + 7 })),
            ]
            for (mask, modifiers) in cases {
                let attention = try DenseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: set)
                let rows = try referenceRows(
                    ReferenceAttention(shape, mask: mask, modifiers: modifiers), query: operands.query, key: operands.key,
                    value: operands.value)
                let first = try attend(
                    attention, query: operands.query, key: operands.key, value: operands.value, on: .serial)
                expectMatches(
                    first.output, first.logSumExp, rows, headDim: 12, logitsSoftCap: modifiers.logitsSoftCap,
                    "\(set), \(shape), \(mask)")
                for threads in [2, 7] {
                    let other = try attend(
                        attention, query: operands.query, key: operands.key, value: operands.value,
                        on: WorkerPool(threads: threads))
                    #expect(other.output.bits == first.output.bits && other.logSumExp.bits == first.logSumExp.bits)
                }
                let half = try attend(
                    attention, query: operands.query, key: operands.key, value: operands.value, as: Float16.self)
                expectMatches(
                    half.output, half.logSumExp, rows, headDim: 12, logitsSoftCap: modifiers.logitsSoftCap, "\(set), half")
            }
            let bias = try Tensor<Float>([1, queries, keys]) { $0 % 3 == 0 ? -.infinity : Float($0 % 7) / 8 }
            let state = try DenseAttention(shape, instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value, bias: bias)
            try expectMatchesReference(
                state, ReferenceAttention(shape), query: operands.query, key: operands.key, value: operands.value, bias: bias,
                "\(set), bias")
        }
    }

    @Test("limits over pieces: rows without keys, and rows with keys of one piece", arguments: InstructionSet.available)
    func limitsOverPieces(_ set: InstructionSet) throws {
        let shape = try AttentionShape(
            queryLength: 12, keyLength: 9000, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 7)
        let operands = try BlockSparseOperands(shape)
        let limits = KeyLimits([
            0..<0, 0..<9000, 10..<11, 4095..<4097, 2048..<4096, 8999..<9000, 5000..<5000, 0..<5000, 100..<8100, 3..<9000, 0..<1,
            7000..<9000,
        ])
        let attention = try DenseAttention(shape, limits: limits, instructionSet: set)
        let clean = try attention(query: operands.query, key: operands.key, value: operands.value)
        let rows = try referenceRows(
            ReferenceAttention(shape), query: operands.query, key: operands.key, value: operands.value,
            hides: { !limits.isVisible(query: $0, key: $1) })
        expectMatches(clean.output, clean.logSumExp, rows, headDim: 12, "\(set)")
        var (key, value) = (operands.key, operands.value)
        for head in 0..<2 {
            for channel in 0..<12 { key[head, 4096, channel] = .nan }
            for channel in 0..<7 { value[head, 4096, channel] = .infinity }
        }
        let state = try attention(query: operands.query, key: key, value: value)
        for row in 0..<48 {
            let channels = row * 7..<row * 7 + 7
            if limits.isVisible(query: row % 12, key: 4096) {
                #expect(state.logSumExp[flat: row].isNaN && state.output.elements[channels].allSatisfy(\.isNaN))
            } else {
                #expect(
                    state.output.elements[channels].map(\.bitPattern) == clean.output.elements[channels].map(\.bitPattern))
                #expect(state.logSumExp[flat: row].bitPattern == clean.logSumExp[flat: row].bitPattern)
            }
        }
    }

    @Test("a cache of any format, written over in the middle", arguments: InstructionSet.available, KVFormat.allCases)
    func cached(_ set: InstructionSet, _ format: KVFormat) throws {
        let cache = try PagedKVCache(
            KVCacheConfiguration(kvHeads: 2, headDim: 20, valueDim: 12, pageSize: 32, pageCapacity: 160, format: format),
            instructionSet: set)
        let sequence = cache.makeSequence()
        try cache.append(
            key: Tensor<Float>.normal([2, 4500, 20], seed: 1), value: Tensor<Float>.normal([2, 4500, 12], seed: 2),
            to: sequence)
        let shape = try AttentionShape(
            queryLength: 32, keyLength: 4500, queryHeads: 8, kvHeads: 2, headDim: 20, valueDim: 12)
        let attention = try DenseAttention(shape, instructionSet: set)
        for step in 0..<2 {
            let query = try Tensor<Float>.normal([8, 32, 20], seed: UInt64(10 + step))
            try cache.overwrite(
                key: Tensor<Float>.normal([2, 32, 20], seed: UInt64(20 + step)),
                value: Tensor<Float>.normal([2, 32, 12], seed: UInt64(30 + step)), in: sequence, from: 4000)
            let expected = try attention(
                query: query, key: cache.keys(of: sequence), value: cache.values(of: sequence))
            let cached = try cache.rows(of: sequence)
            for threads in [1, 2, 7] {
                var output = try Tensor<Float>(zeros: [8, 32, 12])
                try attention.run(
                    query: query.view(), key: cached.key, value: cached.value, output: output.mutableView(),
                    on: WorkerPool(threads: threads))
                #expect(output.bits == expected.output.bits, "\(set), \(format), step \(step)")
            }
        }
    }
}
