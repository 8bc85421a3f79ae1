import Testing

@testable import SequenceParallel

@Suite("RankMeasurement")
struct RankMeasurementTests {
    private static let network = RankMachine.Link(latency: 1e-3, bytesPerSecond: 1e9, occupiesCore: false)

    @Test("every rank gets the same constants, and they make sense", arguments: [1, 2])
    func constants(_ count: Int) throws {
        let all = try LocalCommunicator.run(ranks: count) { (ranks) throws(SparseKernelsError) in
            try RankMeasurement(
                on: ranks, host: "one", named: "test", assuming: Self.network, effort: .least, pool: .init(threads: 1))
        }
        #expect(Set(all).count == 1)
        let machine = all[0].machine
        #expect(machine.ranksPerHost == count && machine.name == "test" && machine.between == Self.network)
        #expect(machine.attentionRate > 1e6 && machine.linearRate > 1e6 && machine.attentionCallSeconds < 1)
        #expect(machine.hostMemoryRate >= machine.memoryRate && machine.memoryRate > 1e6 && machine.cacheRate > 1e6)
        #expect((all[0].within == nil) == (count == 1) && all[0].between == nil)
        #expect(machine.within.occupiesCore == (count == 2))
    }

    @Test("hosts are told apart by their names")
    func hosts() throws {
        let all = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            try RankMeasurement(
                on: ranks, host: "host \(ranks.rank / 2)", named: "test", assuming: Self.network, effort: .least,
                pool: .init(threads: 1))
        }
        #expect(Set(all).count == 1)
        #expect(all[0].machine.ranksPerHost == 2 && all[0].within != nil && all[0].between != nil)
        #expect(!all[0].machine.between.occupiesCore && all[0].machine.between != Self.network)
    }

    @Test("every rank gets the times of the slowest")
    func messages() throws {
        let times = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            try MessageTimes(on: ranks, sizes: [8, 4096], budget: 0.001)
        }
        #expect(times[0] == times[1] && times[0].sizes == [8, 4096] && times[0].seconds.allSatisfy { $0 > 0 })
    }

    @Test("links are fitted to the fastest message and the largest one")
    func fit() {
        let link = MessageTimes(sizes: [8, 1000, 1_000_000], seconds: [2e-6, 3e-6, 1.002e-3]).link(occupiesCore: true)
        #expect(link.latency == 2e-6 && abs(link.bytesPerSecond / 1e9 - 1) < 1e-9 && link.occupiesCore)
        // Times of a busy machine still give a link.
        let odd = MessageTimes(sizes: [8, 1000], seconds: [5e-6, 4e-6]).link(occupiesCore: false)
        #expect(odd.latency == 4e-6 && odd.bytesPerSecond == 1000 / 2e-6)
    }

    @Test("one rank has nobody to send to, and sizes ascend")
    func errors() throws {
        for (count, sizes) in [(1, [8]), (2, []), (2, [8, 8]), (2, [0, 8])] {
            #expect { () -> Void in
                _ = try LocalCommunicator.run(ranks: count) { (ranks) throws(SparseKernelsError) in
                    try MessageTimes(on: ranks, sizes: sizes)
                }
            } throws: { ($0 as? SparseKernelsError)?.code == .invalidArgument }
        }
    }
}
