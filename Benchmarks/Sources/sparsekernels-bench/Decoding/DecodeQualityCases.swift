import BenchmarkReport
import SparseKernels

/// The accuracy of page and token selection on captured operands, with the last 32 tokens as steps of decoding.
///
/// Recall is the softmax mass of the attended tokens, from the captured keys in double precision. The output error is relative
/// to dense attention of the captured keys and values, so it includes the error of the format. Twilight's rows also show how
/// many tokens a fixed budget of the same pages needs for the same recall.
struct DecodeQualityCases: CaseFamily {
    let run: RunContext

    private static let steps = 32
    private static let budgets = [512, 1024, 2048, 4096, 8192]
    private static let candidates = 8192

    /// One row.
    private struct Trial {
        var layout: CacheLayout
        var method: DecodeMethod
        var sharing = SelectionSharing.kvHead
        var remark = ""

        var label: String { "\(layout.format.label) \(method.label)\(remark)" }
    }

    func section() -> Section {
        var groups: [CaseGroup] = []
        for name in isQuick ? [] : ["lm-layer1-8192", "lm-layer3-8192", "lm-layer4-8192", "lm-layer3-32768"] {
            guard let path = DataFiles.capture(name), let capture = try? Capture(path: path) else { continue }
            groups.append(group(capture))
        }
        return Section(kind: .decodeQuality, groups: groups, baselines: [])
    }

    private func group(_ capture: Capture) -> CaseGroup {
        let trials = Self.trials(context: capture.shape.keyLength)
        return CaseGroup(
            op: "decode.quality", name: capture.name, amounts: .uncounted, labels: trials.map(\.label)
        ) { announce in
            announce("exact attention")
            let problem = try DecodeQualityProblem(capture, steps: Self.steps)
            var caches: [CacheLayout: (DecodeCache, DecodeChecker)] = [:]
            return try trials.map { trial in
                announce(trial.label)
                if caches[trial.layout] == nil {
                    let cache = try problem.cache(trial.layout, instructionSet, on: pool)
                    let checker = try DecodeChecker(
                        cache, query: problem.query, softmaxScale: capture.modifiers.softmaxScale)
                    caches[trial.layout] = (cache, checker)
                }
                let (cache, checker) = caches[trial.layout]!
                return try row(trial, problem, cache, checker)
            }
        }
    }

    /// Rules and budgets with the usual metadata and one list per KV head; then the same with a list per query head, with
    /// means, and with keys and values in codes.
    private static func trials(context: Int) -> [Trial] {
        let budgets = budgets.filter { $0 < context }
        let quest = CacheLayout(pageSize: 16, metadata: DecodeCases.metadata, keepsEstimates: true)
        let lServe = CacheLayout(metadata: DecodeCases.metadata)
        var trials: [Trial] = []
        for (rule, layout) in [(PageRule.quest, quest), (.lServe, lServe)] {
            var mean = layout
            mean.metadata = PageMetadata(.mean, logicalPageSize: 16, format: .float16)
            trials += budgets.map { Trial(layout: layout, method: .pages(rule, budget: $0)) }
            trials += budgets.map {
                Trial(layout: layout, method: .pages(rule, budget: $0), sharing: .queryHead, remark: " per query head")
            }
            trials += budgets.map { Trial(layout: mean, method: .pages(rule, budget: $0), remark: " mean") }
        }
        for format in [KVFormat.int8, .int4] {
            var coded = lServe
            coded.format = format
            trials.append(Trial(layout: coded, method: .dense))
            trials += budgets.map { Trial(layout: coded, method: .pages(.lServe, budget: $0)) }
        }
        // The default of the released configuration, and the suggestion of the paper.
        for candidates in Set([min(candidates, context), context / 4]).sorted(by: >) {
            trials += [0.8, 0.85, 0.9, 0.95].map {
                Trial(layout: quest, method: .twilight(topP: $0, candidates: candidates), remark: " of \(candidates)")
            }
        }
        return trials
    }

    private func row(
        _ trial: Trial, _ problem: DecodeQualityProblem, _ cache: DecodeCache, _ checker: DecodeChecker
    ) throws -> Variant {
        func step(_ method: DecodeMethod) throws -> DecodeStep {
            try DecodeStep(
                method, cache, query: problem.query, softmaxScale: problem.capture.modifiers.softmaxScale,
                sharing: trial.sharing, instructionSet, on: pool)
        }
        let tried = try step(trial.method)
        tried.run()
        let recall = problem.recall(of: tried.selection)
        var variant = Variant(
            isa: instructionSet.name, threads: pool.threads,
            verify: { try checker.check(tried.output, selection: tried.selection) })
        variant.label = trial.label
        variant.metrics = [
            .density: tried.keptTokens / Double(problem.context), .recall: recall,
            .oracleDensity: problem.curve.density(reaching: recall), .outputError: problem.outputError(of: tried.output),
            .bytesPerToken: cache.cache.configuration.bytesPerToken, .keptTokens: tried.keptTokens,
        ]
        if case .twilight = trial.method {
            let least = try SelectionRecall.leastBudget(
                reaching: recall, step: trial.layout.pageSize, limit: problem.context
            ) { budget in
                let fixed = try step(.pages(.quest, budget: budget))
                fixed.choose()
                return problem.recall(of: fixed.selection)
            }
            variant.metrics[.budgetTokens] = try least.map { budget in
                // This is not the budget itself, because some pages are always kept.
                let fixed = try step(.pages(.quest, budget: budget))
                fixed.choose()
                return fixed.keptTokens
            }
        }
        return variant
    }
}
