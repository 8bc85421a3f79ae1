import BenchmarkReport
import Communication
import SequenceParallel
import SparseKernels
import SparseKernelsReference
import SparseKernelsTraining

extension RankCases {
    /// The backward pass of causal attention over ranks, beside that of one core.
    func gradient(_ length: Int) -> CaseGroup? {
        let layouts = layouts(rankCounts[...])
        if layouts.isEmpty { return nil }
        let shape = try! AttentionShape(
            queryLength: length, keyLength: length, queryHeads: Self.queryHeads, kvHeads: Self.kvHeads, headDim: Self.headDim)
        let plan = try! AttentionGradient(shape, mask: .causal, instructionSet: instructionSet)
        return CaseGroup(
            op: "ranks.gradient", name: "\(length)",
            amounts: .operations(2 * 5 * Double(Self.headDim) * Double(plan.visiblePairs)),
            labels: [Self.oneCore] + layouts.map(\.label), rounds: 2
        ) { announce in
            announce("making \(length) tokens")
            let problem = try GradientTokens(plan)
            var variants = [
                Variant(
                    isa: instructionSet.name, threads: 1, body: { problem.runOneCore() }, verify: { nil },
                    roof: { [set = instructionSet] in roof(set, .serial) }, label: Self.oneCore)
            ]
            for layout in layouts {
                announce("starting \(layout.label)")
                variants.append(try variant(layout, problem))
            }
            return variants
        }
    }

    private func variant(_ layout: PrefillLayout, _ problem: GradientTokens) throws -> Variant {
        let (set, ranks) = (instructionSet, layout.ranks)
        let shards = try TokenShards.zigzag(
            length: problem.plan.shape.queryLength, ulysses: layout.ulysses, ring: ranks / layout.ulysses)
        let team = try RankTeam(ranks: ranks) { (communicator) throws(SparseKernelsError) in
            try GradientMember(problem, shards, ulysses: layout.ulysses, on: communicator)
        }
        let body = { try! team.call { (member) throws(SparseKernelsError) in try member.run() } }
        var variant = Variant(
            isa: set.name, threads: ranks, body: body,
            verify: {
                body()
                return try problem.check(team.members.compactMap(\.gradients), shards)
            }, baseline: (0, Self.oneCore), roof: { [pool = pool(of: ranks)] in roof(set, pool) }, label: layout.label)
        let pairs = team.members.map { Double($0.plan.visiblePairs) }
        variant.metrics[.workBalance] = pairs.max()! / (pairs.reduce(0, +) / Double(ranks))
        let most = { team.members.map(\.plan.statistics).max { $0.sentBytes < $1.sentBytes }! }
        variant.sampled = [
            .sentBytes: { _ in Double(most().sentBytes) },
            .sentRatio: { _ in Double(most().sentBytes) / Double(max(1, most().expectedSentBytes)) },
            .computingShare: { _ in
                let all = team.members.map(\.plan.statistics)
                return all.reduce(0) { $0 + $1.attentionSeconds } / all.reduce(0) { $0 + $1.seconds }
            },
        ]
        return variant
    }

    private func roof(_ set: InstructionSet, _ pool: WorkerPool) -> Double {
        MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero)
    }
}

/// The operands of all tokens.
private final class GradientTokens: Sendable {
    let plan: AttentionGradient
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>
    let outputGradient: Tensor<Float>
    let state: AttentionState

    init(_ plan: AttentionGradient) throws {
        let shape = plan.shape
        self.plan = plan
        query = try .normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 1)
        key = try .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 2)
        value = try .normal([shape.kvHeads, shape.keyLength, shape.valueDim], seed: 3)
        outputGradient = try .normal([shape.queryHeads, shape.queryLength, shape.valueDim], seed: 4)
        state = try DenseAttention(shape, mask: plan.mask, instructionSet: plan.instructionSet)(
            query: query, key: key, value: value)
    }

    func runOneCore() {
        _ = try! plan(query: query, key: key, value: value, state: state, outputGradient: outputGradient, on: .serial)
    }

    /// A few rows of all tokens, from those of the ranks.
    func check(_ parts: [SequenceParallelGradient.Gradients], _ shards: TokenShards) throws -> Verification {
        var all = (
            query: try Tensor<Float>(zeros: query.shape), key: try Tensor<Float>(zeros: key.shape),
            value: try Tensor<Float>(zeros: value.shape)
        )
        for (rank, part) in parts.enumerated() {
            let rows = shards.positions(of: rank)
            all.query.copyRows(from: part.query, sourceRow: { index, _ in index }, targetRow: { _, row in row }, rows: rows)
            all.key.copyRows(from: part.key, sourceRow: { index, _ in index }, targetRow: { _, row in row }, rows: rows)
            all.value.copyRows(from: part.value, sourceRow: { index, _ in index }, targetRow: { _, row in row }, rows: rows)
        }
        return try plan.check(query: query, key: key, value: value, state: state, outputGradient: outputGradient, all)
    }
}

/// A rank with its rows.
private final class GradientMember {
    let plan: SequenceParallelGradient
    private let query: Tensor<Float>
    private let key: Tensor<Float>
    private let value: Tensor<Float>
    private let outputGradient: Tensor<Float>
    private let state: AttentionState
    private(set) var gradients: SequenceParallelGradient.Gradients?
    private let pool = WorkerPool(threads: 1)

    init(
        _ problem: GradientTokens, _ shards: TokenShards, ulysses: Int, on ranks: LocalCommunicator
    ) throws(SparseKernelsError) {
        let shape = problem.plan.shape
        plan = try SequenceParallelGradient(
            shards, queryHeads: shape.queryHeads, kvHeads: shape.kvHeads, headDim: shape.headDim, mask: problem.plan.mask,
            ulysses: ulysses, instructionSet: problem.plan.instructionSet, on: ranks)
        let rows = shards.positions(of: ranks.rank)
        func own(_ all: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
            var part = try Tensor<Float>(zeros: [all.shape[0], rows.count, all.shape[2]])
            part.copyRows(from: all, sourceRow: { _, row in row }, targetRow: { index, _ in index }, rows: rows)
            return part
        }
        query = try own(problem.query)
        key = try own(problem.key)
        value = try own(problem.value)
        outputGradient = try own(problem.outputGradient)
        let logs = problem.state.logSumExp
        state = try AttentionState(
            output: own(problem.state.output),
            logSumExp: Tensor([shape.queryHeads, rows.count]) { logs[$0 / rows.count, rows[$0 % rows.count]] })
    }

    func run() throws(SparseKernelsError) {
        gradients = try plan(
            query: query, key: key, value: value, state: state, outputGradient: outputGradient, on: pool)
    }
}
