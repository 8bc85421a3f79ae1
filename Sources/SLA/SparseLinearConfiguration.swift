internal import SparseKernels

/// The map φ from queries and keys to the features of linear attention. Features are not negative.
public enum LinearFeatureMap: String, Hashable, Sendable, Codable, CaseIterable {
    /// Softmax over the channels of a token. The default of the released code.
    case softmax
    /// elu(x) + 1: x + 1 for x > 0, eˣ otherwise.
    case elu
    /// max(x, 0).
    case relu
}

/// The blocks of each class, and the keys that the linear branch sees.
public enum SparseLinearRule: Hashable, Sendable {
    /// The three classes of the paper, as fractions (0…1) of the key blocks of every row: the `critical` best are exact, the
    /// `negligible` last are skipped, and those between are linear.
    case threeClasses(critical: Double, negligible: Double)
    /// The released branch `SLA-1`: the `topK` best are exact and all others linear. Nothing is skipped.
    case releasedSLA1(topK: Double)
    /// The released branch `main`: the `topK` best are exact, and the linear branch sees all tokens, those of the exact blocks
    /// once more. Its denominator is increased by 10⁻⁵.
    case releasedMain(topK: Double)

    /// The fractions that the paper recommends: 5% critical, 10% negligible.
    public static let paper = SparseLinearRule.threeClasses(critical: 0.05, negligible: 0.1)

    /// Whether this is a released branch, whose block means are rounded to the element types of the operands.
    public var isReleased: Bool {
        if case .threeClasses = self { return false }
        return true
    }

    /// Whether the linear branch sees all tokens whatever their class.
    public var linearSeesAllTokens: Bool {
        if case .releasedMain = self { return true }
        return false
    }

    /// What is added to the denominator of the linear branch: 10⁻⁵ in the branch `main`, 0 otherwise.
    public var epsilon: Float { linearSeesAllTokens ? 1e-5 : 0 }

    /// The number of critical blocks of a row of `keyBlocks`: trunc(fraction · keyBlocks), computed in `Double` as released, but
    /// at least 1, where the released code divides 0 by 0.
    public func criticalBlocks(of keyBlocks: Int) -> Int {
        let fraction =
            switch self {
            case .threeClasses(let critical, _): critical
            case .releasedSLA1(let topK), .releasedMain(let topK): topK
            }
        return max(1, Self.count(fraction, of: keyBlocks))
    }

    /// The number of negligible blocks of a row of `keyBlocks`: trunc(fraction · keyBlocks), at most what is not critical.
    public func negligibleBlocks(of keyBlocks: Int) -> Int {
        guard case .threeClasses(_, let negligible) = self else { return 0 }
        return max(0, min(keyBlocks - criticalBlocks(of: keyBlocks), Self.count(negligible, of: keyBlocks)))
    }

    private static func count(_ fraction: Double, of keyBlocks: Int) -> Int {
        min(keyBlocks, Int((fraction * Double(keyBlocks)).rounded(.towardZero)))
    }

    func validate() throws(SparseKernelsError) {
        let fractions: [(String, Double)] =
            switch self {
            case .threeClasses(let critical, let negligible): [("critical", critical), ("negligible", negligible)]
            case .releasedSLA1(let topK), .releasedMain(let topK): [("topK", topK)]
            }
        for (name, fraction) in fractions {
            try require(
                fraction >= 0 && fraction <= 1, .invalidArgument, "rule.\(name)", expected: "in 0...1", actual: "\(fraction)")
        }
    }
}

/// The settings of `SparseLinearAttention`.
public struct SparseLinearConfiguration: Hashable, Sendable {
    /// Which blocks are exact, linear and skipped.
    public var rule: SparseLinearRule
    /// φ of the linear branch.
    public var featureMap: LinearFeatureMap
    /// Tokens per block of queries; released: 64 or 128.
    public var queryBlockSize: Int
    /// Tokens per block of keys; released: 64.
    public var keyBlockSize: Int
    /// Factor on q·k in the exact branch; nil means 1/√headDim. The block map has no factor.
    public var softmaxScale: Float?

    public init(
        rule: SparseLinearRule = .paper, featureMap: LinearFeatureMap = .softmax, queryBlockSize: Int = 64,
        keyBlockSize: Int = 64, softmaxScale: Float? = nil
    ) {
        self.rule = rule
        self.featureMap = featureMap
        self.queryBlockSize = queryBlockSize
        self.keyBlockSize = keyBlockSize
        self.softmaxScale = softmaxScale
    }
}
