import BenchmarkReport
import SparseKernels

/// Makes the rows of decoding on one instruction set.
struct DecodeRows {
    let set: InstructionSet
    let pool: WorkerPool
    /// The position of the dense row with which all others are compared.
    private let baseline = 0
    private let caches: ColdCaches

    init(set: InstructionSet, pool: WorkerPool) {
        (self.set, self.pool) = (set, pool)
        caches = ColdCaches(set, pool)
    }

    /// Adds the rows of a plan. Its dense row comes first, if it has one.
    func add(
        _ plan: DecodePlan, _ cache: DecodeCache, _ checker: DecodeChecker, _ query: Tensor<Float>,
        to variants: inout [Variant]
    ) throws {
        var dense: Int?
        for method in plan.methods {
            let step = try DecodeStep(method, cache, query: query, set, on: pool)
            step.run()
            let (choice, attention) = (step.choiceBytes, step.attentionBytes)
            switch method {
            case .dense:
                dense = variants.count
                add(
                    step, checker, op: "decode.step.dense", label: plan.label(method), bytes: attention, body: step.run,
                    to: &variants)
            case .twilight, .pages:
                let op = "decode.step.\(method.isTwilight ? "twilight" : "pages")"
                let choosing = variants.count
                variants.append(part(step.choose))
                // A step that reuses a selection.
                let attending = variants.count
                if !method.isTwilight { variants.append(part(step.attend)) }
                for interval in method.isTwilight ? [1] : DecodePlan.intervals {
                    let share = 1 / Double(interval)
                    add(
                        step, checker, op: op, label: plan.label(method, interval: method.isTwilight ? nil : interval),
                        bytes: share * choice + attention, body: interval == 1 ? step.run : nil, to: &variants)
                    let row = variants.count - 1
                    if interval > 1 { variants[row].mixture = [(attending, 1), (choosing, share)] }
                    variants[row].sampled[.scoringShare] = { share / $0.speedup(of: "\(choosing)", over: "\(row)") }
                    if let dense = dense ?? (plan.layout.format == .float16 ? baseline : nil) {
                        variants[row].sampled[.sameFormatSpeedup] = { $0.speedup(of: "\(row)", over: "\(dense)") }
                    }
                }
            }
        }
    }

    /// Adds one row. Without `body` its time must follow from other rows.
    func add(
        _ step: DecodeStep, _ checker: DecodeChecker, op: String, label: String, bytes: Double, body: (() -> Void)?,
        to variants: inout [Variant]
    ) {
        let operations = step.attentionOperations
        var variant = Variant(
            isa: set.name, threads: pool.threads, body: body,
            verify: {
                step.run()
                return try checker.check(step.output, selection: step.selection)
            },
            preparation: body == nil ? nil : caches.empty,
            baseline: variants.count == baseline ? nil : (baseline, DecodeCases.baselineName),
            roof: { [caches] in caches.rate(operations: operations, bytes: bytes) },
            amounts: .operations(operations))
        (variant.op, variant.label) = (op, label)
        let tokens = step.cache.sequences.count
        variant.tokensPerCall = tokens
        variant.metrics = [
            .density: step.keptTokens / Double(step.context), .bytesRead: bytes / Double(tokens),
            .bytesPerToken: step.cache.cache.configuration.bytesPerToken, .keptTokens: step.keptTokens,
        ]
        variants.append(variant)
    }

    /// A part of a step, which is timed for the rows that include it.
    private func part(_ body: @escaping () -> Void) -> Variant {
        Variant(
            isa: set.name, threads: pool.threads, body: body, isHidden: true, verify: { nil }, preparation: caches.empty)
    }
}

extension DecodeMethod {
    fileprivate var isTwilight: Bool {
        if case .twilight = self { true } else { false }
    }
}
