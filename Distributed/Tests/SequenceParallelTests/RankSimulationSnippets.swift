import SequenceParallel
import Testing

/// The Swift blocks of Docs/Operators/RankSimulation.md.
@Suite("Snippets of RankSimulation.md")
struct RankSimulationSnippets {
    @Test func prefill() throws {
        let prefill = try PrefillSimulation(
            .eightBillion, length: 1 << 20, ranks: 64, .grid(ulysses: 16), on: .sixteenCoreHosts)
        print(prefill.seconds, prefill.efficiency, prefill.attention.hiddenShare, prefill.memory.total)
        let step = try DecodeSimulation(.eightBillion, length: 1 << 20, ranks: 64, on: .sixteenCoreHosts)
        print(step.attentionSeconds, step.attentionSpeedup, step.cacheBytes)
        #expect(prefill.efficiency > 0.9 && step.attentionSpeedup > 10)
    }

    @Test func attention() throws {
        let costs = SequenceParallelCosts(queryHeads: 32, kvHeads: 8, headDim: 128)
        let shards = try TokenShards.zigzag(length: 100_000, ulysses: 4, ring: 2)
        let attention = try AttentionSimulation(costs, shards: shards, ulysses: 4, on: .sixteenCoreHosts)
        let tokens = (0..<8).map { shards.count(of: $0) }
        let sent = costs.sentBytes(by: 0, tokens: tokens, ulysses: 4)  // .operands, .ring, .output
        #expect(sent.total == attention.largestSentBytes)
    }

    @Test func measuring() throws {
        let network = RankMachine.Link(latency: 30e-6, bytesPerSecond: 3e9, occupiesCore: false)
        let machines = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            try RankMeasurement(
                on: ranks, host: "this", named: "my machine", assuming: network, effort: .least, pool: .serial
            ).machine
        }
        #expect(machines[0] == machines[1])
    }
}
