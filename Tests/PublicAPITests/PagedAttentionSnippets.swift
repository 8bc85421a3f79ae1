import SparseKernels
import Testing

/// The snippets of Docs/Operators/PagedAttention.md, with checks of their comments.
@Suite("Snippets: paged attention")
struct PagedAttentionSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("a prompt, and a step")
    func decodeStep() throws {
        let (promptQueries, promptKeys) = try (Self.pattern([8, 300, 64], 13), Self.pattern([2, 300, 64], 7))
        let (query, key) = try (Self.pattern([8, 1, 64], 5), Self.pattern([2, 1, 64], 3))
        let (promptValues, value) = (promptKeys, key)

        let configuration = try KVCacheConfiguration(kvHeads: 2, headDim: 64, pageCapacity: 64)
        let cache = try PagedKVCache(configuration)
        let attention = try PagedAttention(queryHeads: 8, configuration: configuration)
        let sequence = cache.makeSequence()
        // Append first, then attend: the prompt, then a token at a time.
        try cache.append(key: promptKeys, value: promptValues, to: sequence)  // [kvHeads, 300, headDim]
        let prompt = try attention(query: promptQueries, cache: cache, sequences: [sequence], queryLengths: [300])
        try cache.append(key: key, value: value, to: sequence)  // [kvHeads, 1, headDim]
        let step = try attention(query: query, cache: cache, sequences: [sequence])
        print(prompt.output.shape, step.output.shape, step.logSumExp.shape)  // [8, 300, 64] [8, 1, 64] [8, 1]

        #expect(prompt.output.shape == [8, 300, 64] && step.output.shape == [8, 1, 64] && step.logSumExp.shape == [8, 1])
    }

    /// A cache of one sequence.
    static func cache(tokens: Int, metadata: PageMetadata? = nil) throws -> (PagedKVCache, PagedKVCache.SequenceID) {
        let configuration = try KVCacheConfiguration(kvHeads: 2, headDim: 64, pageCapacity: 64, metadata: metadata)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        let key = try pattern([2, tokens, 64], 7)
        let value = try pattern([2, tokens, 64], 11)
        try cache.append(key: key, value: value, to: sequence)
        return (cache, sequence)
    }

    @Test("a ragged batch")
    func raggedBatch() throws {
        let (cache, sequence) = try Self.cache(tokens: 100)
        let other = try cache.fork(sequence, at: 70)
        let attention = try PagedAttention(queryHeads: 8, configuration: cache.configuration)
        let queries = try Self.pattern([8, 4, 64], 13)

        // Three draft tokens to verify, and one token of another sequence: [queryHeads, 3 + 1, headDim].
        var output = try Tensor<BFloat16>(zeros: [8, 4, 64])
        var logSumExp = try Tensor<Float>(zeros: [8, 4])
        try attention.run(
            query: queries.view(), cache: cache, sequences: [sequence, other], queryLengths: [3, 1],
            output: output.mutableView(), logSumExp: logSumExp.mutableSpan)

        #expect(!logSumExp.elements.contains(0))
    }

    @Test("a shared prefix")
    func sharedPrefix() throws {
        let (cache, parent) = try Self.cache(tokens: 2100)
        let attention = try PagedAttention(queryHeads: 8, configuration: cache.configuration)
        let (key, value) = try (Self.pattern([2, 1, 64], 3), Self.pattern([2, 1, 64], 5))
        let queries = try Self.pattern([8, 4, 64], 13)

        // Four continuations of 2100 tokens.
        let children = try (0..<4).map { _ in try cache.fork(parent) }
        for child in children { try cache.append(key: key, value: value, to: child) }
        // The first 2048 tokens are read once for all of them.
        let beams = try attention(query: queries, cache: cache, sequences: children)

        // The same as a product of matrices, where enough rows share a prefix.
        let cascade = try CascadeAttention(queryHeads: 8, configuration: cache.configuration)
        let branches = try cascade(query: queries, cache: cache, sequences: children)

        let pairs = zip(branches.output.elements, beams.output.elements)
        #expect(pairs.allSatisfy { abs($0 - $1) < 1e-4 })
        let plain = try PagedAttention(queryHeads: 8, configuration: cache.configuration, sharesPrefixes: false)
        #expect(try plain(query: queries, cache: cache, sequences: children) == beams)
    }

    @Test("streaming heads")
    func streaming() throws {
        let (cache, sequence) = try Self.cache(tokens: 1000)
        let configuration = cache.configuration
        let (query, key) = try (Self.pattern([8, 1, 64], 13), Self.pattern([2, 1, 64], 3))

        let streaming = try PagedAttention(
            queryHeads: 8, configuration: configuration, mask: .streaming(sink: 128, window: 256))
        let state = try streaming(query: query, cache: cache, sequences: [sequence])
        // No later query sees what lies between the sinks and the next query's window.
        let length = try cache.length(of: sequence)
        try cache.discard(sequence, tokens: 128..<length - 255)
        print(cache.usedPageCount)  // 7 of 16 pages

        #expect(cache.usedPageCount == 7)
        #expect(try streaming(query: query, cache: cache, sequences: [sequence]).output.shape == state.output.shape)
        try cache.append(key: key, value: key, to: sequence)
        #expect(try streaming(query: query, cache: cache, sequences: [sequence]).output.shape == state.output.shape)
    }

    @Test("selected pages and tokens")
    func selections() throws {
        let (cache, sequence) = try Self.cache(tokens: 1000, metadata: PageMetadata())
        let attention = try PagedAttention(queryHeads: 8, configuration: cache.configuration)
        let query = try Self.pattern([8, 1, 64], 13)

        let selector = try PageSelector(queryHeads: 8, configuration: cache.configuration, tokenBudget: 320)
        let pages = try selector.select(query: query, cache: cache, sequences: [sequence])
        let sparse = try attention(query: query, cache: cache, sequences: [sequence], selection: pages)

        // Any lists: tokens 0, 4 and 999 for the first key/value head, 0 and 999 for the second one.
        let tokens = try KVSelection(
            unit: 1, sequences: 1, heads: 2, offsets: [0, 3, 5], indices: [0, 4, 999, 0, 999])
        let few = try attention(query: query, cache: cache, sequences: [sequence], selection: tokens)

        for head in 0..<8 { #expect(few.logSumExp[flat: head] < sparse.logSumExp[flat: head]) }
    }
}
