import SequenceParallel
import Terminal

/// Attention that was run and simulated.
struct SimulationCheck: Sendable {
    let name: String
    /// Seconds of the slowest rank.
    let measured: Double
    let simulated: Double
    let sentBytes: Int
    let simulatedBytes: Int

    private static let (queryHeads, kvHeads, headDim) = (8, 2, 128)

    /// Runs every arrangement of the ranks. Every rank calls it, and gets the same results.
    static func all(
        tokens: Int, _ machine: RankMachine, on ranks: any Communicator, pool: WorkerPool
    ) throws(SparseKernelsError) -> [SimulationCheck] {
        let costs = SequenceParallelCosts(queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim)
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
            let (seconds, bytes) = try run(shards, ulysses: ulysses, on: ranks, pool: pool)
            let all = try ranks.gather([Int(seconds * 1e9), bytes])
            checks.append(
                SimulationCheck(
                    name: "\(method)", measured: Double(all.reduce(0) { max($0, $1[0]) }) * 1e-9, simulated: simulation.seconds,
                    sentBytes: all.reduce(0) { max($0, $1[1]) }, simulatedBytes: simulation.largestSentBytes))
        }
        return checks
    }

    /// The median time of three calls after a first one.
    private static func run(
        _ shards: TokenShards, ulysses: Int, on ranks: any Communicator, pool: WorkerPool
    ) throws(SparseKernelsError) -> (seconds: Double, sentBytes: Int) {
        let attention = try SequenceParallelAttention(
            shards, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim, mask: .causal, ulysses: ulysses, on: ranks)
        let own = shards.count(of: ranks.rank)
        func values(_ heads: Int) throws(SparseKernelsError) -> Tensor<Float> {
            try Tensor([heads, own, headDim]) { Float(($0 &* 2_654_435_761) >> 7 & 1023) / 512 - 1 }
        }
        let query = try values(queryHeads), key = try values(kvHeads)
        var output = try Tensor<Float>(zeros: [queryHeads, own, headDim])
        var samples: [Double] = []
        let clock = ContinuousClock()
        for _ in 0..<4 {
            try ranks.barrier()
            let start = clock.now
            try attention.run(
                query: query.view(named: "query"), key: key.view(named: "key"), value: key.view(named: "value"),
                output: output.mutableView(named: "output"), on: pool)
            samples.append((clock.now - start) / .seconds(1))
        }
        return (samples.dropFirst().sorted()[1], attention.statistics.sentBytes)
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
