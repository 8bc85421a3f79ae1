import SequenceParallel
import Terminal

/// Attention that was run and simulated: of a prompt in every arrangement of the ranks, and of a new token over a sharded cache.
struct SimulationCheck: Sendable {
    let name: String
    /// Seconds of the slowest rank.
    let measured: Double
    let simulated: Double
    let sentBytes: Int
    let simulatedBytes: Int

    private static let (queryHeads, kvHeads, headDim) = (8, 2, 128)

    private static var costs: SequenceParallelCosts {
        SequenceParallelCosts(queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim)
    }

    /// Runs everything. Every rank calls it, and gets the same results.
    static func all(
        tokens: Int, _ machine: RankMachine, on ranks: any Communicator, pool: WorkerPool
    ) throws(SparseKernelsError) -> [SimulationCheck] {
        var methods: [SequenceParallelMethod] = ranks.count > 1 ? [.ring, .zigzag] : [.zigzag]
        for ulysses in 2..<max(3, ranks.count) where ranks.count % ulysses == 0 && ulysses < ranks.count {
            if costs.allows(ulysses: ulysses) { methods.append(.grid(ulysses: ulysses)) }
        }
        if ranks.count > 1 && costs.allows(ulysses: ranks.count) { methods.append(.ulysses) }
        var checks: [SimulationCheck] = []
        for method in methods {
            let ulysses = method.ulysses(ranks: ranks.count)
            let shards = try method.shards(length: tokens, ranks: ranks.count)
            let simulation = try AttentionSimulation(costs, shards: shards, ulysses: ulysses, on: machine)
            let run = try prefill(shards, ulysses: ulysses, on: ranks, pool: pool)
            checks.append(
                try SimulationCheck(
                    "\(method)", run, simulated: simulation.seconds, bytes: simulation.largestSentBytes, on: ranks))
        }
        let model = SimulatedModel(
            name: "one layer", layers: 1, hidden: 1, intermediate: 1, queryHeads: queryHeads, kvHeads: kvHeads,
            headDim: headDim, vocabulary: 1)
        let simulation = try DecodeSimulation(model, length: tokens, ranks: ranks.count, on: machine)
        checks.append(
            try SimulationCheck(
                "a token", decode(tokens, on: ranks, pool: pool), simulated: simulation.attentionSeconds,
                bytes: simulation.sentBytes, on: ranks))
        return checks
    }

    /// Puts together what the ranks measured.
    private init(
        _ name: String, _ run: (seconds: Double, sentBytes: Int), simulated: Double, bytes: Int, on ranks: any Communicator
    ) throws(SparseKernelsError) {
        let all = try ranks.gather([Int(run.seconds * 1e9), run.sentBytes])
        self.name = name
        measured = Double(all.reduce(0) { max($0, $1[0]) }) * 1e-9
        sentBytes = all.reduce(0) { max($0, $1[1]) }
        (self.simulated, simulatedBytes) = (simulated, bytes)
    }

    private static func prefill(
        _ shards: TokenShards, ulysses: Int, on ranks: any Communicator, pool: WorkerPool
    ) throws(SparseKernelsError) -> (seconds: Double, sentBytes: Int) {
        let attention = try SequenceParallelAttention(
            shards, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim, mask: .causal, ulysses: ulysses, on: ranks)
        let own = shards.count(of: ranks.rank)
        let query = try values(queryHeads, own), key = try values(kvHeads, own)
        var output = try Tensor<Float>(zeros: [queryHeads, own, headDim])
        let seconds = try median(of: 3, on: ranks) { () throws(SparseKernelsError) in
            try attention.run(
                query: query.view(named: "query"), key: key.view(named: "key"), value: key.view(named: "value"),
                output: output.mutableView(named: "output"), on: pool)
        }
        return (seconds, attention.statistics.sentBytes)
    }

    private static func decode(
        _ tokens: Int, on ranks: any Communicator, pool: WorkerPool
    ) throws(SparseKernelsError) -> (seconds: Double, sentBytes: Int) {
        let shards = try TokenShards.contiguous(length: tokens, ranks: ranks.count, alignment: 64)
        let configuration = try KVCacheConfiguration(
            kvHeads: kvHeads, headDim: headDim, pageSize: 64, pageCapacity: shards.largestCount / 64 + 1, format: .float16)
        let cache = try ShardedKVCache(configuration, on: ranks)
        let attention = try ShardedPagedAttention(queryHeads: queryHeads, configuration: configuration, on: ranks)
        let sequence = cache.makeSequence()
        let rows = try values(kvHeads, shards.count(of: ranks.rank))
        try cache.append(key: rows, value: rows, to: sequence, shards: shards, on: pool)
        let query = try values(queryHeads, 1)
        var output = try Tensor<Float>(zeros: [queryHeads, 1, headDim])
        let seconds = try median(of: 15, on: ranks) { () throws(SparseKernelsError) in
            try attention.run(query: query, cache: cache, sequences: [sequence], into: &output, on: pool)
        }
        return (seconds, attention.statistics.sentBytes / max(1, attention.statistics.calls))
    }

    private static func values(_ heads: Int, _ tokens: Int) throws(SparseKernelsError) -> Tensor<Float> {
        try Tensor([heads, tokens, headDim]) { Float(($0 &* 2_654_435_761) >> 7 & 1023) / 512 - 1 }
    }

    /// The median time of some calls that all ranks begin together, after a first one.
    private static func median(
        of count: Int, on ranks: any Communicator, _ body: () throws(SparseKernelsError) -> Void
    ) throws(SparseKernelsError) -> Double {
        let clock = ContinuousClock()
        var samples: [Double] = []
        for _ in 0...count {
            try ranks.barrier()
            let start = clock.now
            try body()
            samples.append((clock.now - start) / .seconds(1))
        }
        return samples.dropFirst().sorted()[count / 2]
    }

    /// A table for people.
    static func lines(_ checks: [SimulationCheck], tokens: Int) -> [String] {
        let table = TextTable([
            .init("Arrangement", width: 20, alignment: .left), .init("Measured", "ms", width: 8),
            .init("Simulated", "ms", width: 8), .init("Ratio", width: 6), .init("Sent", "MB", width: 7),
            .init("Formula", "MB", width: 7),
        ])
        return [
            "",
            "causal attention of \(tokens) tokens, \(queryHeads) query and \(kvHeads) key/value heads of \(headDim) channels",
        ] + table.header
            + checks.map { check in
                table.line([
                    check.name, Format.number(check.measured * 1e3), Format.number(check.simulated * 1e3),
                    Format.number(check.measured / check.simulated), Format.number(Double(check.sentBytes) / 1e6),
                    Format.number(Double(check.simulatedBytes) / 1e6),
                ])
            }
    }
}
