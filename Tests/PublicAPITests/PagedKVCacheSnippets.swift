import Foundation
import SparseKernels
import SparseKernelsReference
import Testing
import XAttention

/// The snippets of Docs/Operators/PagedKVCache.md.
@Suite("Snippets: paged KV cache")
struct PagedKVCacheSnippets {
    @Test("append, fork, go on, cut back")
    func sequences() throws {
        let promptKeys = try Tensor<Float>([8, 100, 64]) { Float($0 % 13) / 13 }
        let promptValues = try Tensor<Float>([8, 100, 64]) { Float($0 % 7) / 7 }
        let newKeys = try Tensor<Float>([8, 1, 64]) { Float($0 % 5) / 5 }
        let newValues = try Tensor<Float>([8, 1, 64]) { Float($0 % 3) / 3 }

        let configuration = try KVCacheConfiguration(
            kvHeads: 8, headDim: 64, pageCapacity: 256, format: .int8, metadata: PageMetadata())
        let cache = try PagedKVCache(configuration)
        let parent = cache.makeSequence()
        try cache.append(key: promptKeys, value: promptValues, to: parent)  // [kvHeads, 100, headDim]
        let child = try cache.fork(parent)
        try cache.append(key: newKeys, value: newValues, to: child)  // copies the shared last page
        try print(cache.pageTable(of: parent), cache.pageTable(of: child))  // [0, 1] [0, 2]
        print(cache.usedPageCount, cache.usedByteCount == 3 * configuration.bytesPerPage)  // 3 true
        try cache.truncate(child, to: 64)
        try cache.free(parent)
        print(cache.usedPageCount)  // 1

        #expect(try cache.pageTable(of: child) == [0] && cache.usedPageCount == 1)
        #expect(try cache.length(of: child) == 64)
    }

    @Test("a step through the layers")
    func layers() throws {
        let configuration = try KVCacheConfiguration(layers: 2, kvHeads: 1, headDim: 16, pageCapacity: 8)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        let keys = try Tensor<Float>([1, 3, 16]) { Float($0) }
        let values = try Tensor<Float>([1, 3, 16]) { Float($0) }

        for layer in 0..<configuration.layers {
            try cache.append(key: keys, value: values, to: sequence, layer: layer)
            // Attention of this layer sees its 3 new tokens; the layers after it do not have them yet.
        }
        try cache.overwrite(key: keys, value: values, in: sequence, from: 0, layer: 1)
        let stored = try cache.keys(of: sequence, layer: 1, tokens: 1..<3)  // [kvHeads, 2, headDim], dequantised

        #expect(stored.shape == [1, 2, 16] && stored[flat: 0] == 16)
    }

    @Test("a streaming head")
    func streaming() throws {
        let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 1, headDim: 16, pageSize: 16, pageCapacity: 8))
        let sequence = cache.makeSequence()
        let keys = try Tensor<Float>([1, 100, 16]) { Float($0 % 9) }

        try cache.append(key: keys, value: keys, to: sequence)
        try cache.discard(sequence, tokens: 16..<100 - 32)  // a sink of 16 tokens and a window of 32
        try print(cache.pageTable(of: sequence), cache.freePageCount)  // [0, -1, -1, -1, 4, 5, 6] 4

        #expect(try cache.pageTable(of: sequence) == [0, -1, -1, -1, 4, 5, 6] && cache.freePageCount == 4)
    }

    @Test("a file")
    func files() throws {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID()).safetensors").path
        defer { try? FileManager.default.removeItem(atPath: path) }
        let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 1, headDim: 16, pageCapacity: 8))
        let sequence = cache.makeSequence()

        try cache.save(to: path)
        let restored = try PagedKVCache(contentsOf: path, pageCapacity: 1000)
        try print(restored.sequences == [sequence], restored.length(of: sequence))  // true 0

        #expect(restored.sequences == [sequence])
    }

    @Test("a full pool")
    func capacity() throws {
        let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 1, headDim: 16, pageSize: 16, pageCapacity: 2))
        let sequence = cache.makeSequence()
        let keys = try Tensor<Float>([1, 40, 16]) { Float($0 % 9) }

        do {
            try cache.append(key: keys, value: keys, to: sequence)
        } catch {
            print(error)  // capacity exceeded: pageCapacity must be enough for 3 more pages, got 2, of which 2 are free
        }

        let error = #expect(throws: SparseKernelsError.self) {
            try cache.append(key: keys, value: keys, to: sequence)
        }
        #expect(
            error?.description
                == "capacity exceeded: pageCapacity must be enough for 3 more pages, got 2, of which 2 are free")
        #expect(try cache.length(of: sequence) == 0 && cache.usedPageCount == 0)
    }

    @Test("a prompt in chunks")
    func chunks() throws {
        let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 2, headDim: 64, pageCapacity: 11, format: .int8))
        let sequence = cache.makeSequence()
        let (queries, keys, values) = try (
            Tensor<Float>.normal([8, 700, 64], seed: 1), Tensor<Float>.normal([2, 700, 64], seed: 2),
            Tensor<Float>.normal([2, 700, 64], seed: 3)
        )

        for chunk in [0..<512, 512..<700] {
            try cache.append(key: keys.view().tokens(chunk), value: values.view().tokens(chunk), to: sequence)
            let cached = try cache.rows(of: sequence)  // all tokens so far
            let shape = try AttentionShape(
                queryLength: chunk.count, keyLength: cached.tokens, queryHeads: 8, kvHeads: 2, headDim: 64)
            var output = try Tensor<Float>(zeros: [8, chunk.count, 64])
            try XAttentionPrefill(shape, threshold: 0.9).run(
                query: queries.view().tokens(chunk), key: cached.key, value: cached.value, output: output.mutableView())
        }

        let shape = try AttentionShape(queryLength: 188, keyLength: 700, queryHeads: 8, kvHeads: 2, headDim: 64)
        let query = try Tensor<Float>([8, 188, 64]) { queries[$0 / (188 * 64), 512 + $0 / 64 % 188, $0 % 64] }
        let expected = try XAttentionPrefill(shape, threshold: 0.9)(
            query: query, key: cache.keys(of: sequence), value: cache.values(of: sequence))
        var output = try Tensor<Float>(zeros: [8, 188, 64])
        let cached = try cache.rows(of: sequence)
        try XAttentionPrefill(shape, threshold: 0.9).run(
            query: query.view(), key: cached.key, value: cached.value, output: output.mutableView())
        #expect(output == expected.state.output)
    }
}
