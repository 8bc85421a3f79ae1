import SparseKernels
import SparseKernelsReference
import Testing

/// One case of the sweep. Sizes are close to the tile, panel and block edges of all instruction sets.
struct AttentionCase: Sendable, CustomTestStringConvertible {
    var queryLength: Int
    var keyLength: Int
    var queryHeads = 2
    var kvHeads = 1
    var headDim = 64
    var valueDim: Int?
    var mask = AttentionMask.full
    var modifiers = ScoreModifiers()

    var testDescription: String {
        "\(queryHeads)/\(kvHeads) heads, \(queryLength)×\(keyLength)×\(headDim)→\(valueDim ?? headDim), "
            + "\(mask.isCausal ? "causal" : "full")\(mask.window.map { " window \($0)" } ?? "")"
            + "\(modifiers.logitsSoftCap.map { " cap \($0)" } ?? "")\(modifiers.aliBiSlopes == nil ? "" : " alibi")"
    }

    var shape: AttentionShape {
        get throws(SparseKernelsError) {
            try AttentionShape(
                queryLength: queryLength, keyLength: keyLength, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim,
                valueDim: valueDim)
        }
    }

    /// Awkward sizes: 1, 3, 7, one off every tile and block edge, queries longer and shorter than keys, and odd head widths.
    static let sweep: [AttentionCase] = {
        var cases: [AttentionCase] = []
        for (q, k) in [(1, 1), (3, 7), (7, 3), (23, 129), (24, 128), (25, 127), (49, 33), (97, 257), (193, 130), (200, 384)] {
            for mask in [AttentionMask.full, .causal] { cases.append(AttentionCase(queryLength: q, keyLength: k, mask: mask)) }
        }
        for (d, dv) in [(1, 1), (3, 5), (7, 9), (16, 48), (80, 80), (96, 96), (128, 64), (64, 128), (255, 257 - 1), (256, 256)]
        {
            cases.append(AttentionCase(queryLength: 50, keyLength: 70, headDim: d, valueDim: dv, mask: .causal))
        }
        for (h, kv) in [(1, 1), (4, 4), (6, 2), (8, 1)] {
            cases.append(AttentionCase(queryLength: 40, keyLength: 65, queryHeads: h, kvHeads: kv, headDim: 32, mask: .causal))
        }
        for window in [1, 2, 31, 64, 1000, Int.max] {
            cases.append(AttentionCase(queryLength: 130, keyLength: 210, headDim: 32, mask: .causal(window: window)))
            cases.append(AttentionCase(queryLength: 130, keyLength: 210, headDim: 32, mask: .full(window: window)))
        }
        cases.append(AttentionCase(queryLength: 90, keyLength: 60, mask: .causal(window: 5)))
        for mask in [AttentionMask.full, .causal(window: 40)] {
            cases.append(
                AttentionCase(queryLength: 70, keyLength: 150, mask: mask, modifiers: ScoreModifiers(logitsSoftCap: 3)))
            cases.append(
                AttentionCase(
                    queryLength: 70, keyLength: 150, mask: mask, modifiers: ScoreModifiers(aliBiSlopes: [0.25, -0.125])))
            cases.append(
                AttentionCase(
                    queryLength: 70, keyLength: 150, mask: mask,
                    modifiers: ScoreModifiers(softmaxScale: 0.7, logitsSoftCap: 5, aliBiSlopes: [0.5, 0])))
        }
        return cases
    }()
}

@Suite("Dense attention")
struct DenseAttentionTests {
    @Test("agrees with the oracle", arguments: InstructionSet.available, AttentionCase.sweep)
    func matchesReference(_ set: InstructionSet, _ test: AttentionCase) throws {
        let shape = try test.shape
        let query = try Tensor<Float>.normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 1)
        let key = try Tensor<Float>.normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 2)
        let value = try Tensor<Float>.normal([shape.kvHeads, shape.keyLength, shape.valueDim], seed: 3)
        let attention = try DenseAttention(shape, mask: test.mask, modifiers: test.modifiers, instructionSet: set)
        #expect(attention.instructionSet == set)
        let state = try attention(query: query, key: key, value: value)
        try expectMatchesReference(
            state, ReferenceAttention(shape, mask: test.mask, modifiers: test.modifiers), query: query, key: key, value: value,
            "\(set)")
    }
}
