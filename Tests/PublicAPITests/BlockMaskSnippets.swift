import Foundation
import SparseKernels
import Testing

/// The snippets of Docs/Operators/BlockMask.md.
@Suite("Snippets: block masks")
struct BlockMaskSnippets {
    @Test("a mask from patterns, and attention under it")
    func patterns() throws {
        let shape = try AttentionShape(queryLength: 1024, keyLength: 1024, queryHeads: 2, kvHeads: 1, headDim: 16)
        let query = try Tensor<Float>([2, 1024, 16]) { Float($0 % 7) / 7 }
        let key = try Tensor<Float>([1, 1024, 16]) { Float($0 % 5) / 5 }
        let value = try Tensor<Float>([1, 1024, 16]) { Float($0 % 3) }

        let grid = try BlockGrid(shape, blockSize: 128, isCausal: true)
        let streaming = try BlockMask.streaming(grid, sinkBlocks: 1, localBlocks: 2)
        let mask = try streaming.union(.verticalSlash(grid, columns: [300], distances: [512]))
        print(mask)
        print(mask.density, mask.nonzeroBlocks(), mask.visiblePairs)  // 0.75 27 377344
        let state = try BlockSparseAttention(shape, mask: mask)(query: query, key: key, value: value)

        #expect(state.output.shape == [2, 1024, 16])
        #expect(mask.density == 0.75 && mask.nonzeroBlocks() == 27 && mask.visiblePairs == 377344)
        let guide = try String(
            contentsOf: URL(fileURLWithPath: #filePath).deletingLastPathComponent()
                .appendingPathComponent("../../Docs/Operators/BlockMask.md"), encoding: .utf8)
        #expect(guide.contains(mask.description), "the picture in the guide is not that of the snippet")
    }

    @Test("a mask per head")
    func heads() throws {
        let grid = try BlockGrid(queryLength: 1000, keyLength: 1500, isCausal: true)

        // Head 0 streams, head 1 is dense.
        let mask = try BlockMask(stacking: [.streaming(grid, sinkBlocks: 1, localBlocks: 3), .full(grid)])
        print(mask.heads, mask.density(head: 0), mask.density(head: 1))
        let sink = try mask.intersection(.verticalSlash(grid, columns: [0], distances: []))  // one head, for both

        #expect(mask.heads == 2 && mask.density(head: 1) == 1 && sink.nonzeroBlocks() == 16)
    }

    @Test("blocks of any sizes")
    func clusters() throws {
        let clusters = try BlockPartition(sizes: [90, 17, 140, 9, 0, 64])
        let grid = try BlockGrid(query: clusters, key: clusters, isCausal: false)
        let mask = try BlockMask(grid: grid) { head, row, column in row == column || column == 0 }

        #expect(mask.visiblePairs == 90 * 90 + 17 * 107 + 140 * 230 + 9 * 99 + 64 * 154)
    }

    @Test("files, JSON, pictures")
    func files() throws {
        let grid = try BlockGrid(queryLength: 300, keyLength: 300, isCausal: true)
        let mask = try BlockMask.slidingWindow(grid, tokens: 64)
        let path = NSTemporaryDirectory() + "snippet-\(UUID().uuidString)"
        defer { for suffix in [".safetensors", ".svg"] { try? FileManager.default.removeItem(atPath: path + suffix) } }

        try mask.write(to: path + ".safetensors")
        let read = try BlockMask(path: path + ".safetensors")
        let json = try JSONEncoder().encode(mask)
        let decoded = try JSONDecoder().decode(BlockMask.self, from: json)
        try mask.svg().write(toFile: path + ".svg", atomically: true, encoding: .utf8)
        print(mask.description(maximumWidth: 32))

        #expect(read == mask && decoded == mask)
    }

    @Test("what a wrong mask says")
    func errors() throws {
        let grid = try BlockGrid(queryLength: 300, keyLength: 300, isCausal: true)

        do {
            _ = try BlockMask(grid: grid, heads: 1, rowOffsets: [0, 1, 2, 4], columnIndices: [0, 1, 2, 1])
        } catch {
            print(error)  // invalid argument: columnIndices[3] must be ascending within the row and below …
        }

        let error = #expect(throws: SparseKernelsError.self) {
            try BlockMask(grid: grid, heads: 1, rowOffsets: [0, 1, 2, 4], columnIndices: [0, 1, 2, 1])
        }
        let start = "invalid argument: columnIndices[3] must be ascending within the row and below "
        #expect(error?.description.hasPrefix(start) == true)
    }
}
