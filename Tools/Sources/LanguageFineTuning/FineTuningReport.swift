public import SparseKernels
public import SparseKernelsFineTuning
import Terminal

/// What `finetune` says about a run.
public struct FineTuningReport: Codable, Hashable, Sendable {
    /// The means of steps of one kind.
    public struct Steps: Codable, Hashable, Sendable {
        public let count: Int
        public let seconds: TrainingSeconds

        /// nil without steps.
        init?(_ steps: [FineTuningCurve.Step]) {
            guard !steps.isEmpty else { return nil }
            count = steps.count
            var sum = TrainingSeconds()
            for step in steps { sum += step.seconds }
            seconds = sum
        }

        public var secondsPerStep: Double { seconds.total / Double(count) }
    }

    /// A measurement of the windows that are held out.
    public struct Measurement: Codable, Hashable, Sendable {
        public let step: Int
        /// Nats per token.
        public let loss: Double
        /// Seconds of the steps before it.
        public let seconds: Double
    }

    public let model: String
    public let settings: FineTuningConfiguration
    public let completedSteps: Int
    /// Nats per token of the windows that are held out, before the first step and at last.
    public let validationBefore: Double?
    public let validation: Double?
    public let measurements: [Measurement]
    /// Steps in which the context had all channels, and others.
    public let dense: Steps?
    public let sparse: Steps?
    /// Numbers that are trained.
    public let parameters: Int
    /// Bytes that the training holds beside the model.
    public let byteCount: Int

    public init(_ run: FineTuningRun) {
        model = run.trainer.model.name.split(separator: "/").last.map(String.init) ?? ""
        settings = run.trainer.configuration
        completedSteps = run.trainer.completedSteps
        (validationBefore, validation) = (run.curve.validations.first?.loss, run.curve.validations.last?.loss)
        measurements = run.curve.validations.map {
            Measurement(step: $0.step, loss: $0.loss, seconds: run.curve.seconds(ofSteps: $0.step))
        }
        dense = Steps(run.curve.steps.filter { !$0.isSparse })
        sparse = Steps(run.curve.steps.filter(\.isSparse))
        (parameters, byteCount) = (run.trainer.parameterCount, run.trainer.byteCount)
    }

    /// A paragraph for people, of a line for the run and one for each kind of steps.
    public var summary: String {
        var lines = [
            "\(completedSteps) of \(settings.steps) steps of \(settings.batch) × \(settings.length) tokens; \(parameters) numbers "
                + "trained, \(Format.number(Double(byteCount) / 1e6)) MB beside the model"
        ]
        if let validationBefore, let validation {
            let change = 100 * (validation / validationBefore - 1)
            lines.append(
                "held out: \(Format.number(validationBefore)) nats per token before, \(Format.number(validation)) after "
                    + "(\(change < 0 ? "−" : "+")\(Format.number(abs(change))) %)")
        }
        for (name, steps) in [("with all channels", dense), ("with chosen channels", sparse)] {
            guard let steps else { continue }
            let parts = steps.seconds.parts.filter { $0.seconds > 0 }.map {
                "\($0.name) \(Format.number(1000 * $0.seconds / Double(steps.count)))"
            }
            lines.append(
                "\(steps.count) steps \(name): \(Format.number(1000 * steps.secondsPerStep)) ms each (\(parts.joined(separator: ", ")))"
            )
        }
        if let dense, let sparse {
            lines.append(
                "a step with chosen channels is \(Format.number(dense.secondsPerStep / sparse.secondsPerStep)) times as fast")
        }
        return lines.joined(separator: "\n")
    }
}

/// The layers of adapters, as people write them: `q,k,v,o`.
public enum AdapterTargets {
    private static let names: [(name: String, target: AdapterTarget)] = [
        ("q", .query), ("k", .key), ("v", .value), ("o", .output),
    ]

    /// - Throws: `.invalidArgument` for a name that is not known, or none.
    public static func read(_ text: String) throws(SparseKernelsError) -> [AdapterTarget] {
        var targets: [AdapterTarget] = []
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            guard let target = names.first(where: { $0.name == part || $0.target.rawValue == part })?.target,
                !targets.contains(target)
            else {
                throw SparseKernelsError(
                    .invalidArgument, "targets", expected: "some of q, k, v, o, each of them once, with commas between",
                    actual: "\"\(text)\"")
            }
            targets.append(target)
        }
        return AdapterTarget.allCases.filter(targets.contains)
    }
}
