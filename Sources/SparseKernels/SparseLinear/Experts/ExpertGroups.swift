/// Groups of adjacent experts, of which only the strongest are open to a token's choice, as in DeepSeek-V2 and V3.
///
/// There a group is the experts of one machine, and a token goes to few machines.
public struct ExpertGroups: Hashable, Sendable {
    /// What makes a group strong, from its experts' scores with the correction bias.
    public enum Strength: String, Hashable, Sendable, CaseIterable {
        /// The largest score: `group_limited_greedy` of DeepSeek-V2.
        case largest
        /// The sum of the two largest scores: `noaux_tc` of DeepSeek-V3.
        case sumOfTwo
    }

    /// The number of groups, `n_group`. It divides the number of experts.
    public let count: Int
    /// The number of groups that stay open, `topk_group`. Of equally strong groups those of lower index.
    public let kept: Int
    public let strength: Strength

    /// - Throws: `.invalidArgument` for no groups, or `kept` outside 1…count.
    public init(count: Int, kept: Int, strength: Strength = .sumOfTwo) throws(SparseKernelsError) {
        try require(count >= 1, .invalidArgument, "count", expected: "1 or more groups", actual: "\(count)")
        try require(
            kept >= 1 && kept <= count, .invalidArgument, "kept", expected: "1 to \(count), the number of groups",
            actual: "\(kept)")
        self.count = count
        self.kept = kept
        self.strength = strength
    }
}
