import SequenceParallel
import SparseKernelsReference
import Testing

@Suite("Sharded decoding: errors")
struct ShardedDecodingErrorsTests {
    /// Expects that every rank throws the same error, with these texts, and that nothing changes.
    private static func expect(
        _ texts: String..., ranks: Int = 3, problem: ShardedProblem = ShardedProblem(lengths: [40, 20]), pages: Int = 200,
        sourceLocation: SourceLocation = #_sourceLocation,
        _ body:
            @escaping @Sendable (
                ShardedKVCache, [ShardedKVCache.SequenceID], any Communicator
            ) throws(SparseKernelsError) -> Void
    ) throws {
        let results = try LocalCommunicator.run(ranks: ranks, timeLimit: 20) { (ranks) throws(SparseKernelsError) in
            let (cache, sequences) = try problem.sharded(on: ranks)
            func state() throws(SparseKernelsError) -> [Int] {
                var numbers = [cache.local.usedPageCount, cache.sequences.count]
                for sequence in cache.sequences { numbers.append(try cache.length(of: sequence)) }
                return numbers
            }
            let before = try state()
            let text = errorText { () throws(SparseKernelsError) in try body(cache, sequences, ranks) } ?? "no error"
            // The cache still works.
            _ = try cache.pages()
            return try state() == before ? text : "changed: \(text)"
        }
        for result in results {
            #expect(result == results[0], sourceLocation: sourceLocation)
            for text in texts { #expect(result.contains(text), "\(result)", sourceLocation: sourceLocation) }
        }
    }

    private static func rows(_ tokens: Int, heads: Int = 2) throws(SparseKernelsError) -> (Tensor<Float>, Tensor<Float>) {
        (try Tensor(zeros: [heads, tokens, 8]), try Tensor(zeros: [heads, tokens, 6]))
    }

    // MARK: - One rank only

    @Test("a rank without a free page stops all of them")
    func capacity() throws {
        // Rank 1 gets all of a prompt, and has no room for it.
        try Self.expect("capacity exceeded", "pageCapacity", "13 more pages", "on rank 1") {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            let small = try ShardedKVCache(ShardedProblem(lengths: []).configuration(pages: 12), on: ranks)
            let shards = try TokenShards(length: 200, ranges: [[], [0..<200], []])
            let (key, value) = try Self.rows(ranks.rank == 1 ? 200 : 0)
            try small.append(key: key, value: value, to: small.makeSequence(), shards: shards, on: .serial)
        }
        // Steps: every rank has one page, which is shared, so that the owner of the last one needs a copy.
        try Self.expect("capacity exceeded", "1 more pages", "on rank 2") {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            let small = try ShardedKVCache(ShardedProblem(lengths: []).configuration(pages: 1), on: ranks)
            let sequence = small.makeSequence()
            let (key, value) = try Self.rows(40)
            try small.append(key: key, value: value, to: sequence, on: .serial)
            let child = try small.fork(sequence)
            let (stepKey, stepValue) = try Self.rows(1)
            try small.append(key: stepKey, value: stepValue, toEach: [child], on: .serial)
        }
        // A fork inside of a page's metadata.
        let problem = ShardedProblem(metadata: PageMetadata(.minMax, logicalPageSize: 16), lengths: [])
        try Self.expect("capacity exceeded", "on rank 1") { (cache, sequences, ranks) throws(SparseKernelsError) in
            let small = try ShardedKVCache(problem.configuration(pages: 1), on: ranks)
            let sequence = small.makeSequence()
            let (key, value) = try Self.rows(32)
            try small.append(key: key, value: value, to: sequence, on: .serial)
            _ = try small.fork(sequence, at: 20)
        }
    }

    @Test("a rank with other arguments stops all of them")
    func otherArguments() throws {
        try Self.expect("invalid shape", "key", "[2, 5, 8]", "[2, 4, 8]", "on rank 2") {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            let shards = try TokenShards.contiguous(length: 15, ranks: 3)
            let (key, value) = try Self.rows(ranks.rank == 2 ? 4 : 5)
            try cache.append(key: key, value: value, to: sequences[0], shards: shards, on: .serial)
        }
        try Self.expect("communication failure", "append", "rank 1") { (cache, sequences, ranks) throws(SparseKernelsError) in
            let shards = try TokenShards.contiguous(lengths: ranks.rank == 1 ? [4, 5, 6] : [5, 5, 5])
            let (key, value) = try Self.rows(shards.count(of: ranks.rank))
            try cache.append(key: key, value: value, to: sequences[0], shards: shards, on: .serial)
        }
        try Self.expect("communication failure", "truncate", "rank 2") { (cache, sequences, ranks) throws(SparseKernelsError) in
            try cache.truncate(sequences[0], to: ranks.rank == 2 ? 7 : 8)
        }
        try Self.expect("communication failure", "attention", "rank 1") {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            let attention = try ShardedPagedAttention(queryHeads: 4, configuration: cache.configuration, on: ranks)
            let query = try Tensor<Float>(zeros: [4, 1, 8])
            _ = try attention(
                query: query, cache: cache, sequences: [sequences[ranks.rank == 1 ? 1 : 0]], on: .serial)
        }
        try Self.expect("communication failure", "configuration", "rank 1") {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            _ = try ShardedKVCache(ShardedProblem(lengths: []).configuration(pages: 10 + ranks.rank % 2), on: ranks)
        }
        try Self.expect("communication failure", "ShardedPagedAttention", "rank 2") {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            _ = try ShardedPagedAttention(
                queryHeads: ranks.rank == 2 ? 2 : 4, configuration: cache.configuration, on: ranks)
        }
    }

    @Test("elements that a format cannot hold on one rank stop all of them")
    func elements() throws {
        let problem = ShardedProblem(format: .int8, lengths: [40])
        try Self.expect("invalid argument", "value", "inf at (1, 2, 3)", "on rank 0", problem: problem) {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            let shards = try TokenShards.contiguous(length: 15, ranks: 3)
            var (key, value) = try Self.rows(5)
            if ranks.rank == 0 { value[flat: (5 + 2) * 6 + 3] = .infinity }
            key[flat: 0] = 1
            try cache.append(key: key, value: value, to: sequences[0], shards: shards, on: .serial)
        }
        try Self.expect("invalid argument", "key", "nan at (0, 0, 5)", problem: problem) {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            var (key, value) = try Self.rows(1)
            key[flat: 5] = .nan
            value[flat: 0] = 1
            try cache.append(key: key, value: value, toEach: sequences, on: .serial)
        }
    }

    @Test("tokens that a rank has discarded stop attention on all of them")
    func discarded() throws {
        try Self.expect("not found", "tokens 0..<16", "on rank 1") { (cache, sequences, ranks) throws(SparseKernelsError) in
            // Tokens 16..<32 are the first page of rank 1.
            let child = try cache.fork(sequences[0])
            try cache.discard(child, tokens: 16..<32)
            let attention = try ShardedPagedAttention(queryHeads: 4, configuration: cache.configuration, on: ranks)
            let text = errorText { () throws(SparseKernelsError) in
                _ = try attention(query: Tensor<Float>(zeros: [4, 1, 8]), cache: cache, sequences: [child], on: .serial)
            }
            // A window behind them sees nothing of it.
            let window = try ShardedPagedAttention(
                queryHeads: 4, configuration: cache.configuration, mask: .streaming(sink: 3, window: 8), on: ranks)
            _ = try window(query: Tensor<Float>(zeros: [4, 1, 8]), cache: cache, sequences: [child], on: .serial)
            let cut = errorText { () throws(SparseKernelsError) in try cache.truncate(child, to: 20) } ?? ""
            try cache.free(child)
            guard cut.contains("length") else {
                throw SparseKernelsError(.notFound, "cut", expected: "an error", actual: cut)
            }
            throw SparseKernelsError(.notFound, "attention", expected: "", actual: text ?? "nothing")
        }
    }

    // MARK: - On all ranks alike

    @Test("arguments of the cache")
    func cacheArguments() throws {
        try Self.expect("unknown sequence", "sequence") { (cache, sequences, _) throws(SparseKernelsError) in
            let child = try cache.fork(sequences[0])
            try cache.free(child)
            try cache.free(child)
        }
        try Self.expect("invalid argument", "layer", "from 0 to 0", "1") { (cache, sequences, _) throws(SparseKernelsError) in
            _ = try cache.length(of: sequences[0], layer: 1)
        }
        try Self.expect("invalid argument", "length", "from 0 to the 40", "41") {
            (cache, sequences, _) throws(SparseKernelsError) in
            _ = try cache.fork(sequences[0], at: 41)
        }
        try Self.expect("invalid argument", "length", "-1") { (cache, sequences, _) throws(SparseKernelsError) in
            try cache.truncate(sequences[0], to: -1)
        }
        try Self.expect("invalid argument", "tokens", "40 tokens") { (cache, sequences, _) throws(SparseKernelsError) in
            try cache.discard(sequences[0], tokens: 3..<41)
        }
        try Self.expect("invalid argument", "token", "40") { (cache, sequences, _) throws(SparseKernelsError) in
            _ = try cache.owner(of: 40, in: sequences[0])
        }
        try Self.expect("invalid argument", "rank", "from 0 to 2", "3") {
            (cache, sequences, _) throws(SparseKernelsError) in
            _ = try cache.tokens(of: sequences[0], ownedBy: 3)
        }
        try Self.expect("invalid argument", "count", "-1") { (cache, sequences, _) throws(SparseKernelsError) in
            _ = try cache.placement(of: -1, in: sequences[0])
        }
        try Self.expect("invalid argument", "shards", "3 ranks", "of 2") { (cache, sequences, _) throws(SparseKernelsError) in
            let (key, value) = try Self.rows(0)
            try cache.append(
                key: key, value: value, to: sequences[0], shards: .contiguous(length: 4, ranks: 2), on: .serial)
        }
        try Self.expect("invalid argument", "sequences", "twice") { (cache, sequences, _) throws(SparseKernelsError) in
            let (key, value) = try Self.rows(2)
            try cache.append(key: key, value: value, toEach: [sequences[0], sequences[0]], on: .serial)
        }
        try Self.expect("invalid shape", "key", "[2, 2, 8]", "[2, 3, 8]") { (cache, sequences, _) throws(SparseKernelsError) in
            let (key, value) = try Self.rows(3)
            try cache.append(key: key, value: value, toEach: sequences, on: .serial)
        }
        try Self.expect("invalid shape", "counts", "1") { (cache, sequences, _) throws(SparseKernelsError) in
            _ = try cache.pagesNeeded(toAppend: [1], to: sequences)
        }
    }

    @Test("a layer has the owners of the layer before it")
    func layers() throws {
        let problem = ShardedProblem(layers: 2, lengths: [])
        let texts = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let cache = try ShardedKVCache(problem.configuration(), on: ranks)
            let sequence = cache.makeSequence()
            let (key, value) = try Self.rows(10)
            try cache.append(
                key: key, value: value, to: sequence, shards: .contiguous(lengths: [10, 10]), on: .serial)
            return errorText { () throws(SparseKernelsError) in
                try cache.append(
                    key: key, value: value, to: sequence, shards: .zigzag(length: 20, ulysses: 1, ring: 2), layer: 1,
                    on: .serial)
            } ?? ""
        }
        #expect(texts[0].contains("invalid argument: shards") && texts[1] == texts[0])
    }

    private static func attend(
        _ cache: ShardedKVCache, _ ranks: any Communicator, mask: KVMask = .causal
    ) throws(SparseKernelsError) -> ShardedPagedAttention {
        try ShardedPagedAttention(queryHeads: 4, configuration: cache.configuration, mask: mask, on: ranks)
    }

    private static func query(_ tokens: Int, heads: Int = 4) throws(SparseKernelsError) -> Tensor<Float> {
        try Tensor(zeros: [heads, tokens, 8])
    }

    @Test("arguments of attention")
    func attentionArguments() throws {
        try Self.expect("invalid argument", "aliBiSlopes") { (cache, _, ranks) throws(SparseKernelsError) in
            _ = try ShardedPagedAttention(
                queryHeads: 4, configuration: cache.configuration, modifiers: ScoreModifiers(aliBiSlopes: [1, 1, 1, 1]),
                on: ranks)
        }
        try Self.expect("invalid shape", "queryHeads") { (cache, _, ranks) throws(SparseKernelsError) in
            _ = try ShardedPagedAttention(queryHeads: 3, configuration: cache.configuration, on: ranks)
        }
        try Self.expect("invalid shape", "query", "4 heads of 8", "3 of 8") {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            _ = try Self.attend(cache, ranks)(query: Self.query(2, heads: 3), cache: cache, sequences: sequences)
        }
        try Self.expect("invalid shape", "query", "2 tokens", "3") { (cache, sequences, ranks) throws(SparseKernelsError) in
            _ = try Self.attend(cache, ranks)(query: Self.query(3), cache: cache, sequences: sequences)
        }
        try Self.expect("invalid shape", "queryLengths", "2") { (cache, sequences, ranks) throws(SparseKernelsError) in
            _ = try Self.attend(cache, ranks)(query: Self.query(3), cache: cache, sequences: sequences, queryLengths: [3])
        }
        try Self.expect("invalid shape", "queryLengths[1]", "-1") { (cache, sequences, ranks) throws(SparseKernelsError) in
            _ = try Self.attend(cache, ranks)(query: Self.query(3), cache: cache, sequences: sequences, queryLengths: [3, -1])
        }
        try Self.expect("invalid argument", "layer") { (cache, sequences, ranks) throws(SparseKernelsError) in
            _ = try Self.attend(cache, ranks)(query: Self.query(2), cache: cache, sequences: sequences, layer: 2)
        }
        try Self.expect("invalid argument", "root", "from 0 to 2", "3") {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            _ = try Self.attend(cache, ranks)(query: Self.query(2), cache: cache, sequences: sequences, root: 3)
        }
        try Self.expect("invalid shape", "cache") { (cache, sequences, ranks) throws(SparseKernelsError) in
            let other = try ShardedKVCache(ShardedProblem(lengths: []).configuration(pages: 9), on: ranks)
            _ = try Self.attend(cache, ranks)(query: Self.query(0), cache: other, sequences: [])
        }
        try Self.expect("invalid shape", "output", "4 heads × 2 tokens × 6") {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            var output = try Tensor<Float>(zeros: [4, 2, 5])
            try Self.attend(cache, ranks).run(query: Self.query(2), cache: cache, sequences: sequences, into: &output)
        }
        try Self.expect("invalid shape", "query", "on rank 1") { (cache, sequences, ranks) throws(SparseKernelsError) in
            let own = ranks.rank == 1 ? 3 : 2
            _ = try Self.attend(cache, ranks)(
                query: Self.query(own), shards: .contiguous(lengths: [2, 2, 2]), cache: cache, sequence: sequences[0])
        }
        let metadata = ShardedProblem(metadata: PageMetadata(.minMax, logicalPageSize: 16), lengths: [40, 20])
        try Self.expect("invalid argument", "selector", "window", problem: metadata) {
            (cache, sequences, ranks) throws(SparseKernelsError) in
            let selector = try ShardedPageSelector(
                PageSelector(queryHeads: 4, configuration: cache.configuration, tokenBudget: 64), scope: .allRanks, on: ranks)
            _ = try Self.attend(cache, ranks, mask: .window(left: 3, right: 0))(
                query: Self.query(2), cache: cache, sequences: sequences, selector: selector)
        }
    }
}
