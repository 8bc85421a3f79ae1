import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// The bias that `run` adds to the scores: its shapes and strides, and −∞ as a mask.
@Suite("Attention bias")
struct AttentionBiasTests {
    /// Three panels of queries on the widest level, and two steps of keys.
    static func shape() throws -> AttentionShape {
        try AttentionShape(queryLength: 53, keyLength: 140, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 9)
    }

    struct Operands {
        let query: Tensor<Float>
        let key: Tensor<Float>
        let value: Tensor<Float>

        init(_ shape: AttentionShape) throws {
            query = try .normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 41)
            key = try .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 42)
            value = try .normal([shape.kvHeads, shape.keyLength, shape.valueDim], seed: 43)
        }
    }

    static func bias(heads: Int, _ shape: AttentionShape) throws -> Tensor<Float> {
        try .normal([heads, shape.queryLength, shape.keyLength], seed: 44, scale: 2)
    }

    static func expectMatch(
        _ set: InstructionSet, _ shape: AttentionShape, _ mask: AttentionMask, bias: Tensor<Float>,
        modifiers: ScoreModifiers = ScoreModifiers(), sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let operands = try Operands(shape)
        let attention = try DenseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: set)
        let state = try attention(query: operands.query, key: operands.key, value: operands.value, bias: bias)
        try expectMatchesReference(
            state, ReferenceAttention(shape, mask: mask, modifiers: modifiers), query: operands.query, key: operands.key,
            value: operands.value, bias: bias, "\(set)", sourceLocation: sourceLocation)
    }

    @Test(
        "one bias for all heads, or one for each, is added to the scores", arguments: InstructionSet.available,
        [AttentionMask.full, .causal, .causal(window: 50)])
    func addsToScores(_ set: InstructionSet, _ mask: AttentionMask) throws {
        let shape = try Self.shape()
        for heads in [1, shape.queryHeads] {
            try Self.expectMatch(set, shape, mask, bias: Self.bias(heads: heads, shape))
        }
    }

    @Test("the bias comes after soft cap and slope, and is not scaled", arguments: InstructionSet.available)
    func orderOfScoring(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 20, keyLength: 35, queryHeads: 2, kvHeads: 1, headDim: 12, valueDim: 9)
        let modifiers = ScoreModifiers(softmaxScale: 0.5, logitsSoftCap: 2, aliBiSlopes: [0.5, 0.125])
        try Self.expectMatch(set, shape, .causal, bias: Self.bias(heads: 2, shape), modifiers: modifiers)
    }

    @Test("−∞ hides a key", arguments: InstructionSet.available, [AttentionMask.full, .causal])
    func hidesKeys(_ set: InstructionSet, _ mask: AttentionMask) throws {
        let shape = try AttentionShape(queryLength: 53, keyLength: 70, queryHeads: 2, kvHeads: 1, headDim: 12, valueDim: 9)
        var random = SplitMix64(seed: 45)
        // Two of three keys are hidden at random, so that whole and partial tiles are hidden and most neighbours differ.
        let bias = try Tensor<Float>([1, shape.queryLength, shape.keyLength]) { _ in
            random.uniform() < 2 / 3 ? -.infinity : random.normal()
        }
        try Self.expectMatch(set, shape, mask, bias: bias)
    }

    @Test("−∞ for every key gives an empty row, among rows that are not", arguments: InstructionSet.available)
    func emptyRows(_ set: InstructionSet) throws {
        let shape = try Self.shape()
        let operands = try Operands(shape)
        let emptyRows: Set = [0, 7, 8, 31, 52]
        let bias = try Tensor<Float>([1, shape.queryLength, shape.keyLength]) { flat in
            emptyRows.contains(flat / shape.keyLength) ? -.infinity : 0
        }
        let attention = try DenseAttention(shape, instructionSet: set)
        let state = try attention(query: operands.query, key: operands.key, value: operands.value, bias: bias)
        // Adding 0 changes no bit of a score, so that the other rows equal those without a bias.
        let plain = try attention(query: operands.query, key: operands.key, value: operands.value)
        for row in 0..<shape.queryHeads * shape.queryLength {
            let channels = row * shape.valueDim..<(row + 1) * shape.valueDim
            if emptyRows.contains(row % shape.queryLength) {
                #expect(state.output.bits[channels].allSatisfy { $0 == 0 }, "\(set): row \(row)")
                #expect(state.logSumExp[flat: row] == -.infinity, "\(set): row \(row)")
            } else {
                #expect(state.output.bits[channels] == plain.output.bits[channels], "\(set): row \(row)")
                #expect(state.logSumExp.bits[row] == plain.logSumExp.bits[row], "\(set): row \(row)")
            }
        }
    }

    @Test("an empty row is zero even when the hidden values are NaN", arguments: InstructionSet.available)
    func emptyRowsOverNaN(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 20, keyLength: 30, queryHeads: 1, kvHeads: 1, headDim: 12, valueDim: 9)
        let operands = try Operands(shape)
        let value = try Tensor<Float>([1, 30, 9]) { _ in .nan }
        let bias = try Tensor<Float>([1, 20, 30]) { $0 / 30 % 3 == 0 ? -.infinity : 0 }
        let state = try DenseAttention(shape, instructionSet: set)(
            query: operands.query, key: operands.key, value: value, bias: bias)
        let wrong = state.output.elements.enumerated().first { index, element in
            index / 9 % 3 == 0 ? element.bitPattern != 0 : !element.isNaN
        }
        #expect(wrong == nil, "\(set)")
    }

    @Test("a row hidden by mask and bias together is empty", arguments: InstructionSet.available)
    func emptyByMaskAndBias(_ set: InstructionSet) throws {
        // Query i sees keys 0...i. The bias hides keys 0...4, so that rows 0...4 see none.
        let shape = try AttentionShape(queryLength: 30, keyLength: 30, queryHeads: 1, kvHeads: 1, headDim: 12, valueDim: 9)
        let bias = try Tensor<Float>([1, 30, 30]) { $0 % 30 < 5 ? -.infinity : 0 }
        try Self.expectMatch(set, shape, .causal, bias: bias)
        let operands = try Operands(shape)
        let state = try DenseAttention(shape, mask: .causal, instructionSet: set)(
            query: operands.query, key: operands.key, value: operands.value, bias: bias)
        #expect(state.logSumExp.elements.prefix(5).allSatisfy { $0 == -.infinity })
        #expect(state.logSumExp.elements.dropFirst(5).allSatisfy { $0.isFinite })
    }

    @Test("a hidden first block does not disturb the blocks after it", arguments: InstructionSet.available)
    func hiddenFirstBlock(_ set: InstructionSet) throws {
        // 128 keys are one step of the online softmax, so the running maximum is still −∞ when the second step begins.
        let shape = try AttentionShape(queryLength: 20, keyLength: 140, queryHeads: 1, kvHeads: 1, headDim: 12, valueDim: 9)
        let first = try Tensor<Float>([1, 20, 140]) { $0 % 140 < 128 ? -.infinity : 0 }
        try Self.expectMatch(set, shape, .full, bias: first)
        let last = try Tensor<Float>([1, 20, 140]) { $0 % 140 < 128 ? 0 : -.infinity }
        try Self.expectMatch(set, shape, .full, bias: last)
    }

    @Test("a strided bias gives the bits of an adjacent one", arguments: InstructionSet.available)
    func stridedBias(_ set: InstructionSet) throws {
        let shape = try Self.shape()
        let operands = try Operands(shape)
        let bias = try Self.bias(heads: shape.queryHeads, shape)
        let attention = try DenseAttention(shape, mask: .causal, instructionSet: set)
        let expected = try attention(query: operands.query, key: operands.key, value: operands.value, bias: bias)

        // [tokens][heads][keys], with gaps of NaN, from an odd offset on.
        let row = shape.keyLength + 3
        let geometry = try TensorGeometry(
            heads: shape.queryHeads, tokens: shape.queryLength, channels: shape.keyLength, headStride: row,
            tokenStride: shape.queryHeads * row + 5)
        var buffer = Array(repeating: Float.nan, count: 1 + geometry.tokenStride * shape.queryLength)
        for flat in 0..<bias.count {
            let (line, key) = (flat / shape.keyLength, flat % shape.keyLength)
            let (head, token) = (line / shape.queryLength, line % shape.queryLength)
            buffer[1 + geometry.offset(head: head, token: token) + key] = bias[flat: flat]
        }
        var output = try Tensor<Float>(zeros: expected.output.shape)
        var logSumExp = try Tensor<Float>(zeros: expected.logSumExp.shape)
        try attention.run(
            query: operands.query.view(), key: operands.key.view(), value: operands.value.view(),
            bias: TensorView(buffer.span.extracting(1...), geometry: geometry), output: output.mutableView(),
            logSumExp: logSumExp.mutableSpan)
        #expect(output.bits == expected.output.bits)
        #expect(logSumExp.bits == expected.logSumExp.bits)
    }

    @Test("one bias head is read for every query head", arguments: InstructionSet.available)
    func oneHeadIsShared(_ set: InstructionSet) throws {
        let shape = try Self.shape()
        let operands = try Operands(shape)
        let one = try Self.bias(heads: 1, shape)
        let repeated = try Tensor<Float>([shape.queryHeads, shape.queryLength, shape.keyLength]) { one[flat: $0 % one.count] }
        let attention = try DenseAttention(shape, instructionSet: set)
        let (a, b) = try (
            attention(query: operands.query, key: operands.key, value: operands.value, bias: one),
            attention(query: operands.query, key: operands.key, value: operands.value, bias: repeated)
        )
        #expect(a.output.bits == b.output.bits && a.logSumExp.bits == b.logSumExp.bits)
    }

    /// NaN and infinities in keys that the bias hides from some rows, beside visible keys, at the edges of tiles and steps.
    @Test(
        "what the bias hides does not reach the row, bit for bit", arguments: InstructionSet.available,
        [AttentionMask.full, .causal, .window(left: 60, right: 20)])
    func hiddenNonFinite(_ set: InstructionSet, _ mask: AttentionMask) throws {
        let shape = try Self.shape()
        let operands = try Operands(shape)
        var random = SplitMix64(seed: 46)
        for heads in [1, shape.queryHeads] {
            let bias = try Tensor<Float>([heads, shape.queryLength, shape.keyLength]) { _ in
                random.uniform() < 0.4 ? -.infinity : random.normal()
            }
            let attention = try DenseAttention(shape, mask: mask, instructionSet: set)
            let clean = try attention(query: operands.query, key: operands.key, value: operands.value, bias: bias)
            for (token, poison) in [
                (0, Float.nan), (3, .infinity), (95, -.infinity), (127, .nan), (128, .nan), (139, .infinity),
            ] {
                for poisonsKey in [true, false] {
                    var (key, value) = (operands.key, operands.value)
                    // The poison is in KV head 1, which query heads 2 and 3 read.
                    if poisonsKey {
                        key[flat: (shape.keyLength + token) * shape.headDim + 4] = .nan
                    } else {
                        value[flat: (shape.keyLength + token) * shape.valueDim + 4] = poison
                    }
                    let state = try attention(query: operands.query, key: key, value: value, bias: bias)
                    let (lse, cleanLSE) = (state.logSumExp.bits, clean.logSumExp.bits)
                    for row in 0..<shape.queryHeads * shape.queryLength {
                        let (head, query) = (row / shape.queryLength, row % shape.queryLength)
                        let line = (heads == 1 ? 0 : head) * shape.queryLength + query
                        let sees =
                            head >= 2 && ReferenceAttention(shape, mask: mask).isVisible(query: query, key: token)
                            && bias[flat: line * shape.keyLength + token] != -.infinity
                        let channels = row * shape.valueDim..<(row + 1) * shape.valueDim
                        let touched = sees ? (poisonsKey ? Array(channels) : [channels.lowerBound + 4]) : []
                        for index in channels {
                            let actual = state.output[flat: index]
                            let isRight =
                                touched.contains(index)
                                ? !actual.isFinite : actual.bitPattern == clean.output[flat: index].bitPattern
                            if !isRight { Issue.record("\(set): \(poison) at \(token), row \(row), \(actual)") }
                        }
                        if !(sees && poisonsKey) { #expect(lse[row] == cleanLSE[row]) }
                    }
                }
            }
        }
    }
}
