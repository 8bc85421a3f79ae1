import SequenceParallel
import Testing

@Suite("AttentionSimulation")
struct AttentionSimulationTests {
    static let costs = SequenceParallelCosts(queryHeads: 8, kvHeads: 8, headDim: 64)

    /// A machine that sends and merges at once.
    static let ideal = RankMachine(
        name: "ideal", ranksPerHost: 4, within: .init(latency: 0, bytesPerSecond: 1e30, occupiesCore: false),
        between: .init(latency: 0, bytesPerSecond: 1e30, occupiesCore: false), attentionRate: 1e9,
        attentionCallSeconds: 0, linearRate: 1e9, cacheRate: 1e30, memoryRate: 1e30, hostMemoryRate: 1e30)

    private static func close(_ a: Double, _ b: Double, _ tolerance: Double = 1e-9) -> Bool { abs(a - b) <= tolerance * abs(b) }

    @Test("one rank takes its multiply-adds and a call")
    func oneRank() throws {
        let machine = RankMachine.sixteenCoreHosts
        let n = 1000
        let simulation = try AttentionSimulation(
            Self.costs, shards: .contiguous(length: n, ranks: 1), ulysses: 1, on: machine)
        let work = Double(n * (n + 1) / 2 * 8 * 128) / machine.attentionRate
        #expect(Self.close(simulation.seconds, work + machine.attentionCallSeconds))
        #expect(simulation.seconds == simulation.computing)
        #expect(simulation.totalSentBytes == 0 && simulation.hiddenShare == 1 && simulation.imbalance == 1)
    }

    @Test("ranks that send at once divide the time, but for the uneven work of the plain ring", arguments: [2, 4, 8])
    func ideally(_ ranks: Int) throws {
        let n = 1 << 14
        let one = try AttentionSimulation(
            Self.costs, shards: .contiguous(length: n, ranks: 1), ulysses: 1, on: Self.ideal)
        for ulysses in [1, 2, ranks] {
            let shards = try TokenShards.zigzag(length: n, ulysses: ulysses, ring: ranks / ulysses)
            let many = try AttentionSimulation(Self.costs, shards: shards, ulysses: ulysses, on: Self.ideal)
            #expect(Self.close(one.seconds / many.seconds, Double(ranks), 1e-3))
            #expect(many.imbalance < 1.001)
        }
        let plain = try AttentionSimulation(
            Self.costs, shards: .contiguous(length: n, ranks: ranks), ulysses: 1, on: Self.ideal)
        // Rank r has 2r + 1 of R² parts of the area; the last one has (2R − 1)/R² of it.
        #expect(Self.close(plain.imbalance, Double(2 * ranks - 1) / Double(ranks), 1e-3))
        #expect(one.seconds / plain.seconds < Double(ranks) / 1.4)
    }

    @Test("a ring waits for a link that is slower than its steps", arguments: [2, 5])
    func slowLink(_ ranks: Int) throws {
        var machine = Self.ideal
        machine.ranksPerHost = 1
        machine.between = .init(latency: 0.25, bytesPerSecond: 1e6, occupiesCore: false)
        let n = 64 * ranks
        let shards = try TokenShards.zigzag(length: n, ulysses: 1, ring: ranks)
        let ring = try AttentionSimulation(Self.costs, shards: shards, ulysses: 1, on: machine)
        let transfer = 0.25 + Double(64 * 8 * 128 * 4) / 1e6
        #expect(Self.close(ring.transferring, Double(ranks - 1) * transfer))
        #expect(Self.close(ring.seconds, ring.computing + ring.waiting + ring.copying + ring.exchanging))
        #expect(ring.seconds >= ring.transferring && ring.waiting > 0 && ring.hiddenShare < 0.1)
        // A faster one hides behind the computation.
        machine.between = .init(latency: 0, bytesPerSecond: 1e12, occupiesCore: false)
        let fast = try AttentionSimulation(Self.costs, shards: shards, ulysses: 1, on: machine)
        #expect(fast.waiting == 0 && fast.hiddenShare == 1 && fast.seconds < ring.seconds)
        // One that needs the core is never hidden.
        machine.between.occupiesCore = true
        let copied = try AttentionSimulation(Self.costs, shards: shards, ulysses: 1, on: machine)
        #expect(Self.close(copied.copying, copied.transferring) && copied.hiddenShare == 0)
        #expect(Self.close(copied.seconds, fast.seconds + copied.copying, 1e-6))
    }

    @Test("groups on one host keep the exchange off the network")
    func placement() throws {
        var machine = Self.ideal
        machine.between = .init(latency: 0, bytesPerSecond: 1e6, occupiesCore: false)
        func exchange(_ ulysses: Int) throws -> Double {
            let shards = try TokenShards.zigzag(length: 4096, ulysses: ulysses, ring: 8 / ulysses)
            return try AttentionSimulation(Self.costs, shards: shards, ulysses: ulysses, on: machine).exchanging
        }
        #expect(try exchange(4) < 1e-9)
        // With 8 ranks on two hosts of 4, every rank gets half of 4096/8 rows of 8 heads from the other host, whose link four share.
        #expect(Self.close(try exchange(8), 4 * 4 * Double(512 * (3 + 1) * 64 * 4) / 1e6, 1e-6))
    }

    @Test("keys go round as far as some group sees them")
    func hops() throws {
        // Every rank has 4 tokens, with keys and values of 8 heads of 64 channels.
        let (n, row) = (16, 8 * 128 * 4)
        func sent(_ shards: TokenShards, isCausal: Bool) throws -> Int {
            try AttentionSimulation(Self.costs, shards: shards, ulysses: 1, isCausal: isCausal, on: Self.ideal).totalSentBytes
        }
        let plain = try TokenShards.contiguous(length: n, ranks: 4)
        #expect(try sent(plain, isCausal: true) == (3 + 2 + 1) * 4 * row)
        #expect(try sent(plain, isCausal: false) == 4 * 3 * 4 * row)
        let zigzag = try TokenShards.zigzag(length: n, ulysses: 1, ring: 4)
        #expect(try sent(zigzag, isCausal: true) == 4 * 3 * 4 * row)
    }

    @Test("uneven and empty shards are simulated")
    func uneven() throws {
        let shards = try TokenShards(length: 10, ranges: [[0..<3, 9..<10], [], [3..<9], []])
        for ulysses in [1, 2, 4] {
            let simulation = try AttentionSimulation(Self.costs, shards: shards, ulysses: ulysses, on: .sixteenCoreHosts)
            #expect(simulation.seconds.isFinite && simulation.seconds > 0)
        }
        let nothing = try AttentionSimulation(
            Self.costs, shards: .contiguous(length: 0, ranks: 2), ulysses: 1, on: Self.ideal)
        #expect(nothing.computing == 0 && nothing.imbalance == 1)
    }

    @Test("groups that do not fit are errors, and so are constants")
    func errors() throws {
        let shards = try TokenShards.contiguous(length: 64, ranks: 6)
        for ulysses in [0, -1, 4, 6] {
            #expect(throws: SparseKernelsError.self) {
                try AttentionSimulation(Self.costs, shards: shards, ulysses: ulysses, on: Self.ideal)
            }
        }
        var machine = Self.ideal
        machine.attentionRate = .nan
        #expect { try machine.validate() } throws: { ($0 as? SparseKernelsError)?.argument == "attentionRate" }
        machine = Self.ideal
        machine.within.latency = -1
        #expect { try machine.validate() } throws: { ($0 as? SparseKernelsError)?.argument == "within.latency" }
        machine = Self.ideal
        machine.ranksPerHost = 0
        #expect { try machine.validate() } throws: { ($0 as? SparseKernelsError)?.argument == "ranksPerHost" }
    }
}
