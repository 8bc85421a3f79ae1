import BenchmarkReport
import SparseKernels
import XAttention

/// The cost of estimating every block's attention mass and of selecting blocks, beside dense attention of the same capture.
struct ScoringCases: CaseFamily {
    let run: RunContext

    func section() -> Section {
        var groups: [CaseGroup] = []
        for name in isQuick ? ["lm-layer3-8192"] : ["lm-layer3-8192", "lm-layer3-32768"] {
            guard let path = DataFiles.capture(name), let capture = try? Capture(path: path) else { continue }
            groups.append(group(capture, pools: isQuick ? [pool] : pools))
        }
        return Section(kind: .scoring, groups: groups, baselines: [BenchmarkRow.denseBaseline])
    }

    private static let configurations: [PrefillProblem.Configuration] = [
        .init(stride: 16, precision: .int6), .init(stride: 16, precision: .float32), .init(stride: 8, precision: .int6),
        .init(stride: 8, precision: .float32), .init(stride: 1, precision: .float32),
    ]

    private static func label(_ configuration: PrefillProblem.Configuration) -> String {
        configuration.stride == 1 ? "exact mass" : "S\(configuration.stride) \(configuration.precision.label)"
    }

    private func group(_ capture: Capture, pools: [WorkerPool]) -> CaseGroup {
        let selection = PrefillProblem.Configuration()
        let selectionLabel = "top-p \(selection.threshold)"
        return CaseGroup(
            op: "scoring.antidiagonal", name: capture.name, amounts: .uncounted,
            labels: ["dense", selectionLabel] + Self.configurations.map(Self.label),
            otherOps: ["scoring.mass", "scoring.selection", "scoring.dense"]
        ) { announce in
            let problem = try PrefillProblem(capture, set: instructionSets[0], pool: pools.last!, announce: announce)
            var variants: [Variant] = []
            for set in instructionSets {
                for pool in pools {
                    let dense = (index: variants.count, name: BenchmarkRow.denseBaseline)
                    variants.append(try problem.dense(set, pool, op: "scoring.dense").labelled("dense"))
                    for configuration in Self.configurations {
                        let op = configuration.stride == 1 ? "scoring.mass" : "scoring.antidiagonal"
                        variants.append(
                            try problem.scores(configuration, set, pool, op: op)
                                .labelled(Self.label(configuration), baseline: dense))
                    }
                    let scores = try selection.prefill(problem, set).scores(query: problem.query, key: problem.key, on: pool)
                    variants.append(
                        try problem.selection(selection, scores, set, pool, op: "scoring.selection")
                            .labelled(selectionLabel, baseline: dense))
                }
            }
            return variants
        }
    }
}

extension Variant {
    func labelled(_ label: String, baseline: (index: Int, name: String)? = nil) -> Variant {
        var variant = self
        variant.label = label
        variant.baseline = baseline
        return variant
    }
}

extension ScoringPrecision {
    /// The label in names of cases, like the element types there.
    var label: String { self == .float32 ? "f32" : rawValue }
}
