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
        }
    }
}
