import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// What a step of block decoding does with its few dozen rows: attention of 8 query heads per KV head over a long context that
/// every row sees, from memory and from pages of every format, and the statistics of the logits of the rows.
///
/// The roof of attention is the rate of multiply-adds, and that of the statistics is the memory bandwidth.
struct BlockAttentionCases: CaseFamily {
    let run: RunContext

    private static let (queryHeads, kvHeads, headDim) = (16, 2, 128)
    private static let formats: [KVFormat] = [.float16, .int8, .int4]
    private static let pageSize = 64

    func section() -> Section {
        var groups: [CaseGroup] = []
        for context in isQuick ? [8192] : [8192, 32768] {
            for rows in isQuick ? [32] : [8, 32, 128] {
                groups += instructionSets.map { attention(rows: rows, context: context, $0) }
            }
        }
        groups += instructionSets.map { logits(rows: 32, vocabulary: 126_464, $0) }
        return Section(kind: .blocks, groups: groups, baselines: ["memory"])
    }

    private func attention(rows: Int, context: Int, _ set: InstructionSet) -> CaseGroup {
        let shape = try! AttentionShape(
            queryLength: rows, keyLength: context, queryHeads: Self.queryHeads, kvHeads: Self.kvHeads, headDim: Self.headDim)
        let operations = 4 * Double(Self.headDim) * Double(Self.queryHeads * rows) * Double(context)
        return CaseGroup(
            op: "blocks.attention", name: "\(rows) rows, \(context) keys", amounts: .operations(operations),
            labels: ["f32 in memory"] + Self.formats.map { "\($0.label) pages" }
        ) { announce in
            let query = try Tensor<Float>.normal([Self.queryHeads, rows, Self.headDim], seed: 1)
            let (key, value) = try run.shared.value(for: "block \(context)") {
                announce("making keys and values")
                return try (
                    Tensor<Float>.normal([Self.kvHeads, context, Self.headDim], seed: 2),
                    Tensor<Float>.normal([Self.kvHeads, context, Self.headDim], seed: 3)
                )
            }
            let plan = try DenseAttention(shape, instructionSet: set)
            let pool = pool
            func variant(
                _ label: String, _ output: AttentionOutput, _ key: Tensor<Float>, _ value: Tensor<Float>,
                _ body: @escaping () -> Void
            ) -> Variant {
                let checker = AttentionChecker(
                    reference: ReferenceAttention(shape), query: query, key: key, value: value)
                return Variant(
                    isa: set.name, threads: pool.threads, body: body,
                    verify: {
                        body()
                        return try checker.check(output.tensor)
                    }, baseline: label == "f32 in memory" ? nil : (0, "memory"),
                    roof: { MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) }, label: label)
            }
            let output = AttentionOutput(shape)
            var variants = [
                variant("f32 in memory", output, key, value) { output.compute(plan, query, key, value, on: pool) }
            ]
            for format in Self.formats {
                announce("filling a cache, \(format.label)")
                let cache = try PagedKVCache(
                    KVCacheConfiguration(
                        kvHeads: Self.kvHeads, headDim: Self.headDim, pageSize: Self.pageSize,
                        pageCapacity: context / Self.pageSize, format: format), instructionSet: set)
                let sequence = cache.makeSequence()
                try cache.append(key: key, value: value, to: sequence)
                let paged = PagedOutput(shape, try cache.rows(of: sequence))
                variants.append(
                    variant("\(format.label) pages", paged.output, try cache.keys(of: sequence), try cache.values(of: sequence))
                    {
                        paged.compute(plan, query, on: pool)
                    })
            }
            return variants
        }
    }
}

/// An output of attention over rows of a cache.
private final class PagedOutput {
    let output: AttentionOutput
    private let rows: CachedRows

    init(_ shape: AttentionShape, _ rows: CachedRows) {
        output = AttentionOutput(shape)
        self.rows = rows
    }

    func compute(_ plan: DenseAttention, _ query: Tensor<Float>, on pool: WorkerPool) {
        output.compute(plan, query, rows, on: pool)
    }
}
