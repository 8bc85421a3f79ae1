import SparseKernels
import Testing

/// The snippets of Docs/Operators/BlockSparseAttention.md, with checks of their comments.
@Suite("Snippets: block-sparse attention")
struct BlockSparseAttentionSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("attention under a mask")
    func mask() throws {
        let query = try Self.pattern([8, 512, 64], 7)
        let key = try Self.pattern([2, 512, 64], 11)
        let value = try Self.pattern([2, 512, 64], 13)

        let shape = try AttentionShape(queryLength: 512, keyLength: 512, queryHeads: 8, kvHeads: 2, headDim: 64)
        let grid = try BlockGrid(shape, blockSize: 64, isCausal: true)
        // The first block of keys, and the three that end at the diagonal.
        let mask = try BlockMask(grid: grid) { _, row, column in column == 0 || column > row - 3 }
        let attention = try BlockSparseAttention(shape, mask: mask)
        let state = try attention(query: query, key: key, value: value)
        print(mask.density, state.output.shape, state.logSumExp.shape)  // 0.722… [8, 512, 64] [8, 512]

        // Kept blocks, and of these the keys up to 200 before and 50 after the query's position.
        let windowed = try BlockSparseAttention(shape, mask: mask, window: AttentionWindow(left: 200, right: 50))
        print(windowed.density)  // kept pairs of those that window and causal limit leave
        #expect(windowed.visiblePairs < attention.visiblePairs && windowed.density < 1)

        // The mask keeps 1 + 2 + 3 + 4 · 5 of 36 blocks.
        #expect(mask.nonzeroBlocks() == 26 && grid.reachableBlocks == 36)
        #expect(state.output.shape == [8, 512, 64] && state.logSumExp.shape == [8, 512])
    }

    @Test("a pattern per head")
    func patterns() throws {
        let shape = try AttentionShape(queryLength: 100, keyLength: 130, queryHeads: 4, kvHeads: 2, headDim: 16)
        let (query, key) = try (Self.pattern([4, 100, 16], 7), Self.pattern([2, 130, 16], 11))
        let value = try Self.pattern([2, 130, 16], 13)
        let mask = try BlockMask(grid: BlockGrid(shape, blockSize: 32, isCausal: true)) { _, row, column in row >= column }
        let blocks = try BlockPartition(length: 100, blockSize: 50)
        let runs = try KeyRuns(
            query: blocks, keyLength: 130, runOffsets: [0, 1, 2], runs: [20..<80, 70..<130], keyOffsets: [0, 1, 3],
            keys: [0, 0, 33])

        // One per query head: sinks and a window, everything, blocks, and runs of keys with single keys between them.
        let patterns: [HeadPattern] = [
            .streaming(sink: 4, local: 64), .dense, .blockSparse(mask, head: 0), .runs(runs),
        ]
        let attention = try BlockSparseAttention(shape, heads: patterns, isCausal: true)
        let state = try attention(query: query, key: key, value: value)

        // The second head is dense attention.
        let dense = try DenseAttention(shape, mask: .causal)(query: query, key: key, value: value)
        for index in 1600..<3200 { #expect(state.output[flat: index] == dense.output[flat: index]) }
        #expect(state.output != dense.output)
    }

    @Test("a packed batch")
    func batch() throws {
        let (query, key) = try (Self.pattern([4, 31, 16], 7), Self.pattern([2, 120, 16], 11))
        let value = try Self.pattern([2, 120, 16], 13)

        let shape = try AttentionShape(queryLength: 31, keyLength: 120, queryHeads: 4, kvHeads: 2, headDim: 16)
        let batch = try BlockSparseAttention(
            shape,
            sequences: [
                .init(queries: 0..<30, keys: 0..<70, heads: [.streaming(sink: 2, local: 16)]),
                .init(queries: 30..<31, keys: 70..<120, heads: [.dense]),
            ], isCausal: true)
        let state = try batch(query: query, key: key, value: value)

        // On four heads, 30 queries see 2 + 16 keys each, and one query sees 50.
        #expect(batch.visiblePairs == 4 * (30 * 18 + 50))
        #expect(state.logSumExp.elements.allSatisfy { $0.isFinite })
    }

    @Test("two plans over disjoint keys")
    func complements() throws {
        let shape = try AttentionShape(queryLength: 100, keyLength: 130, queryHeads: 4, kvHeads: 2, headDim: 16)
        let (query, key) = try (Self.pattern([4, 100, 16], 7), Self.pattern([2, 130, 16], 11))
        let value = try Self.pattern([2, 130, 16], 13)
        let grid = try BlockGrid(shape, blockSize: 32, isCausal: true)
        let mask = try BlockMask(grid: grid) { _, row, column in (row + column) % 2 == 0 }

        let complement = try BlockMask(grid: grid) { _, row, column in !mask[0, row, column] }
        var state = try BlockSparseAttention(shape, mask: mask)(query: query, key: key, value: value)
        try state.merge(BlockSparseAttention(shape, mask: complement)(query: query, key: key, value: value))

        let dense = try DenseAttention(shape, mask: .causal)(query: query, key: key, value: value)
        // Values are at most 1 and scores below 16, so the bound of Docs/Operators/DenseAttention.md is below 1e-4.
        for index in 0..<dense.output.count {
            #expect(abs(dense.output[flat: index] - state.output[flat: index]) < 1e-4)
        }
    }
}
