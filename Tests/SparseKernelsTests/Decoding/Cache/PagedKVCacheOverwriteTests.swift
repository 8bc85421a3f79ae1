import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// A block in the middle of a sequence is decoded again and again: its keys and values replace those that are there.
@Suite("Paged KV cache: a block written over")
struct PagedKVCacheOverwriteTests {
    /// What a cache stores, as far as it differs from format to format.
    struct Storage: CustomTestStringConvertible, Sendable {
        let key: KVFormat
        let value: KVFormat
        var quantization = KVQuantization.minimum
        var metadata: PageMetadata?
        var estimates = false

        var testDescription: String {
            "\(key), \(value), \(quantization), \(metadata.map { "\($0.kind) in \($0.format)" } ?? "no metadata")"
        }

        static let all =
            KVFormat.allCases.map { Storage(key: $0, value: $0) }
            + [KVFormat.float32, .float16, .int8].flatMap { format in
                [PageMetadata.Kind.minMax, .mean].map {
                    Storage(
                        key: .float16, value: .int4, metadata: PageMetadata($0, logicalPageSize: 4, format: format),
                        estimates: true)
                }
            } + [
                Storage(key: .int8, value: .int4, quantization: .zeroPoint, metadata: PageMetadata(logicalPageSize: 8)),
                Storage(key: .int4, value: .int8, quantization: .zeroPoint),
            ]

        func makeCache() throws -> PagedKVCache {
            try PagedKVCache(
                KVCacheConfiguration(
                    layers: 2, kvHeads: 2, headDim: 20, valueDim: 12, pageSize: 16, pageCapacity: 24, format: key,
                    valueFormat: value, quantization: quantization, metadata: metadata, keepsKeyEstimates: estimates))
        }
    }

    static let length = 75
    static let blocks = [0..<75, 0..<16, 16..<48, 5..<6, 13..<35, 32..<32, 59..<75, 64..<75]

    /// The bytes of the pages of a sequence, in its order.
    private func bytes(of sequence: PagedKVCache.SequenceID, in cache: PagedKVCache) throws -> [[UInt8]] {
        let pages = try cache.pageTable(of: sequence)
        var bytes: [[UInt8]] = []
        for section in cache.storage.sections {
            for layer in 0..<cache.configuration.layers {
                for head in 0..<cache.configuration.kvHeads {
                    for page in pages {
                        let start = cache.storage.page(Int(page), of: section, layer: layer, head: head)
                        bytes.append(Array(UnsafeRawBufferPointer(start: start, count: section.bytesPerPage)))
                    }
                }
            }
        }
        return bytes
    }

    private func rows(_ channels: Int, seed: UInt64) throws -> Tensor<Float> {
        try Tensor<Float>.normal([2, Self.length, channels], seed: seed)
    }

    /// The rows of `old` with those of `new` in a range of tokens.
    private func replacing(_ range: Range<Int>, of old: Tensor<Float>, by new: Tensor<Float>) throws -> Tensor<Float> {
        let channels = old.shape[2]
        return try Tensor(old.shape) {
            range.contains($0 / channels % Self.length) ? new[flat: $0] : old[flat: $0]
        }
    }

    @Test("is bit by bit the cache that had the rows from the start, and forks keep theirs", arguments: Storage.all)
    func equalsFresh(_ storage: Storage) throws {
        let (key, value) = try (rows(20, seed: 1), rows(12, seed: 2))
        let (newKey, newValue) = try (rows(20, seed: 3), rows(12, seed: 4))
        for range in Self.blocks {
            for threads in [1, 2, 7] {
                let pool = WorkerPool(threads: threads)
                let cache = try storage.makeCache()
                let sequence = cache.makeSequence()
                for layer in 0..<2 { try cache.append(key: key, value: value, to: sequence, layer: layer, on: pool) }
                let fork = try cache.fork(sequence)
                let before = try bytes(of: fork, in: cache)
                for layer in 0..<2 {
                    try cache.overwrite(
                        key: newKey.view().tokens(range), value: newValue.view().tokens(range), in: sequence,
                        from: range.lowerBound, layer: layer, on: pool)
                }
                #expect(try bytes(of: fork, in: cache) == before, "\(range): the fork changed")

                let other = try storage.makeCache()
                let fresh = other.makeSequence()
                let (wholeKey, wholeValue) = try (
                    replacing(range, of: key, by: newKey), replacing(range, of: value, by: newValue)
                )
                for layer in 0..<2 { try other.append(key: wholeKey, value: wholeValue, to: fresh, layer: layer) }
                #expect(try bytes(of: sequence, in: cache) == bytes(of: fresh, in: other), "\(range)")

                // Only pages that the block touches are no longer shared.
                let (own, shared) = try (cache.pageTable(of: sequence), cache.pageTable(of: fork))
                for page in own.indices {
                    let isTouched = range.overlaps(page * 16..<(page + 1) * 16)
                    #expect((own[page] != shared[page]) == isTouched, "\(range), page \(page)")
                }
            }
        }
    }

    @Test("written again and again, takes no more pages and ends where it began")
    func again() throws {
        let storage = Storage(key: .int8, value: .int8, metadata: PageMetadata(logicalPageSize: 8))
        let cache = try storage.makeCache()
        let sequence = cache.makeSequence()
        let (key, value) = try (rows(20, seed: 1), rows(12, seed: 2))
        for layer in 0..<2 { try cache.append(key: key, value: value, to: sequence, layer: layer) }
        let (before, used) = (try bytes(of: sequence, in: cache), cache.usedPageCount)
        let block = 20..<52
        for step in 0..<12 {
            let (newKey, newValue) = try (rows(20, seed: UInt64(10 + step)), rows(12, seed: UInt64(40 + step)))
            let (k, v) = step == 11 ? (key, value) : (newKey, newValue)
            for layer in 0..<2 {
                try cache.overwrite(
                    key: k.view().tokens(block), value: v.view().tokens(block), in: sequence, from: 20, layer: layer)
            }
            #expect(cache.usedPageCount == used)
            #expect(try cache.length(of: sequence) == Self.length)
        }
        #expect(try bytes(of: sequence, in: cache) == before)
    }
}
