import Foundation
import SparseKernels
import SparseKernelsReference
import Synchronization
import TestSupport
import Testing

@Suite("Paged attention")
struct PagedAttentionTests {
    /// Lengths around pages of 16 tokens and chunks of 1024, with one query and with several.
    static let lengths = [1, 15, 16, 17, 1023, 1024, 1025, 2100]
    static let queryLengths = [1, 1, 5, 2, 1, 5, 2, 70]

    static func query<Q: AttentionElement>(
        _ type: Q.Type = Float.self, heads: Int, _ queryLengths: [Int], channels: Int = 8, seed: UInt64 = 5
    ) throws -> Tensor<Q> {
        try .normal([heads, queryLengths.reduce(0, +), channels], seed: seed, scale: 1.5)
    }

    @Test("a ragged batch agrees with the oracle", arguments: KVFormat.allCases)
    func raggedBatch(_ format: KVFormat) throws {
        let index = KVFormat.allCases.firstIndex(of: format)!
        let (queryHeads, kvHeads) = PagedAttentionFixture.heads[(index + 2) % 5]
        let fixture = try PagedAttentionFixture(format, kvHeads: kvHeads, lengths: Self.lengths)
        let query = try Self.query(heads: queryHeads, Self.queryLengths)
        let cap: Float? = index % 2 == 0 ? nil : 3
        let expected = try fixture.expected(
            fixture.attention(queryHeads: queryHeads, logitsSoftCap: cap), query: query, queryLengths: Self.queryLengths)
        for set in InstructionSet.available {
            let attention = try fixture.attention(queryHeads: queryHeads, logitsSoftCap: cap, set)
            let state = try attention(
                query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths)
            PagedAttentionFixture.compare(state, expected, "\(set), \(format), \(queryHeads)/\(kvHeads) heads")
        }
    }

    @Test("all groups of heads agree with the oracle", arguments: KVFormat.allCases)
    func heads(_ format: KVFormat) throws {
        let (lengths, queryLengths) = ([1, 15, 16, 17, 40], [1, 2, 16, 5, 1])
        for (queryHeads, kvHeads) in PagedAttentionFixture.heads {
            let fixture = try PagedAttentionFixture(format, kvHeads: kvHeads, pages: 12, lengths: lengths)
            let query = try Self.query(heads: queryHeads, queryLengths)
            for cap: Float? in [nil, 2] {
                let expected = try fixture.expected(
                    fixture.attention(queryHeads: queryHeads, logitsSoftCap: cap), query: query, queryLengths: queryLengths)
                for set in InstructionSet.available {
                    let attention = try fixture.attention(queryHeads: queryHeads, logitsSoftCap: cap, set)
                    let state = try attention(
                        query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: queryLengths)
                    PagedAttentionFixture.compare(state, expected, "\(set), \(format), \(queryHeads)/\(kvHeads) heads")
                }
            }
        }
    }

    // MARK: - Operands

    private func expectOutput<Q: AttentionElement, O: AttentionElement>(
        _ query: Q.Type, _ output: O.Type, _ set: InstructionSet
    ) throws {
        let fixture = try PagedAttentionFixture(.float16, lengths: [40, 33])
        let query = try Self.query(Q.self, heads: 4, [3, 1])
        let attention = try fixture.attention(queryHeads: 4, set)
        var output = try Tensor<O>(zeros: [4, 4, 5])
        var logSumExp = try Tensor<Float>(zeros: [4, 4])
        try attention.run(
            query: query.view(), cache: fixture.cache, sequences: fixture.sequences, queryLengths: [3, 1],
            output: output.mutableView(), logSumExp: logSumExp.mutableSpan)
        let expected = try fixture.expected(attention, query: query, queryLengths: [3, 1])
        PagedAttentionFixture.compare(output, logSumExp, expected, "\(set), \(Q.self) to \(O.self)")
    }

    @Test("queries and outputs may have every element type", arguments: InstructionSet.available)
    func elementTypes(_ set: InstructionSet) throws {
        try expectOutput(Float.self, BFloat16.self, set)
        try expectOutput(BFloat16.self, Float.self, set)
        #if !(os(macOS) && arch(x86_64))
            try expectOutput(Float16.self, Float16.self, set)
            try expectOutput(BFloat16.self, Float16.self, set)
        #endif
    }

    @Test("views of other orders and strides give the same bits, and nothing between rows is written")
    func strides() throws {
        let fixture = try PagedAttentionFixture(.int8, lengths: [40, 33, 20])
        let query = try Self.query(heads: 4, [3, 1, 2])
        let attention = try fixture.attention(queryHeads: 4)
        let expected = try attention(
            query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [3, 1, 2])

        // Tokens are outermost. Rows of 8 channels are 11 apart, and rows of 5 channels 7 apart.
        let wide = try TensorGeometry(heads: 4, tokens: 6, channels: 8, headStride: 11, tokenStride: 50)
        let narrow = try TensorGeometry(heads: 4, tokens: 6, channels: 5, headStride: 7, tokenStride: 31)
        var operand = [Float](repeating: .nan, count: 6 * 50)
        for head in 0..<4 {
            for token in 0..<6 {
                for channel in 0..<8 {
                    operand[wide.offset(head: head, token: token) + channel] = query[flat: (head * 6 + token) * 8 + channel]
                }
            }
        }
        var output = [Float](repeating: TokenKernelTests.canary, count: 6 * 31)
        var logSumExp = [Float](repeating: 0, count: 24)
        try attention.run(
            query: TensorView(operand.span, geometry: wide), cache: fixture.cache, sequences: fixture.sequences,
            queryLengths: [3, 1, 2], output: MutableTensorView(output.mutableSpan, geometry: narrow),
            logSumExp: logSumExp.mutableSpan)
        #expect(logSumExp.map(\.bitPattern) == expected.logSumExp.bits)
        for head in 0..<4 {
            for token in 0..<6 {
                for channel in 0..<5 {
                    let place = narrow.offset(head: head, token: token) + channel
                    #expect(output[place] == expected.output[flat: (head * 6 + token) * 5 + channel])
                    output[place] = TokenKernelTests.canary
                }
            }
        }
        #expect(output.allSatisfy { $0 == TokenKernelTests.canary })

        // Without a log-sum-exp, with operands as [tokens, heads, channels].
        let turned = try Tensor<Float>([6, 4, 8]) { query[flat: ($0 / 8 % 4 * 6 + $0 / 32) * 8 + $0 % 8] }
        var result = try Tensor<Float>(zeros: [6, 4, 5])
        try attention.run(
            query: turned.view(layout: .nhd), cache: fixture.cache, sequences: fixture.sequences, queryLengths: [3, 1, 2],
            output: result.mutableView(layout: .nhd))
        for index in 0..<result.count {
            let (token, head, channel) = (index / 20, index / 5 % 4, index % 5)
            #expect(result[flat: index] == expected.output[flat: (head * 6 + token) * 5 + channel])
        }
    }

    @Test("layers have keys and lengths of their own")
    func layers() throws {
        let fixture = try PagedAttentionFixture(.float16, layers: 3, lengths: [50, 31])
        try fixture.append(3, to: fixture.sequences[1], layer: 2)
        for layer in 0..<3 {
            let query = try Self.query(heads: 4, [2, 3], seed: UInt64(layer))
            let attention = try fixture.attention(queryHeads: 4)
            let state = try attention(
                query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [2, 3], layer: layer)
            let expected = try fixture.expected(attention, query: query, queryLengths: [2, 3], layer: layer)
            PagedAttentionFixture.compare(state, expected, "layer \(layer)")
        }
    }

    // MARK: - Steps

    @Test("decoding step by step agrees with one call of many queries", arguments: KVFormat.allCases)
    func decodeLoop(_ format: KVFormat) throws {
        // The steps cross the end of a page and of a chunk.
        let fixture = try PagedAttentionFixture(format, lengths: [1020])
        let sequence = fixture.sequences[0]
        let attention = try PagedAttention(queryHeads: 4, configuration: fixture.cache.configuration)
        let query = try Self.query(heads: 4, [8])
        var steps: [AttentionState] = []
        for step in 0..<8 {
            try fixture.append(1, to: sequence)
            let row = try Tensor<Float>([4, 1, 8]) { query[flat: ($0 / 8 * 8 + step) * 8 + $0 % 8] }
            steps.append(try attention(query: row, cache: fixture.cache, sequences: [sequence]))
        }
        let state = try attention(query: query, cache: fixture.cache, sequences: [sequence], queryLengths: [8])
        for step in 0..<8 {
            for head in [0, 3] {
                var exact = try fixture.expected(
                    attention, query: PagedAttentionFixture.row(query, head: head, token: step), head: head, token: step,
                    of: sequence, positions: Array(0...1020 + step))
                PagedAttentionFixture.compare(state, [exact], "\(format), step \(step) of one call")
                exact.row.token = 0
                PagedAttentionFixture.compare(steps[step], [exact], "\(format), step \(step)")
            }
        }
    }

    @Test("prefill in chunks agrees with dense attention", arguments: InstructionSet.available)
    func chunkedPrefill(_ set: InstructionSet) throws {
        let chunks = [700, 330, 70]
        let total = chunks.reduce(0, +)
        let configuration = try KVCacheConfiguration(kvHeads: 2, headDim: 16, pageCapacity: 20, format: .float32)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        let query = try Tensor<Float>.normal([4, total, 16], seed: 1)
        let key = try Tensor<Float>.normal([2, total, 16], seed: 2)
        let value = try Tensor<Float>.normal([2, total, 16], seed: 3)
        let shape = try AttentionShape(
            queryLength: total, keyLength: total, queryHeads: 4, kvHeads: 2, headDim: 16)
        let dense = try DenseAttention(shape, mask: .causal, instructionSet: set)(query: query, key: key, value: value)
        let reference = ReferenceAttention(shape, mask: .causal)
        let attention = try PagedAttention(queryHeads: 4, configuration: configuration, instructionSet: set)

        var first = 0
        var worst = 0.0
        for count in chunks {
            let tokens = first..<first + count
            let newKeys = try Tensor(key.view(), heads: [0, 1], tokens: tokens)
            let newValues = try Tensor(value.view(), heads: [0, 1], tokens: tokens)
            try cache.append(key: newKeys.view(), value: newValues.view(), to: sequence)
            let state = try attention(
                query: Tensor(query.view(), heads: [0, 1, 2, 3], tokens: tokens), cache: cache, sequences: [sequence],
                queryLengths: [count])
            for (head, i) in [(0, 0), (1, count / 2), (2, count - 2), (3, count - 1)] {
                let row = try reference.row(
                    head: head, token: first + i, query: query.view(), key: key.view(), value: value.view())
                let bound = 2 * AttentionErrorBound(row, headDim: 16).output
                for channel in 0..<16 {
                    let paged = Double(state.output[flat: (head * count + i) * 16 + channel])
                    let exact = Double(dense.output[flat: (head * total + first + i) * 16 + channel])
                    worst = max(worst, abs(paged - exact) / bound)
                }
            }
            first += count
        }
        #expect(worst <= 1, "\(set)")
    }

    // MARK: - Batches and threads

    @Test("a sequence has the same bits alone and in a batch, on any number of threads", arguments: KVFormat.allCases)
    func sameBits(_ format: KVFormat) throws {
        let fixture = try PagedAttentionFixture(format, lengths: Self.lengths)
        let query = try Self.query(heads: 8, Self.queryLengths)
        let pools = [2, 7].map { WorkerPool(threads: $0) }
        for set in InstructionSet.available {
            let attention = try fixture.attention(queryHeads: 8, set)
            let batch = try attention(
                query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths,
                on: .serial)
            for pool in pools {
                let state = try attention(
                    query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths,
                    on: pool)
                #expect(state.output.bits == batch.output.bits, "\(set), \(pool.threads) threads")
                #expect(state.logSumExp.bits == batch.logSumExp.bits, "\(set), \(pool.threads) threads")
            }
            var first = 0
            for (sequence, count) in zip(fixture.sequences, Self.queryLengths) {
                let own = try Tensor(query.view(), heads: Array(0..<8), tokens: first..<first + count)
                let alone = try attention(
                    query: own, cache: fixture.cache, sequences: [sequence], queryLengths: [count], on: .serial)
                #expect(bits(alone) == bits(batch, tokens: first..<first + count), "\(set), \(format)")
                first += count
            }
        }
    }

    @Test("threads attend one cache at once")
    func concurrentCalls() throws {
        let fixture = try PagedAttentionFixture(.int8, lengths: [1500, 700])
        let attention = try PagedAttention(queryHeads: 8, configuration: fixture.cache.configuration)
        let query = try Self.query(heads: 8, [30, 1])
        // No task writes to the cache.
        nonisolated(unsafe) let cache = fixture.cache
        let sequences = fixture.sequences
        let expected = try attention(query: query, cache: cache, sequences: sequences, queryLengths: [30, 1]).output.bits
        let pool = WorkerPool(threads: 2)
        let wrong = Atomic<Int>(0)
        DispatchQueue.concurrentPerform(iterations: 6) { index in
            let output = try? attention(
                query: query, cache: cache, sequences: sequences, queryLengths: [30, 1], on: index % 2 == 0 ? pool : .shared)
            if output?.output.bits != expected { wrong.wrappingAdd(1, ordering: .relaxed) }
        }
        #expect(wrong.load(ordering: .relaxed) == 0)
    }

    @Test("values that are not finite stay in their sequence", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let fixture = try PagedAttentionFixture(.float32, lengths: [30, 1030, 20])
        let query = try Self.query(heads: 4, [1, 2, 1])
        let attention = try fixture.attention(queryHeads: 4, set)
        func state() throws -> AttentionState {
            try attention(query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [1, 2, 1])
        }
        let before = try state()
        for (key, value) in [(Float.nan, Float(0)), (0, .nan), (0, .infinity)] {
            let keys = try Tensor<Float>([2, 1, 8]) { _ in key }
            let values = try Tensor<Float>([2, 1, 5]) { _ in value }
            try fixture.cache.overwrite(key: keys.view(), value: values.view(), in: fixture.sequences[1], from: 7)
            let after = try state()
            #expect(bits(after, tokens: 0..<1) == bits(before, tokens: 0..<1), "\(set), \(key), \(value)")
            #expect(bits(after, tokens: 3..<4) == bits(before, tokens: 3..<4), "\(set), \(key), \(value)")
            for head in 0..<4 {
                for token in 1..<3 { #expect(!after.output[flat: (head * 4 + token) * 5].isFinite, "\(set), \(key), \(value)") }
            }
        }
    }
}
