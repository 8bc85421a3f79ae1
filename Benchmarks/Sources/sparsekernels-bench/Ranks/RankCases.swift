import BenchmarkReport
import Communication
import SparseKernels

/// Several ranks on one machine: threads with a pool of one thread each, that exchange messages in memory. The numbers of ranks are the
/// thread counts above 1 of `--threads`; one core is the baseline.
struct RankCases: CaseFamily {
    let run: RunContext

    /// The name of the baseline of ranks.
    static let oneCore = "1 core"
    /// Heads of attention.
    static let (queryHeads, kvHeads, headDim) = (8, 2, 128)

    func section() -> Section {
        let groups =
            (isQuick ? [8192] : [16384, 32768]).compactMap(prefill)
            + (run.decodeContexts ?? [isQuick ? 32768 : 131_072]).compactMap(decode) + [overhead()] + messages()
        return Section(kind: .ranks, groups: groups, baselines: [Self.oneCore, "dense", "copy"])
    }

    /// The numbers of ranks above 1.
    var rankCounts: [Int] { Set(pools.map(\.threads)).filter { $0 > 1 }.sorted() }

    /// A pool of so many threads, for roofs.
    func pool(of ranks: Int) -> WorkerPool { pools.first { $0.threads == ranks } ?? WorkerPool(threads: ranks) }
}

/// What the ranks of a team have done in a call, for metrics.
struct RankTally {
    /// Of the rank that sent the most.
    var sentBytes = 0
    var expectedBytes = 0
    /// Means of the ranks.
    var computing = 0.0
    var waiting = 0.0
    var total = 0.0
}
