import Foundation
public import ReasoningBranches
public import SparseKernels

/// Runs the branches of a tree with a language model.
///
/// ```swift
/// let branching = try BranchingSession(session, seed: 1)
/// let best = try branching.bestOf(16, after: prompt, sampling: sampling, maximumTokens: 64)[0]
/// ```
///
/// `tree` makes, joins and ends branches; `step` runs what is pending of them, all as one batch whose attention reads shared pages
/// once. A session of which branches are run here should have no other sequences.
///
/// - What a branch draws depends on the seed, its lineage and its logits, not on the batch. Logits of a batch of several rows may
///   differ from those of a single row by rounding (see `LanguageSession`).
public final class BranchingSession {
    public typealias Branch = BranchTree.Branch

    public let session: LanguageSession
    public let tree: BranchTree

    /// - Parameters:
    ///   - session: any but one with LServe's methods of decoding, or of a model with recurrent layers, whose states are not in pages.
    ///   - reusesPrefixes: whether finished branches may be remembered and prompts that begin alike reuse their pages.
    ///   - seed: of the random numbers of all branches.
    /// - Throws: `.invalidArgument` for a session without pages.
    public init(_ session: LanguageSession, reusesPrefixes: Bool = true, seed: UInt64 = 0) throws(SparseKernelsError) {
        guard let cache = session.pages else {
            throw SparseKernelsError(
                .invalidArgument, "session", expected: "one whose decoding needs pages alone",
                actual: session.model.configuration.recurrentLayers > 0
                    ? "one of a model with recurrent layers" : "\(session.options.decoding)")
        }
        self.session = session
        tree = BranchTree(cache: cache, prefixes: reusesPrefixes ? PrefixIndex(cache: cache) : nil, seed: seed)
    }

    /// What a step computed.
    public struct Rows {
        /// The branches of the step.
        public let branches: [Branch]
        /// A row per branch, the logits after its last token.
        public let logits: Tensor<Float>

        /// The elements that are the logits of the i-th branch.
        public func elements(_ i: Int) -> Range<Int> { i * logits.shape[1]..<(i + 1) * logits.shape[1] }
    }

    /// Runs the pending tokens of all running branches, or of some of them.
    ///
    /// - Parameter branches: running branches; nil means all.
    /// - Returns: nil when nothing is pending.
    /// - Throws: the errors of `BranchTree.step` and `LanguageSession.append`. The branches are as before then.
    public func step(_ branches: [Branch]? = nil) throws(SparseKernelsError) -> Rows? {
        guard let step = try tree.step(branches) else { return nil }
        return Rows(branches: step.branches, logits: try session.append(step.tokens, toPaged: step.sequences))
    }

    /// Natural logs of the probabilities of a row of logits, and their order.
    struct LogProbabilities {
        let values: [Double]

        /// - Throws: `.invalidArgument` for logits of which one is NaN or +∞ or all are −∞.
        init(_ row: Span<Float>) throws(SparseKernelsError) {
            var largest = -Double.infinity
            var values: [Double] = []
            values.reserveCapacity(row.count)
            for i in row.indices {
                let value = Double(row[i])
                guard value < .infinity else {
                    throw SparseKernelsError(
                        .invalidArgument, "logits", expected: "finite or −∞", actual: "\(row[i]) of token \(i)")
                }
                values.append(value)
                largest = max(largest, value)
            }
            guard largest > -.infinity else {
                throw SparseKernelsError(
                    .invalidArgument, "logits", expected: "with one above −∞", actual: "\(row.count) without")
            }
            let logSum = largest + log(values.reduce(0) { $0 + exp($1 - largest) })
            self.values = values.map { $0 - logSum }
        }

        /// The most probable tokens, the lower id first of equal ones.
        func best(_ count: Int) -> [Int] {
            Array(values.indices.sorted { values[$0] == values[$1] ? $0 < $1 : values[$0] > values[$1] }.prefix(count))
        }
    }
}
