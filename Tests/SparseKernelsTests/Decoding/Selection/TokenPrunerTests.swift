import KernelInterface
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Twilight's pruning of a cache, compared with weights in `Double` from the key estimates that the cache stores.
@Suite("Token pruning")
struct TokenPrunerTests {
    /// A cache, queries for its sequences, and some candidates.
    struct Bench {
        let cache: PagedKVCache
        let sequences: [PagedKVCache.SequenceID]
        let query: Tensor<Float>
        let group: Int

        var configuration: KVCacheConfiguration { cache.configuration }
        var queryHeads: Int { group * configuration.kvHeads }

        /// - Parameter focus: the spread of the scores of a query.
        init(
            lengths: [Int] = [1, 0, 7, 16, 65, 300], kvHeads: Int = 2, group: Int = 3, headDim: Int = 24,
            format: KVFormat = .float32, estimates: Bool = true, focus: Float = 3, set: InstructionSet? = nil
        ) throws {
            let pages = lengths.reduce(0) { $0 + ($1 + 15) / 16 }
            cache = try PagedKVCache(
                KVCacheConfiguration(
                    kvHeads: kvHeads, headDim: headDim, pageSize: 16, pageCapacity: pages + 1, format: format,
                    keepsKeyEstimates: estimates), instructionSet: set)
            var sequences: [PagedKVCache.SequenceID] = []
            for (index, length) in lengths.enumerated() {
                let sequence = cache.makeSequence()
                sequences.append(sequence)
                if length == 0 { continue }
                let rows = try Tensor<Float>.normal([kvHeads, length, headDim], seed: UInt64(index + 1))
                try cache.append(key: rows.view(), value: rows.view(), to: sequence)
            }
            self.sequences = sequences
            self.group = group
            query = try Tensor.normal([kvHeads * group, lengths.count, headDim], seed: 77, scale: focus)
        }

        func pruner(_ topP: Double = 0.85, sharing: SelectionSharing = .kvHead) throws -> TokenPruner {
            try TokenPruner(queryHeads: queryHeads, configuration: configuration, topP: topP, sharing: sharing)
        }

        func length(_ sequence: Int) throws -> Int { try cache.length(of: sequences[sequence]) }

        /// The keys that are scored, by position.
        func estimates(_ sequence: Int, head: Int) throws -> [[Double]] {
            let operand = cache.storage.estimateOperand(layer: 0, head: head) ?? cache.storage.keyOperand(layer: 0, head: head)
            let table = try cache.pageTable(of: sequences[sequence])
            return try (0..<length(sequence)).map { position in
                var row = [Float](repeating: 0, count: configuration.headDim)
                let slot = Int(table[position / 16]) * 16 + position % 16
                if slot >= 0 { cache.storage.kernels.loadTokens(operand, slot: slot, count: 1, into: &row) }
                return row.map { Double($0) }
            }
        }

        func queryRow(_ sequence: Int, head: Int) -> [Double] {
            (0..<configuration.headDim).map {
                Double(query[flat: (head * sequences.count + sequence) * configuration.headDim + $0])
            }
        }

        /// A selection, from a list for each sequence and head.
        func selection(unit: Int, heads: Int, _ list: (_ sequence: Int, _ head: Int) throws -> [Int]) throws -> KVSelection {
            var (offsets, indices) = ([0], [Int32]())
            for sequence in sequences.indices {
                for head in 0..<heads {
                    indices += try list(sequence, head).map { Int32($0) }
                    offsets.append(indices.count)
                }
            }
            return try KVSelection(unit: unit, sequences: sequences.count, heads: heads, offsets: offsets, indices: indices)
        }

        /// About half of the units, for every list.
        func randomSelection(unit: Int, heads: Int, seed: UInt64) throws -> KVSelection {
            var generator = SplitMix64(seed: seed)
            return try selection(unit: unit, heads: heads) { sequence, _ in
                try (0..<(length(sequence) + unit - 1) / unit).filter { _ in generator.uniform() < 0.5 }
            }
        }

        /// The positions that are candidates of a query head.
        func candidates(_ selection: KVSelection?, _ sequence: Int, head: Int) throws -> [Int] {
            let length = try length(sequence)
            guard let selection else { return Array(0..<length) }
            return selection.list(sequence: sequence, head: selection.heads == queryHeads ? head : head / group).flatMap {
                let first = Int($0) * selection.unit
                return Array(first..<min(length, first + selection.unit))
            }
        }
    }

    static func list(_ selection: KVSelection, _ sequence: Int, _ head: Int) -> [Int] {
        selection.list(sequence: sequence, head: head).map { Int($0) }
    }

    /// All tokens, pages of key/value heads, pages of query heads, and tokens of both.
    static func selections(_ bench: Bench) throws -> [KVSelection?] {
        let (kvHeads, queryHeads) = (bench.configuration.kvHeads, bench.queryHeads)
        return try [
            nil, bench.randomSelection(unit: 16, heads: kvHeads, seed: 1),
            bench.randomSelection(unit: 16, heads: queryHeads, seed: 2),
            bench.randomSelection(unit: 1, heads: kvHeads, seed: 3), bench.randomSelection(unit: 1, heads: queryHeads, seed: 4),
            bench.selection(unit: 16, heads: queryHeads) { _, _ in [] },
        ]
    }

    /// The largest relative error of a weight, given the oracle's operands.
    ///
    /// A score of 4-bit keys is s·(Σ q·code − z·Σ q) with q in steps of max|q|/32767. Its error is half a step of every channel
    /// times its key, and some roundings of terms up to 3·max|k|·Σ|q|. A score of other keys has only the roundings of a sum.
    /// In the softmax, an error Δ of scores becomes 2Δ of a weight; the exponential adds 2·10⁻⁷ and the rounding of its
    /// argument, on both sides of the fraction.
    static func weightError(query: [Double], estimates: [[Double]], candidates: [Int], scale: Double) -> Double {
        let (largest, sum) = (query.map(abs).max() ?? 0, query.reduce(0) { $0 + abs($1) })
        var (worst, low, high) = (0.0, Double.infinity, -Double.infinity)
        for position in candidates {
            let key = estimates[position]
            let absolute = key.reduce(0) { $0 + abs($1) }
            let roundings = Double(query.count + 8) * 0x1p-24 * 3 * (key.map(abs).max() ?? 0) * sum
            worst = max(worst, scale * (absolute * largest / 65534 + roundings))
            let score = scale * zip(query, key).reduce(0) { $0 + $1.0 * $1.1 }
            (low, high) = (min(low, score), max(high, score))
        }
        return 2 * worst + 2 * (2e-7 + 1.6e-7 * max(0, high - low)) + 64 * 0x1p-24
    }

    @Test(
        "what a head keeps has the mass, is above what it drops, and is no more than it needs",
        arguments: InstructionSet.available)
    func oracle(_ set: InstructionSet) throws {
        for (format, estimates) in [(.float32, true), (.int4, false), (.float16, false)] as [(KVFormat, Bool)] {
            let bench = try Bench(format: format, estimates: estimates, set: set)
            let keys = try bench.sequences.indices.map { sequence in
                try (0..<bench.configuration.kvHeads).map { try bench.estimates(sequence, head: $0) }
            }
            for (number, candidates) in try Self.selections(bench).enumerated() {
                for topP in [0.5, 0.85, 0.99] {
                    let pruning = try bench.pruner(topP, sharing: .queryHead).prune(
                        query: bench.query.view(), cache: bench.cache, sequences: bench.sequences, within: candidates)
                    #expect(pruning.selection.unit == 1 && pruning.selection.heads == bench.queryHeads)
                    for sequence in bench.sequences.indices {
                        for head in 0..<bench.queryHeads {
                            let label = "\(set), \(format), candidates \(number), p \(topP), \(sequence), \(head)"
                            try Self.check(
                                bench, keys[sequence][head / bench.group], pruning, candidates, topP, sequence, head, label)
                        }
                    }
                }
            }
        }
    }

    static func check(
        _ bench: Bench, _ estimates: [[Double]], _ pruning: TokenPruning, _ candidates: KVSelection?, _ topP: Double,
        _ sequence: Int, _ head: Int, _ label: String
    ) throws {
        let allowed = try bench.candidates(candidates, sequence, head: head)
        let kept = list(pruning.selection, sequence, head)
        let mass = Double(pruning.masses[sequence * bench.queryHeads + head])
        if allowed.isEmpty {
            #expect(kept.isEmpty && mass == 0, "\(label)")
            return
        }
        let query = bench.queryRow(sequence, head: head)
        let oracle = ReferenceTwilight(
            query: query, estimates: estimates, selected: allowed, mass: topP, startsAtFirstToken: false)
        let error = weightError(
            query: query, estimates: estimates, candidates: allowed, scale: 1 / Double(query.count).squareRoot())
        let sum = kept.reduce(0) { $0 + oracle.weights[$1] }
        #expect(!kept.isEmpty && Set(kept).isSubset(of: allowed), "\(label)")
        #expect(sum >= topP - error, "\(label): \(sum)")
        #expect(abs(sum - mass) <= error, "\(label): \(sum), \(mass)")
        // Computed weights are ordered, so exact ones are out of order by at most the errors of both.
        let least = kept.map { oracle.weights[$0] }.min() ?? 0
        let dropped = Set(allowed).subtracting(kept).map { oracle.weights[$0] }.max() ?? 0
        #expect(least * (1 + error) >= dropped * (1 - error), "\(label): \(least), \(dropped)")
        // The tokens above the bracket of width epsilon, in which the bisection ended, do not have the mass.
        let sure = kept.filter { oracle.weights[$0] * (1 - error) > least * (1 + error) + 1.01e-5 }
        #expect(sure.reduce(0) { $0 + oracle.weights[$1] } < topP + error, "\(label)")
    }

    @Test("heads of a group share the union of what they keep", arguments: InstructionSet.available)
    func union(_ set: InstructionSet) throws {
        let bench = try Bench(set: set)
        for candidates in try Self.selections(bench) {
            let each = try bench.pruner(sharing: .queryHead).prune(
                query: bench.query.view(), cache: bench.cache, sequences: bench.sequences, within: candidates)
            let shared = try bench.pruner().prune(
                query: bench.query.view(), cache: bench.cache, sequences: bench.sequences, within: candidates)
            #expect(shared.masses == each.masses && shared.selection.heads == bench.configuration.kvHeads)
            for sequence in bench.sequences.indices {
                for head in 0..<bench.configuration.kvHeads {
                    let lists = (0..<bench.group).map { Self.list(each.selection, sequence, head * bench.group + $0) }
                    #expect(Self.list(shared.selection, sequence, head) == ReferenceTwilight.groupUnion(lists))
                }
            }
            let tokens = shared.selection.indices.count
            #expect(shared.meanTokens == Double(tokens) / Double(bench.sequences.count * bench.configuration.kvHeads))
        }
    }

    @Test("the released start is the weight of token 0 of the sequence, or 0")
    func releasedStart() throws {
        let bench = try Bench(lengths: [200], kvHeads: 1, group: 4)
        let pruner = try TokenPruner(
            queryHeads: 4, configuration: bench.configuration, topP: 0.5, sharing: .queryHead, upperBound: .firstWeight)
        let withFirst = try bench.selection(unit: 16, heads: 1) { _, _ in [0, 3, 7] }
        let withoutFirst = try bench.selection(unit: 16, heads: 1) { _, _ in [3, 7, 12] }
        for (candidates, startsAtZero) in [(nil, false), (withFirst, false), (withoutFirst, true)] {
            let pruning = try pruner.prune(
                query: bench.query.view(), cache: bench.cache, sequences: bench.sequences, within: candidates)
            for head in 0..<4 {
                let allowed = try bench.candidates(candidates, 0, head: head)
                let kept = Self.list(pruning.selection, 0, head)
                let oracle = try ReferenceTwilight(
                    query: bench.queryRow(0, head: head), estimates: bench.estimates(0, head: 0), selected: allowed, mass: 0.5)
                // Token 0 is not a sink here: the threshold is below its weight, and far more than half of the mass is kept.
                #expect(kept.count == oracle.kept.count || oracle.massMargin < 1e-4)
                if startsAtZero { #expect(kept == allowed) }
            }
        }
    }

    @Test("tokens of discarded pages are no candidates")
    func discarded() throws {
        let bench = try Bench(lengths: [100], focus: 0)
        try bench.cache.discard(bench.sequences[0], tokens: 16..<48)
        let pages = try bench.selection(unit: 16, heads: 2) { _, _ in [0, 2, 6] }
        let expected: [(KVSelection?, [Int])] = [
            (nil, Array(0..<16) + Array(48..<100)), (pages, Array(0..<16) + Array(96..<100)),
        ]
        for (candidates, kept) in expected {
            // Queries of zeros give equal weights, which are all kept.
            let pruning = try bench.pruner().prune(
                query: bench.query.view(), cache: bench.cache, sequences: bench.sequences, within: candidates)
            for head in 0..<2 { #expect(Self.list(pruning.selection, 0, head) == kept) }
        }
    }

    @Test("a query that is not finite keeps its candidates and changes no other row", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let bench = try Bench(lengths: [90, 90], set: set)
        let pruner = try bench.pruner(sharing: .queryHead)
        let clean = try pruner.prune(query: bench.query.view(), cache: bench.cache, sequences: bench.sequences)
        var query = bench.query
        query[flat: 2 * 24 * 2 + 5] = .nan
        let pruning = try pruner.prune(query: query.view(), cache: bench.cache, sequences: bench.sequences)
        for head in 0..<bench.queryHeads {
            for sequence in 0..<2 {
                let isBroken = head == 2 && sequence == 0
                let kept = Self.list(pruning.selection, sequence, head)
                #expect(kept == (isBroken ? Array(0..<90) : Self.list(clean.selection, sequence, head)))
                #expect(pruning.masses[sequence * bench.queryHeads + head].isNaN == isBroken)
            }
        }
    }

    @Test("results are the same on any number of threads, and for every sequence alone", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let bench = try Bench(lengths: [700, 1, 900, 33], kvHeads: 4, group: 2, headDim: 64, format: .float16, set: set)
        let pruner = try bench.pruner()
        for candidates in [nil, try bench.randomSelection(unit: 16, heads: 8, seed: 9)] {
            let expected = try pruner.prune(
                query: bench.query.view(), cache: bench.cache, sequences: bench.sequences, within: candidates, on: .serial)
            for threads in [2, 7] {
                let pruning = try pruner.prune(
                    query: bench.query.view(), cache: bench.cache, sequences: bench.sequences, within: candidates,
                    on: WorkerPool(threads: threads))
                #expect(pruning == expected)
            }
            if candidates != nil { continue }
            for sequence in bench.sequences.indices {
                let query = try Tensor<Float>([8, 1, 64]) {
                    bench.query[flat: ($0 / 64 * bench.sequences.count + sequence) * 64 + $0 % 64]
                }
                let alone = try pruner.prune(query: query.view(), cache: bench.cache, sequences: [bench.sequences[sequence]])
                for head in 0..<4 {
                    #expect(Self.list(alone.selection, 0, head) == Self.list(expected.selection, sequence, head))
                }
            }
        }
    }

    @Test("bad arguments are refused")
    func errors() throws {
        let bench = try Bench(lengths: [20, 40])
        let (configuration, sequences) = (bench.configuration, bench.sequences)
        for heads in [0, -2, 3] {
            expectError(.invalidShape, "queryHeads", containing: "2", "\(heads)") {
                _ = try TokenPruner(queryHeads: heads, configuration: configuration)
            }
        }
        for topP in [-0.1, 1.1, .nan] {
            expectError(.invalidArgument, "topP") {
                _ = try TokenPruner(queryHeads: 6, configuration: configuration, topP: topP)
            }
        }
        for epsilon in [-1, .nan] as [Float] {
            expectError(.invalidArgument, "epsilon") {
                _ = try TokenPruner(queryHeads: 6, configuration: configuration, epsilon: epsilon)
            }
        }
        expectError(.invalidArgument, "softmaxScale") {
            _ = try TokenPruner(queryHeads: 6, configuration: configuration, softmaxScale: .infinity)
        }

        let pruner = try bench.pruner()
        func prune(
            _ shape: [Int] = [6, 2, 24], cache: PagedKVCache? = nil, sequences: [PagedKVCache.SequenceID]? = nil,
            layer: Int = 0,
            within candidates: KVSelection? = nil
        ) throws {
            let query = try Tensor<Float>(zeros: shape)
            _ = try pruner.prune(
                query: query.view(), cache: cache ?? bench.cache, sequences: sequences ?? bench.sequences, layer: layer,
                within: candidates)
        }
        for shape in [[5, 2, 24], [6, 1, 24], [6, 2, 23]] {
            expectError(.invalidShape, "query", containing: "6", "24") { try prune(shape) }
        }
        let other = try PagedKVCache(KVCacheConfiguration(kvHeads: 2, headDim: 24, pageSize: 32, pageCapacity: 1))
        expectError(.invalidShape, "cache", containing: "32", "16") { try prune(cache: other) }
        expectError(.invalidArgument, "layer") { try prune(layer: 1) }
        let freed = try bench.cache.fork(sequences[0])
        try bench.cache.free(freed)
        expectError(.unknownSequence, "sequence") { try prune(sequences: [freed, sequences[1]]) }

        for (unit, heads) in [(16, 3), (8, 2), (32, 2)] {
            let candidates = try bench.selection(unit: unit, heads: heads) { _, _ in [0] }
            expectError(.invalidShape, "candidates") { try prune(within: candidates) }
        }
        let one = try KVSelection(unit: 16, sequences: 1, heads: 2, offsets: [0, 1, 2], indices: [0, 0])
        expectError(.invalidShape, "candidates", containing: "1 of 2") { try prune(within: one) }
        let beyond = try bench.selection(unit: 16, heads: 2) { _, _ in [0, 2] }
        expectError(.invalidArgument, "candidates.indices[1]", containing: "20", "page 2") { try prune(within: beyond) }
        let tokens = try bench.selection(unit: 1, heads: 6) { sequence, head in sequence == 1 && head == 5 ? [40] : [] }
        expectError(.invalidArgument, "candidates.indices[0]", containing: "40") { try prune(within: tokens) }
    }
}
