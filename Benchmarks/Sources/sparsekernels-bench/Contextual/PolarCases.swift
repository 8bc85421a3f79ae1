import BenchmarkReport
import PolarSparsity
import SparseKernels
import SparseKernelsReference

/// A step of decoding in which every sequence attends with a part of its heads, against attention with all: 32 query heads, 8
/// key/value heads, 128 channels, half precision, empty caches. A row includes the router.
extension ContextualCases {
    func polarGroups() -> [CaseGroup] {
        (isQuick ? [(8192, 1)] : [(32768, 1), (8192, 8)]).map { context, batch in polarGroup(context, batch: batch) }
    }

    private func polarGroup(_ context: Int, batch: Int) -> CaseGroup {
        let counts = [6, 4, 2]
        return CaseGroup(
            op: "contextual.polar", name: "Polar \(context) b\(batch)", amounts: .uncounted,
            labels: [ContextualBaseline.dense] + counts.map { "\($0) of 8 groups" } + ["16 of 32 heads"]
        ) { announce in
            announce("filling a cache")
            let problem = try PolarProblem(context: context, batch: batch, instructionSet, on: pool)
            let caches = ColdCaches(instructionSet, pool)
            func variant(_ label: String, density: Double, _ body: @escaping () -> Void) -> Variant {
                let (operations, bytes) = (problem.operations * density, problem.byteCount * density)
                var variant = Variant(
                    isa: instructionSet.name, threads: pool.threads, body: body, verify: { nil },
                    roof: { caches.rate(operations: operations, bytes: bytes) })
                variant.label = label
                variant.preparation = caches.empty
                variant.amounts = .operations(operations, effective: problem.operations)
                variant.metrics = [.density: density]
                variant.tokensPerCall = batch
                return variant
            }
            var variants = [variant(ContextualBaseline.dense, density: 1) { problem.run(nil) }]
            for count in counts {
                let decode = try problem.decode(heads: 8, count: count)
                variants.append(variant("\(count) of 8 groups", density: Double(count) / 8) { problem.run(decode) })
                variants[variants.count - 1].verify = { problem.check(decode) }
            }
            let heads = try problem.decode(heads: 32, count: 16)
            // Heads of one group share what they read: bytes are those of the groups with any selected head.
            variants.append(variant("16 of 32 heads", density: try problem.readDensity(heads)) { problem.run(heads) })
            variants[variants.count - 1].verify = { problem.check(heads) }
            for index in 1..<variants.count { variants[index].baseline = (0, ContextualBaseline.dense) }
            return variants
        }
    }
}

private final class PolarProblem {
    private static let (queryHeads, kvHeads, headDim, hiddenSize) = (32, 8, 128, 4096)
    private let cache: PagedKVCache
    private let sequences: [PagedKVCache.SequenceID]
    private let attention: PagedAttention
    private let query: Tensor<Float>
    private let hidden: Tensor<Float>
    private var output: Tensor<Float>
    private let pool: WorkerPool
    /// Of attention in all heads.
    let operations: Double
    let byteCount: Double

    init(context: Int, batch: Int, _ set: InstructionSet, on pool: WorkerPool) throws {
        self.pool = pool
        let configuration = try KVCacheConfiguration(
            kvHeads: Self.kvHeads, headDim: Self.headDim, pageSize: 64, pageCapacity: batch * (context / 64 + 1),
            format: .float16)
        let cache = try PagedKVCache(configuration, instructionSet: set)
        var sequences: [PagedKVCache.SequenceID] = []
        // Speed does not depend on the values, so pieces repeat.
        let piece = try Tensor<Float>.normal([Self.kvHeads, 1024, Self.headDim], seed: 1)
        for _ in 0..<batch {
            let sequence = cache.makeSequence()
            for _ in 0..<context / 1024 { try cache.append(key: piece.view(), value: piece.view(), to: sequence, on: pool) }
            sequences.append(sequence)
        }
        (self.cache, self.sequences) = (cache, sequences)
        attention = try PagedAttention(queryHeads: Self.queryHeads, configuration: configuration, instructionSet: set)
        query = try .normal([Self.queryHeads, batch, Self.headDim], seed: 2)
        hidden = try .normal([batch, Self.hiddenSize], seed: 3)
        output = try Tensor(zeros: [Self.queryHeads, batch, Self.headDim])
        operations = 4 * Double(Self.queryHeads * batch * context * Self.headDim)
        byteCount = 4 * Double(Self.kvHeads * batch * context * Self.headDim)
    }

    func decode(heads: Int, count: Int) throws -> PolarDecode {
        let router = try HeadRouter(
            weight: .normal([heads, Self.hiddenSize], seed: 4), instructionSet: attention.instructionSet)
        return try PolarDecode(attention: attention, routers: [router], counts: [count], denseLayers: 0)
    }

    /// Attends with the heads that a router chooses, or with all. Shapes agree by construction, so that no call can throw.
    func run(_ decode: PolarDecode?) {
        guard let decode else {
            return try! attention.run(query: query, cache: cache, sequences: sequences, into: &output, on: pool)
        }
        try! decode.run(
            query: query, hidden: hidden, cache: cache, sequences: sequences, layer: 0, into: &output, on: pool)
    }

    private func selection(_ decode: PolarDecode) -> HeadSelection {
        try! decode.select(hidden: hidden, layer: 0, on: pool)!
    }

    /// The part of the groups of query heads that have a selected one.
    func readDensity(_ decode: PolarDecode) throws -> Double {
        let selection = selection(decode)
        let groups = sequences.indices.reduce(0) { sum, sequence in
            sum + Set(selection.list(sequence: sequence).map { Int($0) * Self.kvHeads / selection.heads }).count
        }
        return Double(groups) / Double(sequences.count * Self.kvHeads)
    }

    /// Selected heads have the bits of attention in all heads, and others are 0.
    func check(_ decode: PolarDecode) -> Verification {
        run(nil)
        let dense = output
        run(decode)
        let selection = selection(decode)
        var verification = Verification.none
        for head in 0..<Self.queryHeads {
            for (token, _) in sequences.enumerated() {
                let isSelected = selection.list(sequence: token).contains(
                    Int32(head * selection.heads / Self.queryHeads))
                for channel in 0..<Self.headDim {
                    let expected = isSelected ? dense[head, token, channel] : 0
                    verification.add(error: Double(abs(output[head, token, channel] - expected)), bound: 0)
                }
            }
        }
        return verification
    }
}
