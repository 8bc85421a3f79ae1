/// The distance that an ALiBi slope multiplies, where j is the key and t the position of the query on the key axis.
public enum AliBiForm: String, Hashable, Sendable, CaseIterable {
    /// j − t: keys before the query lose slope·distance, keys after it gain as much. This is the form of causal attention.
    case signed
    /// −|j − t|: keys on both sides lose slope·distance, as in FlashAttention and in bidirectional encoders.
    case symmetric
}

/// How scores become probabilities, beyond the softmax itself. The defaults are plain attention.
///
/// A score is `softmaxScale`·q·k; then `logitsSoftCap`·tanh(score/`logitsSoftCap`); then the ALiBi term, slope·(j − position of
/// the query) or −slope·|j − position|; then the bias given to `run`.
public struct ScoreModifiers: Hashable, Sendable {
    /// Factor on q·k; nil means 1/√headDim.
    public var softmaxScale: Float?
    /// Bound of the scores; nil is off.
    public var logitsSoftCap: Float?
    /// One ALiBi slope per query head; nil is off.
    public var aliBiSlopes: [Float]?
    /// The distance that the slopes multiply. Under a causal limit both forms are the same.
    public var aliBiForm: AliBiForm
    /// One learned logit per query head that takes part in the softmax and has no value: the sum of exponentials of a row gets
    /// e^`sinkLogits[head]`, and so does its log-sum-exp. It is neither scaled nor capped; −∞ is none, and nil is none at all.
    ///
    /// A row that sees no key has output 0 and the sink's logit as LSE. States of parts of the keys are merged right only if one
    /// of them has the sinks.
    ///
    /// Source: the `sinks` of gpt-oss (OpenAI, 2025); "softmax off by one" with a learned offset.
    public var sinkLogits: [Float]?

    public init(
        softmaxScale: Float? = nil, logitsSoftCap: Float? = nil, aliBiSlopes: [Float]? = nil, aliBiForm: AliBiForm = .signed,
        sinkLogits: [Float]? = nil
    ) {
        self.softmaxScale = softmaxScale
        self.logitsSoftCap = logitsSoftCap
        self.aliBiSlopes = aliBiSlopes
        self.aliBiForm = aliBiForm
        self.sinkLogits = sinkLogits
    }

    package func validate(queryHeads: Int) throws(SparseKernelsError) {
        if let scale = softmaxScale {
            try require(scale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(scale)")
        }
        if let cap = logitsSoftCap {
            try require(
                cap.isFinite && cap > 0, .invalidArgument, "logitsSoftCap", expected: "finite and positive", actual: "\(cap)")
        }
        if let slopes = aliBiSlopes {
            try require(
                slopes.count == queryHeads, .invalidShape, "aliBiSlopes", expected: "one per query head (\(queryHeads))",
                actual: "\(slopes.count)")
            for (head, slope) in slopes.enumerated() {
                try require(
                    slope.isFinite, .invalidArgument, "aliBiSlopes[\(head)]", expected: "finite", actual: "\(slope)")
            }
        }
        if let sinks = sinkLogits {
            try require(
                sinks.count == queryHeads, .invalidShape, "sinkLogits", expected: "one per query head (\(queryHeads))",
                actual: "\(sinks.count)")
            for (head, sink) in sinks.enumerated() {
                try require(
                    sink < .infinity, .invalidArgument, "sinkLogits[\(head)]", expected: "finite, or −∞ for none",
                    actual: "\(sink)")
            }
        }
    }
}
