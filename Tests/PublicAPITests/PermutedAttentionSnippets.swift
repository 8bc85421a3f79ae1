import SparseKernels
import Testing

/// The snippets of Docs/Operators/PermutedAttention.md, with checks of their comments.
@Suite("Snippets: permuted attention")
struct PermutedAttentionSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    static func operands(_ tokens: Int) throws -> (query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>) {
        let shape = [2, tokens, 16]
        return try (pattern(shape, 7), pattern(shape, 11), pattern(shape, 13))
    }

    @Test("a band in token-major order")
    func band() throws {
        let (query, key, value) = try Self.operands(138)

        // 5 frames of 4 × 6 tokens; 18 text tokens come first, of which 7 are the prompt.
        let geometry = try VideoGeometry(frames: 5, height: 4, width: 6, textTokens: 18, promptTokens: 7)
        let shape = try AttentionShape(queryLength: 138, keyLength: 138, queryHeads: 2, kvHeads: 2, headDim: 16)
        // The tokens at one place of all frames become adjacent. Text stays where it is.
        let order = try geometry.axisOrder([.height, .width, .frame])
        print(order.order(head: 0)[18..<23])  // [18, 42, 66, 90, 114]
        // Each token sees the 10 positions on both sides; all see the prompt, which sees all.
        let band = AttentionBand(left: 10, right: 10, globalKeys: [geometry.prompt], globalQueries: [geometry.prompt])
        let plan = try BlockSparseAttention(shape, heads: [.band(band)], isCausal: false)
        let attention = try PermutedAttention(plan, query: order, key: order)
        let state = try attention(query: query, key: key, value: value)
        print(attention.density, state.output.shape)  // outputs are in the order of the caller: [2, 138, 16]

        #expect(Array(order.order(head: 0)[18..<23]) == [18, 42, 66, 90, 114])
        #expect(attention.density < 0.3 && state.output.shape == [2, 138, 16])
    }

    @Test("an order per head")
    func heads() throws {
        let (query, key, value) = try Self.operands(120)
        let geometry = try VideoGeometry(frames: 5, height: 4, width: 6)
        let shape = try AttentionShape(queryLength: 120, keyLength: 120, queryHeads: 2, kvHeads: 2, headDim: 16)
        let plan = try BlockSparseAttention(
            shape, heads: [.band(AttentionBand(left: 20, right: 20))], isCausal: false)

        // Head 0 has frames, head 1 has places.
        let frames = try Permutation.identity(length: 120)
        let places = try geometry.axisOrder([.height, .width, .frame])
        let orders = try Permutation(choosing: [0, 1], from: [frames, places])
        let state = try PermutedAttention(plan, query: orders, key: orders)(query: query, key: key, value: value)
        // Any order of keys and values is the same attention, up to rounding.
        let dense = try BlockSparseAttention(shape, heads: [.dense], isCausal: false)
        let reversed = try Permutation([(0..<120).reversed()])
        let same = try PermutedAttention(dense, query: nil, key: reversed)(query: query, key: key, value: value)
        print(orders.inverse.order(head: 1).prefix(3))  // the positions of tokens 0, 1 and 2

        let plain = try plan(query: query, key: key, value: value)
        let all = try DenseAttention(shape)(query: query, key: key, value: value)
        for index in 0..<120 * 16 { #expect(state.output[flat: index] == plain.output[flat: index]) }
        for index in 0..<all.output.count { #expect(abs(same.output[flat: index] - all.output[flat: index]) < 1e-4) }
        #expect(Array(orders.inverse.order(head: 1).prefix(3)) == [0, 5, 10])
    }

    @Test("which pattern a head can live with")
    func profile() throws {
        let (query, key, value) = try Self.operands(120)
        let shape = try AttentionShape(queryLength: 120, keyLength: 120, queryHeads: 2, kvHeads: 2, headDim: 16)

        // Of two sampled queries: the keys of their neighbourhood, or the first half of all keys.
        let rows = [17, 95]
        let blocks = try BlockPartition(length: 2, blockSize: 1)
        let near = try KeyRuns(
            query: blocks, keyLength: 120, runOffsets: [0, 1, 2], runs: [7..<28, 85..<106], keyOffsets: [0, 0, 0], keys: [])
        let first = try KeyRuns(
            query: blocks, keyLength: 120, runOffsets: [0, 1, 2], runs: [0..<60, 0..<60], keyOffsets: [0, 0, 0], keys: [])
        let profile = try PatternProfile(shape, rows: rows, patterns: [near, first])
        let errors = try profile(query: query, key: key, value: value)
        print(errors.errors, errors.best)  // mean squared errors [2, 2], and the better pattern of each head

        #expect(errors.errors.shape == [2, 2] && errors.best.count == 2)
    }
}
