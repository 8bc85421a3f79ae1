import BenchmarkReport
import SparseKernels
import XAttention

/// XAttention from operands to output with every stage timed, beside dense causal attention of the same operands.
///
/// One dense call may take half a minute, so there are no rows for fewer threads.
struct PrefillCases: CaseFamily {
    let run: RunContext

    func section() -> Section {
        var groups: [CaseGroup] = []
        let names = ["lm-layer1-8192", "lm-layer3-8192", "lm-layer4-8192", "lm-layer3-32768"]
        for name in isQuick ? ["lm-layer3-8192"] : names {
            guard let path = DataFiles.capture(name), let capture = try? Capture(path: path) else { continue }
            groups.append(
                group(capture.name, configurations: isQuick ? [.init()] : Self.configurations, rounds: nil) { announce in
                    try PrefillProblem(capture, set: instructionSets[0], pool: pool, announce: announce)
                })
        }
        for length in run.isLong ? [65536, 131072] : [] {
            for headDim in [64, 128] { groups.append(structured(length, headDim: headDim)) }
        }
        return Section(kind: .prefill, groups: groups, baselines: [BenchmarkRow.denseBaseline])
    }

    private static let configurations: [PrefillProblem.Configuration] = [0.9, 0.95].flatMap { threshold in
        [ScoringPrecision.int6, .float32].map { .init(precision: $0, threshold: threshold) }
    }

    private static let stages = ["score", "select", "plan", "attend", "total"]

    private static func label(_ configuration: PrefillProblem.Configuration, _ stage: String) -> String {
        "S\(configuration.stride) τ\(configuration.threshold) \(configuration.precision.label) \(stage)"
    }

    private func structured(_ length: Int, headDim: Int) -> CaseGroup {
        group("structured-\(length) d \(headDim)", configurations: Self.configurations, rounds: 3) { announce in
            announce("making the operands")
            let input = try StructuredInput(tokens: length, headDim: headDim, seed: 1)
            return try PrefillProblem(input, set: instructionSets[0], pool: pool, announce: announce)
        }
    }

    private func group(
        _ name: String, configurations: [PrefillProblem.Configuration], rounds: Int?,
        _ makeProblem: @escaping ((String) -> Void) throws -> PrefillProblem
    ) -> CaseGroup {
        var group = CaseGroup(
            op: "prefill.xattention", name: name, amounts: .uncounted,
            labels: ["dense"] + configurations.flatMap { one in Self.stages.map { Self.label(one, $0) } },
            otherOps: ["prefill.dense", "prefill.score", "prefill.select", "prefill.plan", "prefill.attend"]
        ) { announce in
            let problem = try makeProblem(announce)
            announce("dense attention")
            let exact = try problem.densePlan(instructionSets[0])(
                query: problem.query, key: problem.key, value: problem.value, on: pool)
            var variants: [Variant] = []
            for set in instructionSets {
                let dense = variants.count
                variants.append(try problem.dense(set, pool, op: "prefill.dense").labelled("dense"))
                for configuration in configurations {
                    announce("checks of \(Self.label(configuration, set.name))")
                    variants += try stages(of: configuration, problem, exact, set).map { stage, variant in
                        variant.labelled(
                            Self.label(configuration, stage), baseline: (dense, BenchmarkRow.denseBaseline))
                    }
                }
            }
            return variants
        }
        group.rounds = rounds
        return group
    }

    private func stages(
        of configuration: PrefillProblem.Configuration, _ problem: PrefillProblem, _ exact: AttentionState,
        _ set: InstructionSet
    ) throws -> [(String, Variant)] {
        let prefill = try configuration.prefill(problem, set)
        let scores = try prefill.scores(query: problem.query, key: problem.key, on: pool)
        let mask = try prefill.mask(from: scores, on: pool)
        let plan = try BlockSparseAttention(problem.shape, mask: mask, modifiers: problem.modifiers, instructionSet: set)
        let state = try plan(query: problem.query, key: problem.key, value: problem.value, on: pool)
        let quality = try AttentionQuality(dense: exact, sparse: state, masses: problem.masses) { mask.density(head: $0) }
        let score = try problem.scores(configuration, set, pool, op: "prefill.score")
        let select = try problem.selection(configuration, scores, set, pool, op: "prefill.select")
        var planning = Variant.planning(problem.shape, mask, modifiers: problem.modifiers, set)
        planning.op = "prefill.plan"
        let checker = problem.checker(of: mask)
        var attend = problem.sparse(plan, checker: checker, set, pool, op: "prefill.attend")
        var total = try problem.endToEnd(configuration, plan, checker: checker, set, pool, op: "prefill.xattention")
        attend.metrics = quality.metrics.merging([.density: mask.density]) { $1 }
        total.metrics = attend.metrics
        return Array(zip(Self.stages, [score, select, planning, attend, total]))
    }
}
