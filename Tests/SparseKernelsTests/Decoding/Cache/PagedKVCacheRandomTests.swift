import HostileFiles
import SparseKernels
import Testing

@Suite("Paged KV cache: random operations")
struct PagedKVCacheRandomTests {
    /// Runs 1500 operations on each of 5 configurations, with pools so small that many operations find no page.
    @Test("thousands of operations agree with a model", arguments: SmallCache.all)
    func agreesWithModel(_ small: SmallCache) throws {
        let model = try PagedKVCacheModel(small.configuration())
        let pool = WorkerPool(threads: 2)
        var random = SplitMix64(seed: 5)
        var (done, refused) = (0, 0)
        for step in 0..<1500 {
            let before = step % 7 == 0 ? try model.snapshot() : nil
            do {
                try operate(on: model, &random, pool)
                done += 1
            } catch let error as SparseKernelsError {
                #expect(error.code == .capacityExceeded, "\(error)")
                if let before { #expect(try model.snapshot() == before, "step \(step)") }
                refused += 1
            }
            try model.check("step \(step)", contents: step % 25 == 0)
        }
        try model.check("at the end")
        #expect(done > 500 && refused > 50, "\(done) done, \(refused) refused")
        for _ in model.sequences { try model.free(0) }
        #expect(model.cache.usedPageCount == 0 && model.cache.usedByteCount == 0)
        #expect(model.cache.freePageCount == model.configuration.pageCapacity)
    }

    private func operate(on model: PagedKVCacheModel, _ random: inout SplitMix64, _ pool: WorkerPool) throws {
        if model.sequences.isEmpty || (model.sequences.count < 5 && random.chance(1, of: 12)) {
            _ = model.make()
            return
        }
        let index = random.below(model.sequences.count)
        let sequence = model.sequences[index].model
        let layers = model.configuration.layers
        switch random.below(20) {
        case 0...3:
            try model.append(1, to: index, layer: random.below(layers), on: pool)
        case 4...6:
            // Any sequences, in any order; forks that share their last page among them.
            let count = random.below(model.sequences.count + 1)
            let first = random.below(model.sequences.count)
            try model.appendEach(
                to: (0..<count).map { (first + $0) % model.sequences.count }, layer: random.below(layers), on: pool)
        case 7...9:
            try model.append(1 + random.below(2 * model.pageSize), to: index, layer: random.below(layers), on: pool)
        case 10, 11:
            if model.sequences.count < 8 {
                try model.fork(index, at: random.chance(1, of: 2) ? nil : cut(sequence, model.pageSize, &random))
            }
        case 12, 13:
            try model.truncate(index, to: cut(sequence, model.pageSize, &random))
        case 14...16:
            let layer = random.below(layers)
            let range = subrange(sequence.tokens[layer].count, &random)
            let touched =
                range.isEmpty ? 0..<0 : range.lowerBound / model.pageSize..<(range.upperBound - 1) / model.pageSize + 1
            if !range.isEmpty && sequence.holes.isDisjoint(with: touched) {
                try model.overwrite(range, of: index, layer: layer, on: pool)
            }
        case 17, 18:
            try model.discard(subrange(sequence.shortest, &random), of: index)
        default:
            if random.chance(1, of: 2) { try model.free(index) }
        }
    }

    private func subrange(_ count: Int, _ random: inout SplitMix64) -> Range<Int> {
        let (a, b) = (random.below(count + 1), random.below(count + 1))
        return min(a, b)..<max(a, b)
    }

    /// A length that does not end within a discarded page.
    private func cut(_ sequence: PagedKVCacheModel.Sequence, _ pageSize: Int, _ random: inout SplitMix64) -> Int {
        let length = random.below(sequence.longest + 1)
        return sequence.holes.contains(length / pageSize) ? length / pageSize * pageSize : length
    }

    @Test("threads do not change a bit", arguments: SmallCache.all)
    func threads(_ small: SmallCache) throws {
        var snapshots: [PagedKVCacheModel.Snapshot] = []
        for threads in [1, 2, 7] {
            let pool = WorkerPool(threads: threads)
            // Has enough elements to wake a thread.
            let configuration = try KVCacheConfiguration(
                kvHeads: 3, headDim: 64, pageSize: 16, pageCapacity: 90, format: small.format,
                valueFormat: small.valueFormat, metadata: small.metadata, keepsKeyEstimates: small.estimates)
            let model = try PagedKVCacheModel(configuration)
            let index = model.make()
            try model.append(1000, to: index, on: pool)
            try model.overwrite(7..<950, of: index, layer: 0, on: pool)
            snapshots.append(try model.snapshot())
        }
        #expect(snapshots[0] == snapshots[1] && snapshots[0] == snapshots[2])
    }
}
