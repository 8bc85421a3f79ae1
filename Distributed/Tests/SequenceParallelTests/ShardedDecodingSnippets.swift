import SequenceParallel
import Testing

/// The snippets of Docs/Operators/ShardedDecoding.md, with checks of their comments.
@Suite("Snippets: sharded decoding")
struct ShardedDecodingSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws(SparseKernelsError) -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("a prompt on every rank, and a step")
    func decodeStep() throws {
        let (promptKeys, promptValues) = try (Self.pattern([2, 300, 64], 7), Self.pattern([2, 300, 64], 11))
        let (query, key, value) = try (Self.pattern([8, 1, 64], 5), Self.pattern([2, 1, 64], 3), Self.pattern([2, 1, 64], 9))

        // The pages of each rank. Four ranks that are threads; over MPI, `ranks` is an `MPICommunicator`.
        let configuration = try KVCacheConfiguration(kvHeads: 2, headDim: 64, pageCapacity: 16)
        let states = try LocalCommunicator.run(ranks: 4) { (ranks) throws(SparseKernelsError) in
            let cache = try ShardedKVCache(configuration, on: ranks)
            let attention = try ShardedPagedAttention(queryHeads: 8, configuration: configuration, on: ranks)
            let sequence = cache.makeSequence()
            // The rows are the same on all ranks, and each stores its own: pages go round.
            try cache.append(key: promptKeys, value: promptValues, to: sequence)  // [kvHeads, 300, headDim]
            try cache.append(key: key, value: value, toEach: [sequence])  // a step: [kvHeads, sequences, headDim]
            return try attention(query: query, cache: cache, sequences: [sequence])  // the same on all ranks
        }

        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        try cache.append(key: promptKeys, value: promptValues, to: sequence)
        try cache.append(key: key, value: value, to: sequence)
        let expected = try PagedAttention(queryHeads: 8, configuration: configuration)(
            query: query, cache: cache, sequences: [sequence])
        for state in states {
            #expect(state == states[0])
            #expect(zip(state.output.elements, expected.output.elements).allSatisfy { abs($0 - $1) < 1e-6 })
        }
    }

    @Test("a prompt of which every rank has its own rows")
    func shardedPrompt() throws {
        let (promptKeys, promptQueries) = try (Self.pattern([2, 300, 64], 7), Self.pattern([8, 300, 64], 13))
        let shapes = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let configuration = try KVCacheConfiguration(kvHeads: 2, headDim: 64, pageCapacity: 16)
            let cache = try ShardedKVCache(configuration, on: ranks)
            let attention = try ShardedPagedAttention(queryHeads: 8, configuration: configuration, on: ranks)
            let sequence = cache.makeSequence()
            let own = try TokenShards.zigzag(length: 300, ulysses: 1, ring: ranks.count, alignment: 64)
                .positions(of: ranks.rank)
            let (keys, values, queries) = (
                try promptKeys.picking(own), try promptKeys.picking(own), try promptQueries.picking(own)
            )

            // Zigzag in whole pages: ranks have about the same work, and their pages are pages of the sequence.
            let shards = try TokenShards.zigzag(length: 300, ulysses: 1, ring: ranks.count, alignment: 64)
            // The rows of `shards.positions(of: ranks.rank)`: [kvHeads, own tokens, headDim].
            try cache.append(key: keys, value: values, to: sequence, shards: shards)
            let state = try attention(query: queries, shards: shards, cache: cache, sequence: sequence)

            return [state.output.shape, [8, own.count, 64]]
        }
        for shape in shapes { #expect(shape[0] == shape[1]) }
    }

    @Test("selected pages")
    func selection() throws {
        let (keys, query) = try (Self.pattern([2, 2000, 64], 7), Self.pattern([8, 1, 64], 13))
        let counts = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let configuration = try KVCacheConfiguration(
                kvHeads: 2, headDim: 64, pageSize: 16, pageCapacity: 128, metadata: PageMetadata(logicalPageSize: 16))
            let cache = try ShardedKVCache(configuration, on: ranks)
            let attention = try ShardedPagedAttention(queryHeads: 8, configuration: configuration, on: ranks)
            let sequence = cache.makeSequence()
            try cache.append(key: keys, value: keys, to: sequence)

            // 32 of 125 pages for each key/value head: the best of all ranks.
            let rule = try PageSelector(queryHeads: 8, configuration: configuration, tokenBudget: 512)
            let selector = try ShardedPageSelector(rule, scope: .allRanks, on: ranks)
            let sparse = try attention(query: query, cache: cache, sequences: [sequence], selector: selector)
            // Those of this rank, as positions in its page table.
            let own = try selector.select(query: query, cache: cache, sequences: [sequence])

            return [own.list(sequence: 0, head: 0).count, sparse.output.shape[0]]
        }
        #expect(counts[0][0] + counts[1][0] == 32)
    }

    @Test("forks and pages")
    func forks() throws {
        let (keys, key) = try (Self.pattern([2, 300, 64], 7), Self.pattern([2, 2, 64], 3))
        let used = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let configuration = try KVCacheConfiguration(kvHeads: 2, headDim: 64, pageCapacity: 16)
            let cache = try ShardedKVCache(configuration, on: ranks)
            let parent = cache.makeSequence()
            try cache.append(key: keys, value: keys, to: parent)

            // On every rank: the child shares the pages of all of them.
            let child = try cache.fork(parent, at: 280)
            try cache.append(key: key, value: key, toEach: [parent, child])
            try cache.truncate(child, to: 256)
            print(try cache.length(of: parent), try cache.length(of: child))  // 301 256
            print(try cache.totalPages().used, cache.localPages.used)  // 5 pages of both ranks; 3 of rank 0

            return [
                try cache.length(of: parent), try cache.length(of: child), try cache.totalPages().used, cache.localPages.used,
            ]
        }
        #expect(used[0] == [301, 256, 5, 3])
    }
}
