/// What a run has measured, step by step.
public struct FineTuningCurve: Hashable, Sendable, Codable {
    /// A step of the training.
    public struct Step: Hashable, Sendable, Codable {
        /// Nats per token that counts, before the step.
        public var loss: Double
        public var gradientNorm: Double
        public var learningRate: Double
        /// Whether the context left channels out.
        public var isSparse: Bool
        public var seconds: TrainingSeconds

        public init(loss: Double, gradientNorm: Double, learningRate: Double, isSparse: Bool, seconds: TrainingSeconds) {
            (self.loss, self.gradientNorm, self.learningRate) = (loss, gradientNorm, learningRate)
            (self.isSparse, self.seconds) = (isSparse, seconds)
        }
    }

    /// A measurement of the windows that are held out.
    public struct Validation: Hashable, Sendable, Codable {
        /// Steps that were done before it.
        public var step: Int
        /// Nats per token that counts.
        public var loss: Double

        public init(step: Int, loss: Double) { (self.step, self.loss) = (step, loss) }
    }

    public var steps: [Step] = []
    public var validations: [Validation] = []

    public init() {}

    /// Seconds of the first `count` steps, without validations and files.
    public func seconds(ofSteps count: Int) -> Double { steps.prefix(count).reduce(0) { $0 + $1.seconds.total } }

    /// Seconds of all steps by parts.
    public var seconds: TrainingSeconds {
        var sum = TrainingSeconds()
        for step in steps { sum += step.seconds }
        return sum
    }

    /// A table with a header: a line per step, and the loss of the windows that are held out where it was measured after the step.
    public var csv: String {
        let measured = Dictionary(validations.map { ($0.step, $0.loss) }) { _, last in last }
        var text = "step,loss,validation_loss,gradient_norm,learning_rate,sparse,seconds\n"
        if let start = measured[0] { text += "0,,\(start),,,,\n" }
        for (index, step) in steps.enumerated() {
            let validation = measured[index + 1].map { "\($0)" } ?? ""
            text +=
                "\(index + 1),\(step.loss),\(validation),\(step.gradientNorm),\(step.learningRate),\(step.isSparse ? 1 : 0),"
                + "\(step.seconds.total)\n"
        }
        return text
    }

    /// The same without times, which differ from run to run.
    public var withoutTimes: FineTuningCurve {
        var curve = self
        for index in curve.steps.indices { curve.steps[index].seconds = TrainingSeconds() }
        return curve
    }
}
