import SequenceParallel
import SparseKernelsReference
import Testing

@Suite("Sharded KV cache")
struct ShardedKVCacheTests {
    /// The keys of a sequence, put together from the ranks.
    private static func keys(
        _ cache: ShardedKVCache, _ sequence: ShardedKVCache.SequenceID, layer: Int = 0
    ) throws(SparseKernelsError) -> [Int: [Float]] {
        let rows = try cache.local.keys(of: cache.localName(of: sequence), layer: layer)
        let tokens = try cache.tokens(of: sequence).flatMap { $0 }.prefix(rows.shape[1])
        var result: [Int: [Float]] = [:]
        for (row, token) in tokens.enumerated() {
            result[token] = (0..<rows.shape[0]).flatMap { head in
                (0..<rows.shape[2]).map { rows[flat: (head * rows.shape[1] + row) * rows.shape[2] + $0] }
            }
        }
        return result
    }

    @Test("every token is on one rank, as one machine stores it", arguments: 1...8, ShardedProblem.Layout.allCases)
    func contents(_ ranks: Int, _ layout: ShardedProblem.Layout) throws {
        let format = KVFormat.allCases[ranks % KVFormat.allCases.count]
        let problem = ShardedProblem(format: format, lengths: [1, 47, 160, 0], layout: layout)
        let parts = try LocalCommunicator.run(ranks: ranks) { (ranks) throws(SparseKernelsError) -> [[Int: [Float]]] in
            let (cache, sequences) = try problem.sharded(on: ranks)
            var result: [[Int: [Float]]] = []
            for (index, sequence) in sequences.enumerated() {
                guard try cache.length(of: sequence) == problem.lengths[index] else { return [] }
                result.append(try Self.keys(cache, sequence))
            }
            return result
        }
        let (whole, sequences) = try problem.whole()
        for (index, sequence) in sequences.enumerated() {
            let expected = try whole.keys(of: sequence)
            #expect(parts.reduce(0) { $0 + $1[index].count } == problem.lengths[index])
            for token in 0..<problem.lengths[index] {
                let stored = parts.compactMap { $0[index][token] }
                let row = (0..<problem.kvHeads).flatMap { expected.row($0, token).map { Float($0) } }
                #expect(stored == [row], "token \(token) of sequence \(index)")
            }
        }
    }

    @Test("pages go round, and ranks that were behind catch up")
    func placement() throws {
        let placements = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let problem = ShardedProblem(lengths: [])
            let cache = try ShardedKVCache(problem.configuration(), on: ranks)
            let sequence = cache.makeSequence()
            // 40 tokens on rank 1.
            let first = try TokenShards(length: 40, ranges: [[], [0..<40], []])
            let own = ranks.rank == 1 ? 40 : 0
            let rows = try Tensor<Float>(zeros: [2, own, 8])
            try cache.append(key: rows, value: Tensor<Float>(zeros: [2, own, 6]), to: sequence, shards: first, on: .serial)
            return try cache.placement(of: 130, in: sequence).ranges
        }
        // Rank 1 has the rest of its page; then ranks 0 and 2 have three pages each before it gets another one.
        let expected = [[8..<24, 40..<56, 72..<88, 104..<120], [0..<8, 120..<130], [24..<40, 56..<72, 88..<104]]
        #expect(placements == [expected, expected, expected])
    }

    @Test("short sequences are spread over the ranks")
    func shortSequences() throws {
        let owners = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let problem = ShardedProblem(lengths: [5, 9, 3, 2, 2, 2])
            let (cache, sequences) = try problem.sharded(on: ranks)
            var owners: [Int] = []
            for sequence in sequences { owners.append(try cache.owner(of: 0, in: sequence)) }
            return owners
        }
        #expect(owners[0] == [0, 1, 2, 2, 0, 2] && owners[1] == owners[0] && owners[2] == owners[0])
    }

    @Test("a step sends a message only where a page begins")
    func messages() throws {
        let sent = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let problem = ShardedProblem(layers: 3, lengths: [])
            let cache = try ShardedKVCache(problem.configuration(), on: ranks)
            let sequences = [cache.makeSequence(), cache.makeSequence()]
            let (key, value) = (try Tensor<Float>(zeros: [2, 2, 8]), try Tensor<Float>(zeros: [2, 2, 6]))
            var sent: [Int] = []
            for _ in 0..<33 {
                let before = ranks.traffic.sentMessages
                for layer in 0..<3 { try cache.append(key: key, value: value, toEach: sequences, layer: layer, on: .serial) }
                sent.append(ranks.traffic.sentMessages - before)
            }
            return sent
        }
        let expected = (0..<33).map { $0 % 16 == 0 ? 1 : 0 }
        #expect(sent == [expected, expected])
    }

    @Test("a fork shares pages on every rank, and writes to its own")
    func forks() throws {
        let counts = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let problem = ShardedProblem(lengths: [72])
            let (cache, sequences) = try problem.sharded(on: ranks)
            let child = try cache.fork(sequences[0], at: 70)
            let shared = try cache.totalPages().used
            let (key, value) = (try Tensor<Float>(zeros: [2, 1, 8]), try Tensor<Float>(zeros: [2, 1, 6]))
            try cache.append(key: key, value: value, toEach: [child], on: .serial)
            let separate = try cache.totalPages().used
            let lengths = [try cache.length(of: sequences[0]), try cache.length(of: child)]
            try cache.free(child)
            return lengths + [shared, separate, try cache.totalPages().used]
        }
        // 72 tokens have five pages, the last of which the child copies.
        #expect(counts == [[72, 71, 5, 6, 5], [72, 71, 5, 6, 5]])
    }

    @Test("pages needed are those that the appends take")
    func pagesNeeded() throws {
        let needed = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let problem = ShardedProblem(lengths: [50, 20])
            let (cache, sequences) = try problem.sharded(on: ranks)
            let needed = try cache.pagesNeeded(toAppend: [100, 0], to: sequences)
            let before = try cache.pages()
            let (key, value) = (try Tensor<Float>(zeros: [2, 100, 8]), try Tensor<Float>(zeros: [2, 100, 6]))
            try cache.append(key: key, value: value, to: sequences[0], on: .serial)
            return [needed, zip(try cache.pages(), before).map { $0.used - $1.used }]
        }
        #expect(needed[0][0].reduce(0, +) == 6)
        for lists in needed { #expect(lists[0] == lists[1] && lists == needed[0]) }
    }
}
