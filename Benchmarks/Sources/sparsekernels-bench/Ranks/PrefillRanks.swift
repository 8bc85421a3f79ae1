import BenchmarkReport
import Communication
import SequenceParallel
import SparseKernels
import SparseKernelsReference

extension RankCases {
    /// Causal attention of a prompt: the ring, Ulysses and both, beside dense attention on one core.
    ///
    /// The longer prompt is run on the most ranks only, because one core takes twenty seconds for it.
    func prefill(_ length: Int) -> CaseGroup? {
        let counts = length > 16384 ? rankCounts.suffix(1) : rankCounts[...]
        let layouts = layouts(counts)
        if layouts.isEmpty { return nil }
        let shape = try! AttentionShape(
            queryLength: length, keyLength: length, queryHeads: Self.queryHeads, kvHeads: Self.kvHeads, headDim: Self.headDim)
        let plan = try! DenseAttention(shape, mask: .causal, instructionSet: instructionSet)
        return CaseGroup(
            op: "ranks.prefill", name: "\(length)",
            amounts: .operations(2 * Double(2 * Self.headDim) * Double(plan.visiblePairs)),
            labels: ["dense"] + layouts.map(\.label), rounds: 2
        ) { announce in
            announce("making \(length) tokens")
            let problem = try PrefillTokens(shape)
            let output = AttentionOutput(shape)
            let (query, key, value) = (problem.query, problem.key, problem.value)
            var variants = [
                Variant(
                    isa: instructionSet.name, threads: 1, body: { output.compute(plan, query, key, value, on: .serial) },
                    verify: { nil }, roof: { [set = instructionSet] in multiplyAddRoof(set, .serial) }, label: "dense")
            ]
            for layout in layouts {
                variants.append(try variant(layout, problem, row: variants.count, announce))
            }
            return variants
        }
    }

    /// The ring, Ulysses, and what is between them.
    func layouts(_ counts: ArraySlice<Int>) -> [PrefillLayout] {
        counts.flatMap { ranks in
            (0...10).map { 1 << $0 }.filter { ulysses in
                ranks % ulysses == 0 && costs.allows(ulysses: ulysses)
                    // Of the groups between the ring and Ulysses, those that copy no key/value head.
                    && (ulysses == 1 || ulysses == min(ranks, Self.queryHeads) || ulysses == Self.kvHeads)
            }.map { PrefillLayout(ranks: ranks, ulysses: $0) }
        }
    }

    private var costs: SequenceParallelCosts {
        SequenceParallelCosts(queryHeads: Self.queryHeads, kvHeads: Self.kvHeads, headDim: Self.headDim)
    }

    private func variant(
        _ layout: PrefillLayout, _ problem: PrefillTokens, row: Int, _ announce: (String) -> Void
    ) throws -> Variant {
        announce("starting \(layout.label)")
        let (set, ranks) = (instructionSet, layout.ranks)
        let shards = try TokenShards.zigzag(length: problem.length, ulysses: layout.ulysses, ring: ranks / layout.ulysses)
        let team = try RankTeam(ranks: ranks) { (communicator) throws(SparseKernelsError) in
            try PrefillMember(problem, shards, ulysses: layout.ulysses, set, on: communicator)
        }
        let body = { try! team.call { (member) throws(SparseKernelsError) in try member.run() } }
        var variant = Variant(
            isa: set.name, threads: ranks, body: body,
            verify: {
                body()
                return try problem.checker.check(try problem.gathered(team.members.map(\.output), shards))
            }, baseline: (0, Self.oneCore), roof: { [pool = pool(of: ranks)] in multiplyAddRoof(set, pool) },
            label: layout.label)
        let pairs = team.members.map { Double($0.attention.visiblePairs) }
        variant.metrics[.workBalance] = pairs.max()! / (pairs.reduce(0, +) / Double(ranks))
        let tally = { PrefillMember.tally(team.members) }
        variant.sampled = [
            .parallelEfficiency: { $0.speedup(of: "\(row)", over: "0") / Double(ranks) },
            .sentBytes: { _ in Double(tally().sentBytes) },
            .sentRatio: { _ in Double(tally().sentBytes) / Double(max(1, tally().expectedBytes)) },
            .computingShare: { _ in tally().computing / tally().total },
        ]
        if layout.ulysses < ranks {
            variant.sampled[.hiddenShare] = { _ in
                // The last call was timed. Another one waits for every transfer before it computes.
                let waited = tally().waiting
                try! team.call { (member) throws(SparseKernelsError) in try member.runWithoutOverlap() }
                let all = tally().waiting
                return all > 0 ? max(0, 1 - waited / all) : 1
            }
        }
        return variant
    }

    private func multiplyAddRoof(_ set: InstructionSet, _ pool: WorkerPool) -> Double {
        MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero)
    }
}

/// An arrangement of ranks.
struct PrefillLayout {
    let ranks: Int
    let ulysses: Int

    /// "16 ranks, 2 × 8".
    var label: String {
        let name =
            ulysses == 1 ? "zigzag ring" : ulysses == ranks ? "Ulysses" : "\(ulysses) × \(ranks / ulysses)"
        return "\(ranks) ranks, \(name)"
    }
}

/// The operands of the whole prompt.
private final class PrefillTokens: Sendable {
    let length: Int
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>
    let shape: AttentionShape

    init(_ shape: AttentionShape) throws {
        self.shape = shape
        length = shape.queryLength
        query = try .normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 1)
        key = try .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 2)
        value = try .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 3)
    }

    var checker: AttentionChecker<Float> {
        AttentionChecker(reference: ReferenceAttention(shape, mask: .causal), query: query, key: key, value: value)
    }

    /// The rows of the whole prompt, from those of the ranks.
    func gathered(_ parts: [Tensor<Float>], _ shards: TokenShards) throws -> Tensor<Float> {
        var all = try Tensor<Float>(zeros: query.shape)
        for (rank, part) in parts.enumerated() {
            all.copyRows(
                from: part, sourceRow: { index, _ in index }, targetRow: { _, row in row }, rows: shards.positions(of: rank))
        }
        return all
    }
}

/// A rank with its rows.
private final class PrefillMember {
    let attention: SequenceParallelAttention
    private let waiting: SequenceParallelAttention
    private let query: Tensor<Float>
    private let key: Tensor<Float>
    private let value: Tensor<Float>
    private(set) var output: Tensor<Float>
    private var statistics = SequenceParallelStatistics()
    private let pool = WorkerPool(threads: 1)

    init(
        _ problem: PrefillTokens, _ shards: TokenShards, ulysses: Int, _ set: InstructionSet, on ranks: LocalCommunicator
    ) throws(SparseKernelsError) {
        func plan(overlaps: Bool) throws(SparseKernelsError) -> SequenceParallelAttention {
            try SequenceParallelAttention(
                shards, queryHeads: problem.shape.queryHeads, kvHeads: problem.shape.kvHeads, headDim: problem.shape.headDim,
                mask: .causal, ulysses: ulysses, overlaps: overlaps, instructionSet: set, on: ranks)
        }
        attention = try plan(overlaps: true)
        waiting = try plan(overlaps: false)
        let rows = shards.positions(of: ranks.rank)
        func own(_ all: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
            var part = try Tensor<Float>(zeros: [all.shape[0], rows.count, all.shape[2]])
            part.copyRows(from: all, sourceRow: { _, row in row }, targetRow: { index, _ in index }, rows: rows)
            return part
        }
        query = try own(problem.query)
        key = try own(problem.key)
        value = try own(problem.value)
        output = try Tensor(zeros: query.shape)
    }

    func run() throws(SparseKernelsError) { try run(attention) }

    func runWithoutOverlap() throws(SparseKernelsError) { try run(waiting) }

    private func run(_ plan: SequenceParallelAttention) throws(SparseKernelsError) {
        try Self.run(plan, query, key, value, into: &output, on: pool)
        statistics = plan.statistics
    }

    /// A view of a variable property is an error; one of a parameter is not.
    private static func run(
        _ plan: SequenceParallelAttention, _ query: Tensor<Float>, _ key: Tensor<Float>, _ value: Tensor<Float>,
        into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try plan.run(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            output: output.mutableView(named: "output"), on: pool)
    }

    static func tally(_ members: [PrefillMember]) -> RankTally {
        var tally = RankTally()
        let count = Double(members.count)
        for member in members {
            let one = member.statistics
            if one.sentBytes >= tally.sentBytes {
                (tally.sentBytes, tally.expectedBytes) = (one.sentBytes, one.expectedSentBytes)
            }
            tally.computing += one.attentionSeconds / count
            tally.waiting += one.waitingSeconds / count
            tally.total += one.seconds / count
        }
        return tally
    }
}

extension Tensor<Float> {
    /// Copies rows of all heads from a tensor with as many heads and channels.
    ///
    /// - Parameters:
    ///   - source, sourceRow, targetRow: the rows of either for the index of a row in the list and the row.
    mutating func copyRows(
        from source: Tensor<Float>, sourceRow: (Int, Int) -> Int, targetRow: (Int, Int) -> Int, rows: [Int]
    ) {
        let (heads, channels) = (shape[0], shape[2])
        let (tokens, sourceTokens) = (shape[1], source.shape[1])
        var target = mutableSpan
        target.withUnsafeMutableBufferPointer { target in
            source.span.withUnsafeBufferPointer { source in
                if rows.isEmpty { return }
                for head in 0..<heads {
                    for (index, row) in rows.enumerated() {
                        (target.baseAddress! + (head * tokens + targetRow(index, row)) * channels).update(
                            from: source.baseAddress! + (head * sourceTokens + sourceRow(index, row)) * channels,
                            count: channels)
                    }
                }
            }
        }
    }
}
