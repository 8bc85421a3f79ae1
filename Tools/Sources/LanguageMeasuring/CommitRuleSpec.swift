public import FastDLLM
public import SparseKernels

/// Rules of parallel decoding, as people write them: `threshold:0.9`.
public struct CommitRuleSpec: Hashable, Sendable, CustomStringConvertible {
    public let description: String
    public let rule: CommitRule

    /// The forms of all rules.
    public static let help = """
        one (a position per pass), tokens:N (N per pass), threshold:T (0.9), factor:F (1), released-factor:F (as published), \
        schedule:PASSES, random:PASSES, entropy:PASSES (over the whole length).
        """

    /// - Throws: `.invalidArgument` for a name or value that is not known.
    public init(_ text: String) throws(SparseKernelsError) {
        description = text
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard (1...2).contains(parts.count) else { throw Self.failure(text) }
        let value = parts.count == 2 ? parts[1] : nil
        func number(_ standard: Double) throws(SparseKernelsError) -> Double {
            guard let value else { return standard }
            guard let number = Double(value) else { throw Self.failure(text) }
            return number
        }
        func count() throws(SparseKernelsError) -> Int {
            guard let value, let count = Int(value) else { throw Self.failure(text) }
            return count
        }
        switch parts[0] {
        case "one":
            guard value == nil else { throw Self.failure(text) }
            rule = .tokensPerStep(1)
        case "tokens": rule = .tokensPerStep(try count())
        case "threshold": rule = .threshold(try number(0.9))
        case "factor": rule = .factor(try number(1))
        case "released-factor": rule = .factor(try number(1), form: .released)
        case "schedule": rule = .schedule(steps: try count())
        case "random": rule = .random(steps: try count())
        case "entropy": rule = .entropy(steps: try count())
        default: throw Self.failure(text)
        }
        // Numbers out of their domain are the decoder's errors.
        _ = try FastDLLMDecoder(FastDLLMConfiguration(rule: rule))
    }

    private static func failure(_ text: String) -> SparseKernelsError {
        SparseKernelsError(.invalidArgument, "rule", expected: help, actual: "\"\(text)\"")
    }
}
