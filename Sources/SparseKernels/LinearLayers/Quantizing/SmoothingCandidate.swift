/// One choice of smoothing: s[k] = max |x[·, k]|^alpha / max |W[·, k]|^beta for every input feature k.
public struct SmoothingCandidate: Hashable, Sendable {
    public var alpha: Double
    public var beta: Double

    public init(alpha: Double, beta: Double) {
        self.alpha = alpha
        self.beta = beta
    }

    /// The candidate that changes neither x nor W.
    public static let identity = SmoothingCandidate(alpha: 0, beta: 0)

    func check() throws(SparseKernelsError) {
        for (name, value) in [("alpha", alpha), ("beta", beta)] {
            try require((0...1).contains(value), .invalidArgument, name, expected: "0 to 1", actual: "\(value)")
        }
    }
}

extension SmoothingCandidate: CustomStringConvertible {
    public var description: String { "α \(alpha), β \(beta)" }
}

/// The candidates that a search tries. With `grids` = n, i and j are in 1…n − 1; identity always comes first.
///
/// The order matters: of candidates with equal errors, the last one is chosen.
/// - Source: deepcompressor, `SmoothCalibConfig.get_alpha_beta_pairs`, for a positive alpha.
public enum SmoothingFamily: Hashable, Sendable, CaseIterable {
    /// (i/n, 1 − i/n): n candidates. Released `beta: -1`.
    case balanced
    /// (i/n, 0), then (i/n, 1 − i/n): 2n − 1 candidates, 39 for n = 20. Released `beta: -2`, which SVDQuant uses.
    case activationsThenBalanced
    /// (i/n, 0), then (i/n, j/n): n² − n + 1 candidates, 381 for n = 20. Released `beta: -3`.
    case full

    /// The candidates, in the order in which they are tried.
    /// - Throws: `.invalidArgument` unless `grids` is 1 to 1000.
    public func candidates(grids: Int = 20) throws(SparseKernelsError) -> [SmoothingCandidate] {
        try require((1...1000).contains(grids), .invalidArgument, "grids", expected: "1 to 1000", actual: "\(grids)")
        let steps = (1..<grids).map { Double($0) / Double(grids) }
        let activations = steps.map { SmoothingCandidate(alpha: $0, beta: 0) }
        let balanced = steps.map { SmoothingCandidate(alpha: $0, beta: 1 - $0) }
        return switch self {
        case .balanced: [.identity] + balanced
        case .activationsThenBalanced: [.identity] + activations + balanced
        case .full:
            [.identity] + activations
                + steps.flatMap { alpha in steps.map { SmoothingCandidate(alpha: alpha, beta: $0) } }
        }
    }
}
