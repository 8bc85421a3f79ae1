import SparseKernels
import Testing

/// The snippets of Docs/Operators/DenseAttention.md, with checks of their comments.
@Suite("Snippets: dense attention")
struct DenseAttentionSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("attention of tensors")
    func tensors() throws {
        let query = try Self.pattern([8, 512, 64], 7)
        let key = try Self.pattern([2, 512, 64], 11)
        let value = try Self.pattern([2, 512, 64], 13)

        let shape = try AttentionShape(queryLength: 512, keyLength: 512, queryHeads: 8, kvHeads: 2, headDim: 64)
        let attention = try DenseAttention(shape, mask: .causal)

        // Into new memory, with the LSE.
        let state = try attention(query: query, key: key, value: value)
        print(state.output.shape, state.logSumExp.shape)  // [8, 512, 64] [8, 512]

        // Into memory that is reused from call to call: nothing is allocated.
        var output = try Tensor<Float>(zeros: [8, 512, 64])
        try attention.run(query: query, key: key, value: value, into: &output)

        #expect(state.output.shape == [8, 512, 64] && state.logSumExp.shape == [8, 512])
        #expect(output == state.output)
    }

    @Test("a window of two sides, and symmetric slopes")
    func window() throws {
        let query = try Self.pattern([8, 512, 64], 7)
        let key = try Self.pattern([2, 512, 64], 11)
        let value = try Self.pattern([2, 512, 64], 13)
        let shape = try AttentionShape(queryLength: 512, keyLength: 512, queryHeads: 8, kvHeads: 2, headDim: 64)

        // Each query sees its own position, 128 keys before it and 32 after it, and prefers near ones.
        let slopes = (1...8).map { Float(sign: .plus, exponent: -$0, significand: 1) }
        let local = try DenseAttention(
            shape, mask: .window(left: 128, right: 32),
            modifiers: ScoreModifiers(aliBiSlopes: slopes, aliBiForm: .symmetric))
        let state = try local(query: query, key: key, value: value)

        // 161 keys for every query, minus those before key 0 and after key 511.
        #expect(local.visiblePairs == 8 * (512 * 161 - 128 * 129 / 2 - 32 * 33 / 2))
        #expect(state.logSumExp.elements.allSatisfy { $0.isFinite })
    }

    @Test("a causal mask with full attention inside a span")
    func limits() throws {
        let query = try Self.pattern([8, 512, 64], 7)
        let key = try Self.pattern([2, 512, 64], 11)
        let value = try Self.pattern([2, 512, 64], 13)
        let shape = try AttentionShape(queryLength: 512, keyLength: 512, queryHeads: 8, kvHeads: 2, headDim: 64)

        // 448 tokens of image and text, then 64 tokens of actions that see each other.
        let limits = try KeyLimits(shape, mask: .causal, fullWithin: [448..<512])
        let hybrid = try DenseAttention(shape, limits: limits)
        let state = try hybrid(query: query, key: key, value: value)

        #expect(hybrid.visiblePairs == 8 * (448 * 449 / 2 + 64 * 512))
        let causal = try DenseAttention(shape, mask: .causal)(query: query, key: key, value: value)
        #expect(state.logSumExp[0, 447] == causal.logSumExp[0, 447] && state.logSumExp[0, 448] > causal.logSumExp[0, 448])
    }

    @Test("a block in the middle of a cache, decoded again")
    func block() throws {
        let configuration = try KVCacheConfiguration(layers: 2, kvHeads: 2, headDim: 64, pageCapacity: 40)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        let (keys, values) = try (Self.pattern([2, 1000, 64], 11), Self.pattern([2, 1000, 64], 13))
        for layer in 0..<2 { try cache.append(key: keys, value: values, to: sequence, layer: layer) }
        let (newKeys, newValues) = try (Self.pattern([2, 32, 64], 5), Self.pattern([2, 32, 64], 3))
        let queries = try Self.pattern([8, 32, 64], 7)
        var output = try Tensor<Float>(zeros: [8, 32, 64])

        let block = 600..<632
        for layer in 0..<configuration.layers {
            try cache.overwrite(
                key: newKeys, value: newValues, in: sequence, from: block.lowerBound, layer: layer)
            let cached = try cache.rows(of: sequence, layer: layer)  // all 1000 tokens, those of the block too
            let shape = try AttentionShape(
                queryLength: block.count, keyLength: cached.tokens, queryHeads: 8, kvHeads: 2, headDim: 64)
            try DenseAttention(shape).run(
                query: queries.view(), key: cached.key, value: cached.value, output: output.mutableView())
        }

        #expect(try cache.length(of: sequence, layer: 1) == 1000 && output.elements.contains { $0 != 0 })
    }

    @Test("attention of memory that somebody else owns")
    func views() throws {
        let (tokens, heads, channels) = (20, 4, 32)
        let source = try Self.pattern([tokens, heads, channels], 7)
        let memory = UnsafeMutableBufferPointer<Float>.allocate(capacity: source.count)
        defer { memory.deallocate() }
        _ = memory.initialize(from: source.elements)
        var result = [Float](repeating: 0, count: source.count)
        var lse = [Float](repeating: 0, count: heads * tokens)
        let shape = try AttentionShape(
            queryLength: tokens, keyLength: tokens, queryHeads: heads, kvHeads: heads, headDim: channels)
        let attention = try DenseAttention(shape)

        // `memory` is an UnsafeMutableBufferPointer<Float> of rows [tokens, heads, channels]; `result` and `lse` are arrays.
        let operand = try TensorView(memory.span, heads: heads, tokens: tokens, channels: channels, layout: .nhd)
        let output = try MutableTensorView(
            result.mutableSpan, heads: heads, tokens: tokens, channels: channels, layout: .nhd)
        try attention.run(
            query: operand, key: operand, value: operand, output: output, logSumExp: lse.mutableSpan, on: .serial)

        #expect(result.allSatisfy { $0.isFinite } && lse.allSatisfy { $0.isFinite })
    }

    @Test("a long sequence in two parts")
    func parts() throws {
        let query = try Self.pattern([2, 3, 16], 7)
        let (key, otherKey) = try (Self.pattern([2, 40, 16], 11), Self.pattern([2, 50, 16], 5))
        let (value, otherValue) = try (Self.pattern([2, 40, 16], 13), Self.pattern([2, 50, 16], 3))
        let whole = try AttentionShape(queryLength: 3, keyLength: 90, queryHeads: 2, kvHeads: 2, headDim: 16)

        let shared = try AttentionShape(queryLength: 3, keyLength: 40, queryHeads: 2, kvHeads: 2, headDim: 16)
        let own = try AttentionShape(queryLength: 3, keyLength: 50, queryHeads: 2, kvHeads: 2, headDim: 16)
        var state = try DenseAttention(shared)(query: query, key: key, value: value)
        try state.merge(DenseAttention(own)(query: query, key: otherKey, value: otherValue))

        let attention = try PrefixAttention(own, prefixLength: 40)
        let merged = try attention(query: query, prefixKey: key, prefixValue: value, key: otherKey, value: otherValue)

        func joined(_ a: Tensor<Float>, _ b: Tensor<Float>) throws -> Tensor<Float> {
            let (first, second) = (a.elements, b.elements)
            let (n, m) = (first.count / 2, second.count / 2)
            let elements: [Float] = Array(first[..<n]) + Array(second[..<m]) + Array(first[n...]) + Array(second[m...])
            return try Tensor([2, 90, 16], elements)
        }
        let all = try DenseAttention(whole)(
            query: query, key: joined(key, otherKey), value: joined(value, otherValue))
        // Values are at most 1 and scores below 16, so the bound of Docs/Operators/DenseAttention.md is below 1e-4.
        for index in 0..<all.output.count {
            #expect(abs(all.output[flat: index] - state.output[flat: index]) < 1e-4)
            #expect(abs(all.output[flat: index] - merged.output[flat: index]) < 1e-4)
        }
    }
}
