import BenchmarkReport
import SparseKernels

/// The costs of keeping a paged cache: memory of a token, the append of one token with its metadata, forks, and the first
/// append to a fork, which copies the last page. Times are compared with a dense step over the same cache.
struct DecodeUpkeepCases: CaseFamily {
    let run: RunContext

    func section() -> Section {
        let context = (run.decodeContexts ?? [isQuick ? 32768 : 131072]).max()!
        let formats: [KVFormat] = isQuick ? [.float16] : [.float16, .int8, .int4]
        var groups = formats.map { group(context, $0) }
        if !isQuick { groups.append(memory) }
        return Section(kind: .decodeUpkeep, groups: groups, baselines: [BenchmarkRow.denseBaseline])
    }

    private func group(_ context: Int, _ format: KVFormat) -> CaseGroup {
        let labels = ["dense", "append", "append to a fork", "fork"].map { "\(format.label) \($0)" }
        return CaseGroup(
            op: "decode.upkeep", name: "\(context) b1", amounts: .uncounted, labels: labels
        ) { announce in
            let operands = try run.decodeOperands(context: context, announce)
            announce("filling a cache, \(format.label)")
            let layout = CacheLayout(format: format, metadata: DecodeCases.metadata)
            let problem = try UpkeepProblem(layout, operands, instructionSet, pool)
            let caches = ColdCaches(instructionSet, pool)
            func row(_ label: String, _ prepare: @escaping () -> Void, _ body: @escaping () -> Void) -> Variant {
                var variant = Variant(
                    isa: instructionSet.name, threads: pool.threads, body: body,
                    verify: {
                        prepare()
                        body()
                        return Verification(error: Double(abs(try problem.lengthOfLast() - context)), bound: 0)
                    },
                    preparation: {
                        prepare()
                        caches.empty()
                    }, baseline: label == labels[0] ? nil : (0, BenchmarkRow.denseBaseline), label: label)
                variant.metrics[.bytesPerToken] = problem.cache.cache.configuration.bytesPerToken
                return variant
            }
            return [
                row(labels[0], problem.dropFork, problem.step.run),
                row(labels[1], problem.dropLastToken, problem.appendLastToken),
                row(labels[2], problem.forkBeforeLastToken, problem.appendLastToken),
                row(labels[3], problem.dropFork, problem.fork),
            ]
        }
    }

    /// Rows without a time: the memory of a token according to the cache, checked by counting.
    private var memory: CaseGroup {
        var layouts = [KVFormat.float32, .float16, .int8, .int4].map { CacheLayout(format: $0) }
        for format in [KVFormat.float16, .int8] {
            layouts += [16, 32, 64].map {
                CacheLayout(metadata: PageMetadata(.minMax, logicalPageSize: $0, format: format))
            }
        }
        layouts.append(CacheLayout(metadata: PageMetadata(.mean, logicalPageSize: 16)))
        layouts.append(CacheLayout(keepsEstimates: true))
        layouts.append(CacheLayout(format: .int4, metadata: PageMetadata(.minMax, logicalPageSize: 16, format: .int8)))
        let all = layouts
        return CaseGroup(
            op: "decode.upkeep", name: "memory", amounts: .uncounted, labels: all.map(\.label)
        ) { _ in
            try all.map { layout in
                let (heads, headDim) = (DecodeOperands.kvHeads, DecodeOperands.headDim)
                let stated = try layout.configuration(kvHeads: heads, headDim: headDim, tokens: 1, sequences: 1).bytesPerToken
                let counted = layout.traffic(headDim: headDim).bytesPerToken(kvHeads: heads)
                var variant = Variant(
                    isa: instructionSet.name, threads: 1, verify: { Verification(error: abs(stated - counted), bound: 0) })
                variant.label = layout.label
                variant.metrics[.bytesPerToken] = stated
                return variant
            }
        }
    }
}

extension CacheLayout {
    /// "f16 + minMax L16 f16".
    fileprivate var label: String {
        var label = format.label
        if let metadata { label += " + \(metadata.kind.rawValue) L\(metadata.logicalPageSize) \(metadata.format.label)" }
        return keepsEstimates ? label + " + estimates" : label
    }
}

/// A sequence of a cache whose last token is removed and appended again, and a fork of it.
private final class UpkeepProblem {
    let cache: DecodeCache
    let step: DecodeStep
    private let operands: DecodeOperands
    private let pool: WorkerPool
    private var forked: PagedKVCache.SequenceID?

    init(_ layout: CacheLayout, _ operands: DecodeOperands, _ set: InstructionSet, _ pool: WorkerPool) throws {
        (self.operands, self.pool) = (operands, pool)
        cache = try DecodeCache(layout, operands, sequences: 1, set, on: pool)
        step = try DecodeStep(.dense, cache, query: try operands.queries(sequences: 1), set, on: pool)
    }

    // The sequence exists and the pool has free pages, so nothing here can throw.

    func dropFork() {
        if let forked { try! cache.cache.free(forked) }
        forked = nil
    }

    func fork() { forked = try! cache.cache.fork(cache.sequences[0]) }

    func dropLastToken() {
        dropFork()
        try! cache.cache.truncate(cache.sequences[0], to: operands.context - 1)
    }

    func forkBeforeLastToken() {
        dropFork()
        forked = try! cache.cache.fork(cache.sequences[0], at: operands.context - 1)
    }

    /// Appends the last token, to the fork if there is one.
    func appendLastToken() {
        try! cache.append(
            tokens: operands.context - 1..<operands.context, of: operands.key, operands.value,
            to: forked ?? cache.sequences[0], on: pool)
    }

    /// The length of the sequence that was changed last.
    func lengthOfLast() throws -> Int { try cache.cache.length(of: forked ?? cache.sequences[0]) }
}
