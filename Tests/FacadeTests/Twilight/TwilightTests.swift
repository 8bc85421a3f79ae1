import SparseKernelsReference
import TestSupport
import Testing
import Twilight

@Suite("Twilight")
struct TwilightTests {
    /// A cache of two layers and queries for its sequences, with sinks: token 0 of every sequence is similar to all queries.
    struct Bench {
        let cache: PagedKVCache
        let sequences: [PagedKVCache.SequenceID]
        let lengths: [Int]
        let query: Tensor<Float>
        static let (kvHeads, queryHeads, headDim) = (2, 4, 32)

        init(lengths: [Int] = [5, 400, 129], sink: Float = 2) throws {
            self.lengths = lengths
            cache = try PagedKVCache(
                TwilightDecode.cache(
                    layers: 2, kvHeads: Self.kvHeads, headDim: Self.headDim, pageCapacity: 64, format: .float32))
            let query = try Tensor<Float>.normal([Self.queryHeads, lengths.count, Self.headDim], seed: 9, scale: 2)
            var sequences: [PagedKVCache.SequenceID] = []
            for (index, length) in lengths.enumerated() {
                let sequence = cache.makeSequence()
                sequences.append(sequence)
                for layer in 0..<2 {
                    let seed = UInt64(10 * index + layer)
                    var keys = try Tensor<Float>.normal([Self.kvHeads, length, Self.headDim], seed: seed)
                    for head in 0..<Self.kvHeads {
                        for channel in 0..<Self.headDim {
                            // The mean query of the group.
                            let sum = (0..<2).reduce(Float(0)) {
                                $0 + query[flat: ((2 * head + $1) * lengths.count + index) * Self.headDim + channel]
                            }
                            keys[flat: head * length * Self.headDim + channel] += sink * sum / 4
                        }
                    }
                    let values = try Tensor<Float>.normal([Self.kvHeads, length, Self.headDim], seed: seed + 5)
                    try cache.append(key: keys.view(), value: values.view(), to: sequence, layer: layer)
                }
            }
            self.sequences = sequences
            self.query = query
        }

        func plan(
            _ selector: TwilightDecode.Selector, topP: Double = 0.85, rule: TwilightDecode.Rule = .paper, denseLayers: Int = 0
        ) throws -> TwilightDecode {
            try TwilightDecode(
                queryHeads: Self.queryHeads, configuration: cache.configuration, selector: selector, topP: topP, rule: rule,
                denseLayers: denseLayers)
        }

        func decode(_ plan: TwilightDecode, layer: Int = 1) throws -> TwilightDecode.Step {
            try plan.decode(query: query, cache: cache, sequences: sequences, layer: layer)
        }

        /// Attention of one query head over some tokens in `Double`: the output, and the tokens' fraction of the whole mass.
        func attention(_ sequence: Int, head: Int, layer: Int, over tokens: [Int]) throws -> (output: [Double], mass: Double) {
            let keys = try cache.keys(of: sequences[sequence], layer: layer)
            let values = try cache.values(of: sequences[sequence], layer: layer)
            let (length, kvHead) = (lengths[sequence], head * Self.kvHeads / Self.queryHeads)
            func row(_ tensor: Tensor<Float>, _ token: Int) -> [Double] {
                (0..<Self.headDim).map { Double(tensor[flat: (kvHead * length + token) * Self.headDim + $0]) }
            }
            let q = (0..<Self.headDim).map { Double(query[flat: (head * lengths.count + sequence) * Self.headDim + $0]) }
            let scores = (0..<length).map { token in
                zip(q, row(keys, token)).reduce(0) { $0 + $1.0 * $1.1 } / Double(Self.headDim).squareRoot()
            }
            let weights = ReferenceTwilight(
                query: [1], estimates: scores.map { [$0] }, selected: Array(0..<length), mass: 1, softmaxScale: 1
            ).weights
            let mass = tokens.reduce(0) { $0 + weights[$1] }
            var output = [Double](repeating: 0, count: Self.headDim)
            for token in tokens {
                for (channel, value) in row(values, token).enumerated() { output[channel] += weights[token] / mass * value }
            }
            return (output, mass)
        }
    }

    static let selectors: [TwilightDecode.Selector] = [
        .everything, .quest(.tokens(64)), .quest(.tokens(8192)), .quest(.fraction(0.25)), .streaming(sink: 4, recent: 50),
    ]

    @Test("a step is exact attention over the tokens that select and prune keep", arguments: TwilightDecode.Rule.allCases)
    func step(_ rule: TwilightDecode.Rule) throws {
        let bench = try Bench()
        for selector in Self.selectors {
            let plan = try bench.plan(selector, rule: rule)
            let step = try bench.decode(plan)
            let pruning = try #require(step.pruning)
            #expect(step.state.output.shape == [4, 3, 32] && step.meanTokens == pruning.meanTokens)
            let candidates = try plan.select(
                query: bench.query.view(), cache: bench.cache, sequences: bench.sequences, layer: 1)
            for sequence in bench.sequences.indices {
                for head in 0..<4 {
                    let label = "\(rule), \(selector), \(sequence), \(head)"
                    let kept = pruning.selection.list(sequence: sequence, head: head * pruning.selection.heads / 4).map {
                        Int($0)
                    }
                    #expect(!kept.isEmpty && pruning.masses[sequence * 4 + head] >= 0.85 - 1e-5, "\(label)")
                    if let candidates {
                        let list = candidates.list(sequence: sequence, head: head * candidates.heads / 4)
                        #expect(Set(kept.map { $0 / candidates.unit }).isSubset(of: list.map { Int($0) }), "\(label)")
                    }
                    let expected = try bench.attention(sequence, head: head, layer: 1, over: kept).output
                    // A `Float` sum of up to 400 values of magnitude 4 with weights that sum to 1, from scores of magnitude 40.
                    let bound = 4 * 500 * 0x1p-24 + 4 * 80 * 0x1p-23
                    for channel in 0..<32 {
                        let actual = Double(step.state.output[flat: (head * 3 + sequence) * 32 + channel])
                        #expect(abs(actual - expected[channel]) <= bound, "\(label)")
                    }
                }
            }
        }
    }

    @Test("of all tokens, what is kept has nearly the mass by the exact keys, and p decides how many there are")
    func mass() throws {
        let bench = try Bench()
        var means: [Double] = []
        for topP in [0.5, 0.85, 0.95, 0.99] {
            let pruning = try #require(try bench.decode(bench.plan(.everything, topP: topP)).pruning)
            means.append(pruning.meanTokens)
            for sequence in bench.sequences.indices {
                for head in 0..<4 {
                    let kept = pruning.selection.list(sequence: sequence, head: head / 2).map { Int($0) }
                    // With keys in 4 bits, a step is a fifteenth of a range of about 6. So the error of a score is about
                    // (6/15/√12)·|q|/√32 ≈ 0.25, that of a weight a quarter, and that of masses far less.
                    #expect(try bench.attention(sequence, head: head, layer: 1, over: kept).mass > topP - 0.1)
                }
            }
        }
        #expect(means == means.sorted() && means[0] < means[3] / 2)
    }

    @Test("selectors have the budgets of their rules")
    func budgets() throws {
        let bench = try Bench()
        func lists(_ selector: TwilightDecode.Selector, _ rule: TwilightDecode.Rule) throws -> [[Int32]] {
            let selection = try #require(
                try bench.plan(selector, rule: rule).select(
                    query: bench.query.view(), cache: bench.cache, sequences: bench.sequences))
            #expect(selection.unit == 16 && selection.heads == (rule == .paper ? 2 : 4))
            return (0..<3).map { Array(selection.list(sequence: $0, head: 1)) }
        }
        // The sequences have 1, 25 and 9 pages of 16. A budget of 50 tokens is rounded up to 4 pages, as released.
        for rule in TwilightDecode.Rule.allCases {
            #expect(try lists(.quest(.tokens(50)), rule).map(\.count) == [1, 4, 4])
            #expect(try lists(.quest(.fraction(0.25)), rule).map(\.count) == [1, 7, 2])
            #expect(try lists(.quest(.tokens(1)), rule).map(\.count) == [1, 1, 1])
            #expect(try lists(.quest(.fraction(1)), rule).map(\.count) == [1, 25, 9])
        }
        #expect(try lists(.quest(.tokens(50)), .paper).map { $0.last } == [0, 24, 8])
        #expect(try lists(.quest(.tokens(16)), .released)[1] == [0])

        let streaming = try #require(
            try bench.plan(.streaming(sink: 3, recent: 4)).select(
                query: bench.query.view(), cache: bench.cache, sequences: bench.sequences))
        #expect(streaming.unit == 1)
        #expect(Array(streaming.list(sequence: 0, head: 0)) == [0, 1, 2, 3, 4])
        #expect(Array(streaming.list(sequence: 1, head: 1)) == [0, 1, 2, 396, 397, 398, 399])
        let all = try bench.plan(.everything).select(
            query: bench.query.view(), cache: bench.cache, sequences: bench.sequences)
        #expect(all == nil)
    }

    @Test("the first layers are dense")
    func denseLayers() throws {
        let bench = try Bench()
        let plan = try bench.plan(.everything, denseLayers: 1)
        let dense = try bench.decode(plan, layer: 0)
        let exact = try plan.attention(query: bench.query, cache: bench.cache, sequences: bench.sequences, layer: 0)
        #expect(dense.pruning == nil && dense.meanTokens == nil && dense.state == exact)
        #expect(try bench.decode(plan, layer: 1).pruning != nil)
        let pruning = try plan.prune(query: bench.query.view(), cache: bench.cache, sequences: bench.sequences, layer: 0)
        #expect(pruning.meanTokens > 0)
    }

    @Test("without a sink the released start keeps nearly everything; the paper's does not")
    func sinkQuirk() throws {
        // Token 0 is opposite to all queries.
        let bench = try Bench(lengths: [400], sink: -4)
        let released = try #require(try bench.decode(bench.plan(.everything, topP: 0.5, rule: .released)).pruning)
        let paper = try #require(try bench.decode(bench.plan(.everything, topP: 0.5)).pruning)
        #expect(released.meanTokens > 380 && paper.meanTokens < 100)
    }

    @Test("bad arguments are refused")
    func errors() throws {
        let configuration = try TwilightDecode.cache(layers: 1, kvHeads: 2, headDim: 32, pageCapacity: 4)
        #expect(configuration.pageSize == 16 && configuration.keepsKeyEstimates && configuration.keyFormat == .float16)
        func make(
            queryHeads: Int = 4, _ configuration: KVCacheConfiguration, _ selector: TwilightDecode.Selector = .everything,
            topP: Double = 0.85, denseLayers: Int = 2
        ) throws {
            _ = try TwilightDecode(
                queryHeads: queryHeads, configuration: configuration, selector: selector, topP: topP, denseLayers: denseLayers)
        }
        try make(configuration)
        expectError(.invalidShape, "queryHeads") { try make(queryHeads: 3, configuration) }
        expectError(.invalidArgument, "topP") { try make(configuration, topP: 1.5) }
        expectError(.invalidArgument, "denseLayers") { try make(configuration, denseLayers: -1) }
        for count in [0, -5, .min] {
            expectError(.invalidArgument, "tokenBudget") { try make(configuration, .quest(.tokens(count))) }
        }
        try make(configuration, .quest(.tokens(.max)))
        for fraction in [0, -0.5, 1.5, .nan, .infinity] {
            expectError(.invalidArgument, "selector.quest.fraction") { try make(configuration, .quest(.fraction(fraction))) }
        }
        expectError(.invalidArgument, "selector.streaming.sink") { try make(configuration, .streaming(sink: -1, recent: 1)) }
        expectError(.invalidArgument, "selector.streaming.recent") { try make(configuration, .streaming(sink: 0, recent: 0)) }
        let plain = try KVCacheConfiguration(kvHeads: 2, headDim: 32, pageSize: 16, pageCapacity: 4)
        expectError(.invalidArgument, "configuration.metadata") { try make(plain, .quest(.tokens(64))) }
        try make(plain, .everything)

        let bench = try Bench()
        for selector in Self.selectors {
            let plan = try bench.plan(selector)
            let wide = try Tensor<Float>(zeros: [4, 2, 32])
            expectError(.invalidShape, "query") {
                _ = try plan.prune(query: wide.view(), cache: bench.cache, sequences: bench.sequences)
            }
            expectError(.invalidArgument, "layer") { _ = try bench.decode(plan, layer: 2) }
            let freed = try bench.cache.fork(bench.sequences[0])
            try bench.cache.free(freed)
            expectError(.unknownSequence, "sequence") {
                _ = try plan.decode(
                    query: bench.query, cache: bench.cache, sequences: [bench.sequences[0], freed, bench.sequences[1]])
            }
        }
    }
}
