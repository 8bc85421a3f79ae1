public import SparseKernels

/// Which layers of a model are sparse while it is fine-tuned, how much, and when.
///
/// ```swift
/// let configuration = SparseLoRAConfiguration.llama3Math10K
/// configuration.layers[14].mlp          // 0.99
/// configuration.isSparse(step: 40, of: 1000)  // false: the first 5% are dense
/// ```
///
/// - Source: Khaki et al., "SparseLoRA" (arXiv 2506.16500).
public struct SparseLoRAConfiguration: Hashable, Sendable {
    /// What the formulas of the paper say, or what the released code does where both differ. See `Docs/Papers/SparseLoRA.md`.
    public enum Mode: String, Hashable, Sendable, CaseIterable {
        /// Frozen projections pass gradients for all tokens, and channels of grouped-query attention are matched by heads.
        case intended
        /// Frozen projections of attention pass no gradient for sparse tokens, channels of grouped queries are numbered as in the released
        /// code, and biases are left out.
        case released
    }

    /// The sparsities of a layer: the share of channels that context tokens leave out. nil means dense.
    public struct Layer: Hashable, Sendable {
        public var mlp: Double?
        public var attention: Double?

        public init(mlp: Double? = nil, attention: Double? = nil) {
            self.mlp = mlp
            self.attention = attention
        }
    }

    public var mode: Mode
    /// The first sparse step: a fraction of all steps up to 1, and a number of steps above.
    public var start: Double
    /// The first step after the sparse ones, in the same units.
    public var end: Double
    /// Whether estimators of feed-forward layers see the mean token of each sequence instead of all tokens, which is the released default.
    public var averagesSequences: Bool
    /// Whether tokens with a loss are dense.
    public var outputTokensAreDense: Bool
    /// Rank of the estimators.
    public var estimatorRank: Int
    public var layers: [Layer]

    /// - Parameters:
    ///   - layers: sparsities, from the first layer on.
    ///   - mode: what the paper means, or what its code does.
    ///   - start: the first sparse step.
    ///   - end: the first step after the sparse ones.
    ///   - averagesSequences: whether estimators of feed-forward layers see mean tokens.
    ///   - outputTokensAreDense: whether tokens with a loss are dense.
    ///   - estimatorRank: rank of the estimators.
    public init(
        layers: [Layer], mode: Mode = .intended, start: Double = 0.05, end: Double = 1, averagesSequences: Bool = true,
        outputTokensAreDense: Bool = true, estimatorRank: Int = 8
    ) {
        self.layers = layers
        self.mode = mode
        self.start = start
        self.end = end
        self.averagesSequences = averagesSequences
        self.outputTokensAreDense = outputTokensAreDense
        self.estimatorRank = estimatorRank
    }

    /// The tokens that estimators of feed-forward layers see.
    public var estimatedTokens: MLPEstimator.Tokens { averagesSequences ? .sequenceMeans : .all }

    /// Whether a step is sparse. Steps count from 0.
    public func isSparse(step: Int, of total: Int) -> Bool {
        func position(_ bound: Double) -> Double { bound <= 1 ? bound * Double(total) : bound }
        return position(start) <= Double(step) && Double(step) < position(end)
    }

    /// Throws `.invalidArgument`, naming the property, unless all numbers are in their domains and, if it is given, a model has as many layers.
    public func validate(layerCount: Int? = nil) throws(SparseKernelsError) {
        for (name, value) in [("start", start), ("end", end)] {
            try require(
                value >= 0 && value.isFinite, .invalidArgument, name, expected: "a fraction or number of steps, 0 or more",
                actual: "\(value)")
        }
        try require(
            estimatorRank >= 1, .invalidArgument, "estimatorRank", expected: "at least 1", actual: "\(estimatorRank)")
        if let layerCount {
            try require(
                layers.count == layerCount, .invalidArgument, "layers", expected: "the \(layerCount) layers of the model",
                actual: "\(layers.count)")
        }
        for (index, layer) in layers.enumerated() {
            for (name, value) in [("mlp", layer.mlp), ("attention", layer.attention)] {
                guard let value else { continue }
                try require(
                    value >= 0 && value < 1, .invalidArgument, "layers[\(index)].\(name)", expected: "a sparsity in [0, 1)",
                    actual: "\(value)")
            }
        }
    }
}

// MARK: - Presets

extension SparseLoRAConfiguration {
    /// LLaMA 3 8B on Math10K: feed-forward layers 3–30 at 99%, attention at 75%.
    public static let llama3Math10K = recipe(32, mlp: [(3...30, 0.99)], attention: (later, 0.75))
    /// LLaMA 3 8B on CSR170K: feed-forward layers 17–30 at 97%, attention at 20%.
    public static let llama3CSR170K = recipe(32, mlp: [(17...30, 0.97)], attention: (latest, 0.2))
    /// LLaMA 3 8B on GLUE: feed-forward layers 17–30 at 95% and 31 at 50%, attention 17–29 at 75%, for all tokens.
    public static let llama3GLUE = recipe(
        32, mlp: [(17...30, 0.95), (31...31, 0.5)], attention: ([17...29], 0.75), outputTokensAreDense: false)
    /// LLaMA 3.1 8B on CodeFeedback and WizardLM: feed-forward layers 3–30 at 99%, attention at 40%.
    public static let llama31CodeFeedback = recipe(32, mlp: [(3...30, 0.99)], attention: (later, 0.4))
    /// LLaMA 3.1 8B on ARC-AGI: feed-forward layers 16–29 at 90%, from 10% of the steps on.
    public static let llama31ARCAGI = recipe(32, mlp: [(16...29, 0.9)], attention: ([], 0), start: 0.1)
    /// LLaMA 2 7B on CSR170K: feed-forward layers 13–29 at 90%, attention at 50%.
    public static let llama2CSR170K = recipe(32, mlp: [(13...29, 0.9)], attention: (latest, 0.5))
    /// LLaMA 2 7B on Math10K: feed-forward layers 13–29 at 90%, attention at 60%.
    public static let llama2Math10K = recipe(32, mlp: [(13...29, 0.9)], attention: (latest, 0.6))
    /// LLaMA 2 7B on CodeFeedback: feed-forward layers 3–30 at 99%, attention at 25%.
    public static let llama2CodeFeedback = recipe(32, mlp: [(3...30, 0.99)], attention: (later, 0.25))
    /// LLaMA 2 13B on CSR170K: feed-forward layers 13–36 at 97%, attention 17–36 at 20%, from 10% of the steps on.
    public static let largeLlama2CSR170K = recipe(
        40, mlp: [(13...36, 0.97)], attention: ([17...36], 0.2), start: 0.1)
    /// LLaMA 2 13B on Math10K: feed-forward layers 13–36 at 97%, attention 17–36 at 25%.
    public static let largeLlama2Math10K = recipe(40, mlp: [(13...36, 0.97)], attention: ([17...36], 0.25))

    /// The released recipes, by the names of their files.
    public static let recipes: [String: SparseLoRAConfiguration] = [
        "llama3-8b-math10k": llama3Math10K, "llama3-8b-csr": llama3CSR170K, "llama3-8b-glue": llama3GLUE,
        "llama3.1-8b-codefeedback": llama31CodeFeedback, "llama3.1-8b-arc-agi": llama31ARCAGI,
        "llama2-7b-csr": llama2CSR170K, "llama2-7b-math10k": llama2Math10K, "llama2-7b-codefeedback": llama2CodeFeedback,
        "llama2-13b-csr": largeLlama2CSR170K, "llama2-13b-math10k": largeLlama2Math10K,
    ]

    /// Layers of attention that tolerate sparsity in models of 32 layers.
    private static let later = [14...19, 21...23, 25...29]
    private static let latest = [17...19, 21...23, 25...29]

    private static func recipe(
        _ count: Int, mlp: [(ClosedRange<Int>, Double)], attention: ([ClosedRange<Int>], Double), start: Double = 0.05,
        outputTokensAreDense: Bool = true
    ) -> SparseLoRAConfiguration {
        var layers = Array(repeating: Layer(), count: count)
        for (range, sparsity) in mlp { for layer in range { layers[layer].mlp = sparsity } }
        for range in attention.0 { for layer in range { layers[layer].attention = attention.1 } }
        return SparseLoRAConfiguration(layers: layers, start: start, outputTokensAreDense: outputTokensAreDense)
    }
}
