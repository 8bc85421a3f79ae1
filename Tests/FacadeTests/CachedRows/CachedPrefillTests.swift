import MInference
import SpargeAttention
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing
import XAttention

/// The façades of prefill over a cache: chunks select and attend as over copies of the cached keys and values.
@Suite("Prefill over cached rows")
struct CachedPrefillTests {
    private static let chunks = [0..<256, 256..<300, 300..<555]

    private func expectEqual(
        _ set: InstructionSet, _ format: KVFormat, _ method: (AttentionShape) throws -> some SelectiveAttention
    ) throws {
        let cache = try PagedKVCache(
            KVCacheConfiguration(kvHeads: 2, headDim: 32, pageSize: 16, pageCapacity: 40, format: format), instructionSet: set)
        let sequence = cache.makeSequence()
        let (query, key, value) = try (
            Tensor<Float>.normal([4, 555, 32], seed: 1), Tensor<Float>.normal([2, 555, 32], seed: 2),
            Tensor<Float>.normal([2, 555, 32], seed: 3)
        )
        for chunk in Self.chunks {
            try cache.append(key: key.view().tokens(chunk), value: value.view().tokens(chunk), to: sequence)
            let cached = try cache.rows(of: sequence)
            let shape = try AttentionShape(
                queryLength: chunk.count, keyLength: cached.tokens, queryHeads: 4, kvHeads: 2, headDim: 32)
            let attention = try method(shape)
            let (keys, values) = try (cache.keys(of: sequence), cache.values(of: sequence))
            var (actual, expected) = try (
                Tensor<Float>(zeros: [4, chunk.count, 32]), Tensor<Float>(zeros: [4, chunk.count, 32])
            )
            try attention.run(
                query: query.view().tokens(chunk), key: cached.key, value: cached.value, output: actual.mutableView())
            try attention.run(
                query: query.view().tokens(chunk), key: keys.view(), value: values.view(), output: expected.mutableView())
            #expect(actual == expected, "\(set), \(format), \(chunk)")
        }
    }

    @Test("XAttention", arguments: InstructionSet.available, KVFormat.allCases)
    func xAttention(_ set: InstructionSet, _ format: KVFormat) throws {
        try expectEqual(set, format) {
            try XAttentionPrefill($0, XAttentionConfiguration(blockSize: 64), threshold: 0.8, instructionSet: set)
        }
    }

    @Test("SpargeAttention", arguments: InstructionSet.available, KVFormat.allCases)
    func sparge(_ set: InstructionSet, _ format: KVFormat) throws {
        try expectEqual(set, format) {
            try SpargeAttentionPrefill(
                $0, SpargeAttentionConfiguration(isCausal: true), heads: [.keepRatio(0.5)], instructionSet: set)
        }
    }

    @Test("MInference", arguments: InstructionSet.available, KVFormat.allCases)
    func mInference(_ set: InstructionSet, _ format: KVFormat) throws {
        try expectEqual(set, format) {
            try MInferencePrefill($0, heads: [.standard, .standard, .standard, .standard], instructionSet: set)
        }
    }

    @Test("dense and streaming heads together", arguments: InstructionSet.available, KVFormat.allCases)
    func streaming(_ set: InstructionSet, _ format: KVFormat) throws {
        let cache = try PagedKVCache(
            KVCacheConfiguration(kvHeads: 2, headDim: 32, pageSize: 16, pageCapacity: 40, format: format), instructionSet: set)
        let sequence = cache.makeSequence()
        let (query, key) = try (Tensor<Float>.normal([4, 100, 32], seed: 1), Tensor<Float>.normal([2, 400, 32], seed: 2))
        try cache.append(key: key, value: key, to: sequence)
        let shape = try AttentionShape(queryLength: 100, keyLength: 400, queryHeads: 4, kvHeads: 2, headDim: 32)
        let attention = try BlockSparseAttention(
            shape, heads: [.dense, .dense, .streaming(sink: 20, local: 90), .streaming(sink: 20, local: 90)], isCausal: true,
            instructionSet: set)
        let cached = try cache.rows(of: sequence)
        var actual = try Tensor<Float>(zeros: [4, 100, 32])
        try attention.run(query: query.view(), key: cached.key, value: cached.value, output: actual.mutableView())
        let expected = try attention(query: query, key: cache.keys(of: sequence), value: cache.values(of: sequence))
        #expect(actual == expected.output)
    }
}
