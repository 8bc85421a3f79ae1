import BenchmarkReport
import Communication
import SequenceParallel
import SparseKernels
import SparseKernelsReference

extension RankCases {
    /// Attention of one new token over a cache whose pages are spread over the ranks, beside one core that has all pages. 32 query
    /// heads, 8 key/value heads, 128 channels, 16 bits.
    ///
    /// Caches are empty before each call, as in ``DecodeCases``. The roof is the bandwidth of as many threads as there are ranks.
    func decode(_ context: Int) -> CaseGroup? {
        let counts = rankCounts
        if counts.isEmpty { return nil }
        return CaseGroup(
            op: "ranks.decode", name: "\(context)", amounts: .uncounted, labels: ["1 core"] + counts.map { "\($0) ranks" }
        ) { announce in
            let operands = try run.decodeOperands(context: context, announce)
            let query = try operands.queries(sequences: 1)
            announce("filling a cache")
            let cache = try DecodeCache(CacheLayout(), operands, sequences: 1, instructionSet, on: pool)
            let step = try DecodeStep(.dense, cache, query: query, instructionSet, on: .serial)
            let checker = try DecodeChecker(cache, query: query)
            step.run()
            let (operations, bytes) = (step.attentionOperations, step.attentionBytes)
            func variant(
                _ label: String, threads: Int, body: @escaping () -> Void, output: @escaping () -> Tensor<Float>
            ) -> Variant {
                let caches = ColdCaches(instructionSet, pool(of: threads))
                return Variant(
                    isa: instructionSet.name, threads: threads, body: body,
                    verify: {
                        body()
                        return try checker.check(output(), selection: nil)
                    }, preparation: caches.empty, baseline: threads > 1 ? (0, Self.oneCore) : nil,
                    roof: { caches.rate(operations: operations, bytes: bytes) }, label: label,
                    amounts: .operations(operations), metrics: [.bytesRead: bytes])
            }
            var variants = [variant("1 core", threads: 1, body: step.run) { step.output }]
            for ranks in counts {
                announce("filling \(ranks) caches")
                let (set, key, value) = (instructionSet, operands.key, operands.value)
                let team = try RankTeam(ranks: ranks) { (communicator) throws(SparseKernelsError) in
                    try DecodeMember(key: key, value: value, query: query, set, on: communicator)
                }
                var row = variant(
                    "\(ranks) ranks", threads: ranks,
                    body: { try! team.call { (member) throws(SparseKernelsError) in try member.step() } },
                    output: { team.members[ranks - 1].output })
                let costs = SequenceParallelCosts(
                    queryHeads: DecodeOperands.queryHeads, kvHeads: DecodeOperands.kvHeads, headDim: DecodeOperands.headDim)
                let sent = { Double(team.members.map(\.sentBytesPerCall).max()!) }
                let index = variants.count
                row.sampled = [
                    .parallelEfficiency: { $0.speedup(of: "\(index)", over: "0") / Double(ranks) },
                    .sentBytes: { _ in sent() },
                    .sentRatio: { _ in sent() / Double(costs.decodeBytes(ranks: ranks)) },
                    .computingShare: { _ in team.members.map(\.computingShare).reduce(0, +) / Double(ranks) },
                ]
                variants.append(row)
            }
            return variants
        }
    }
}

/// A rank with its pages.
private final class DecodeMember {
    private let cache: ShardedKVCache
    private let attention: ShardedPagedAttention
    private let sequence: ShardedKVCache.SequenceID
    private let query: Tensor<Float>
    private(set) var output: Tensor<Float>
    private let pool = WorkerPool(threads: 1)

    init(
        key: Tensor<Float>, value: Tensor<Float>, query: Tensor<Float>, _ set: InstructionSet, on ranks: LocalCommunicator
    ) throws(SparseKernelsError) {
        let layout = CacheLayout()
        let shards = try TokenShards.contiguous(length: key.shape[1], ranks: ranks.count, alignment: layout.pageSize)
        let configuration = try KVCacheConfiguration(
            kvHeads: key.shape[0], headDim: key.shape[2], pageSize: layout.pageSize,
            pageCapacity: shards.largestCount / layout.pageSize + 2, format: layout.format)
        cache = try ShardedKVCache(configuration, on: ranks, instructionSet: set)
        attention = try ShardedPagedAttention(
            queryHeads: query.shape[0], configuration: configuration, on: ranks, instructionSet: set)
        sequence = cache.makeSequence()
        let own = shards.ranges[ranks.rank].first ?? 0..<0
        try cache.append(
            key: key.view(named: "key").tokens(own), value: value.view(named: "value").tokens(own), to: sequence,
            shards: shards, on: pool)
        self.query = query
        output = try Tensor(zeros: query.shape)
    }

    func step() throws(SparseKernelsError) {
        try attention.run(query: query, cache: cache, sequences: [sequence], into: &output, on: pool)
    }

    var sentBytesPerCall: Int { attention.statistics.sentBytes / max(1, attention.statistics.calls) }

    /// The part of the time of all calls in which it attended and merged.
    var computingShare: Double {
        let statistics = attention.statistics
        let computing = statistics.attentionSeconds + statistics.mergeSeconds
        return computing / (computing + statistics.exchangeSeconds)
    }
}
