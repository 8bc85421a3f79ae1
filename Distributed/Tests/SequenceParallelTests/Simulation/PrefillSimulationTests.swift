import SequenceParallel
import Testing

@Suite("PrefillSimulation and DecodeSimulation")
struct PrefillSimulationTests {
    private let model = SimulatedModel.eightBillion
    private let machine = RankMachine.sixteenCoreHosts

    @Test("one rank is the baseline of all")
    func oneRank() throws {
        let one = try PrefillSimulation(model, length: 65536, ranks: 1, .zigzag, on: machine)
        #expect(one.speedup == 1 && one.efficiency == 1)
        #expect(one.memory.ring == 0 && one.memory.exchange == 0)
        let step = try DecodeSimulation(model, length: 65536, ranks: 1, on: machine)
        #expect(step.attentionSpeedup == 1 && step.sentBytes == 0 && step.gatheringSeconds == 0)
    }

    @Test("no rank is worth more than one", arguments: [2, 16, 64])
    func bounds(_ ranks: Int) throws {
        for length in [1 << 17, 1 << 20] {
            for method in [SequenceParallelMethod.ring, .zigzag, .grid(ulysses: 2)] {
                let prefill = try PrefillSimulation(model, length: length, ranks: ranks, method, on: machine)
                #expect(prefill.efficiency <= 1 && prefill.efficiency > 0)
            }
            let step = try DecodeSimulation(model, length: length, ranks: ranks, on: machine)
            #expect(step.efficiency <= 1 && step.efficiency > 0)
        }
    }

    @Test("the fastest arrangement is none slower than the ring and Ulysses", arguments: [2, 8, 32])
    func fastest(_ ranks: Int) throws {
        let best = try PrefillSimulation.fastest(model, length: 1 << 18, ranks: ranks, on: machine)
        let zigzag = try PrefillSimulation(model, length: 1 << 18, ranks: ranks, .zigzag, on: machine)
        let ulysses = try PrefillSimulation(model, length: 1 << 18, ranks: ranks, .ulysses, on: machine)
        #expect(best.seconds <= min(zigzag.seconds, ulysses.seconds))
        #expect(best.ulysses * best.ring == ranks)
    }

    @Test("what grows with the context is divided among the ranks")
    func memory() throws {
        func memory(_ length: Int, _ ranks: Int) throws -> RankMemory {
            try PrefillSimulation(model, length: length, ranks: ranks, .zigzag, on: machine).memory
        }
        let (small, large) = (try memory(1 << 20, 64), try memory(1 << 21, 128))
        #expect(small == large)
        // 32 layers of 2 · 8 · 128 16-bit numbers, of 16384 tokens.
        #expect(small.cache == 16384 * 32 * 2 * 8 * 128 * 2)
        #expect(small.operands == 16384 * (32 + 8 + 8 + 32) * 128 * 4)
        #expect(try memory(1 << 20, 128).ofContext == small.ofContext / 2)
        // Three blocks of keys and values, and the outputs with their LSE.
        #expect(small.ring == 16384 * (3 * 8 * 256 * 4 + 32 * 129 * 4) && small.exchange == 0)
        #expect(small.weights == model.weightBytes && abs(Double(small.weights) / 16.06e9 - 1) < 0.01)
    }

    @Test("the buffers of attention are those that it allocates", arguments: [(4, 1), (4, 2), (2, 4), (1, 8), (1, 1)])
    func buffers(_ ring: Int, _ ulysses: Int) throws {
        let sizes = SimulatedModel(
            name: "small", layers: 1, hidden: 8, intermediate: 8, queryHeads: 8, kvHeads: 2, headDim: 8, vocabulary: 8)
        let length = 32 * ring * ulysses
        let memory = try PrefillSimulation(
            sizes, length: length, ranks: ring * ulysses, .grid(ulysses: ulysses), on: machine
        ).memory
        let own = 32, group = 32 * ulysses, heads = 8 / ulysses, kvHeads = max(1, 2 / ulysses)
        let (queries, keys, states) = (heads * 8 * 4, kvHeads * 16 * 4, heads * 9 * 4)
        let exchange =
            ulysses == 1 ? 0 : group * queries + own * ulysses * (queries + states) + own * min(2, ulysses) * keys
        #expect(memory.exchange == exchange)
        #expect(memory.ring == (ring * ulysses == 1 ? 0 : group * (min(ring, 3) * keys + states)))
    }

    @Test("a context of 16M tokens on 1024 ranks is simulated")
    func large() throws {
        let prefill = try PrefillSimulation(model, length: 1 << 24, ranks: 1024, .grid(ulysses: 16), on: machine)
        #expect(prefill.efficiency > 0.5 && prefill.attention.imbalance < 1.01)
        // More ranks than query heads are too many for one group.
        #expect(throws: SparseKernelsError.self) {
            try PrefillSimulation(model, length: 1 << 24, ranks: 1024, .ulysses, on: machine)
        }
    }

    @Test("ranks of several threads share the bandwidth of their host")
    func threads() throws {
        let joined = machine.joining(threads: 16)
        #expect(joined.ranksPerHost == 1 && joined.memoryRate <= machine.hostMemoryRate)
        #expect(joined.attentionRate == 16 * machine.attentionRate)
        #expect(machine.joining(threads: 1) == machine)
    }

    @Test("sizes outside of their range are errors")
    func errors() throws {
        func argument(_ body: () throws -> Void) -> String? {
            do { try body() } catch { return (error as? SparseKernelsError)?.argument }
            return nil
        }
        #expect(argument { _ = try PrefillSimulation(model, length: 0, ranks: 2, .ring, on: machine) } == "length")
        #expect(argument { _ = try PrefillSimulation(model, length: .max, ranks: 2, .ring, on: machine) } == "length")
        #expect(argument { _ = try PrefillSimulation(model, length: 64, ranks: 0, .ring, on: machine) } == "ranks")
        #expect(
            argument { _ = try PrefillSimulation(model, length: 64, ranks: 6, .grid(ulysses: 4), on: machine) } == "ulysses")
        #expect(
            argument { _ = try PrefillSimulation(model, length: 64, ranks: 6, .grid(ulysses: 0), on: machine) } == "ulysses")
        #expect(argument { _ = try DecodeSimulation(model, length: 64, ranks: 0, on: machine) } == "ranks")
        #expect(argument { _ = try DecodeSimulation(model, length: -1, ranks: 1, on: machine) } == "length")
        var other = model
        other.kvHeads = 5
        #expect(argument { _ = try PrefillSimulation(other, length: 64, ranks: 1, .ring, on: machine) } == "queryHeads")
        other.layers = 0
        #expect(argument { _ = try DecodeSimulation(other, length: 64, ranks: 1, on: machine) } == "layers")
    }
}
