public import SparseKernels

/// Which masked positions of a block a step commits.
///
/// Every step but those of `entropy` commits at least one position. The confidence of a position is the probability of the
/// token that would be put there.
///
/// - Source: Wu et al., Fast-dLLM (2025), arXiv 2505.22618, sections 3.3 and 3.4; `get_transfer_index`,
///   `get_num_transfer_tokens` and `get_transfer_index_dynamic` of `NVlabs/Fast-dLLM`, `llada/generate.py`; `entropy` from
///   `dream/model/generation_utils_block.py`.
public enum CommitRule: Hashable, Sendable {
    /// Where the sorted list ends for `factor`.
    public enum FactorForm: String, Hashable, Sendable, CaseIterable {
        /// The largest n with (n + 1)·(1 − c₍ₙ₎) < factor, at least 1.
        case paper
        /// The released code: equality is accepted, and a first failure at the last position commits it as well, so that the
        /// last two masked positions are always committed together.
        case released
    }

    /// So many positions, the most confident first. One is the plain sampler of a diffusion model.
    case tokensPerStep(Int)
    /// The most confident positions, evenly over `steps` forward passes of the whole generation: with m masked positions and n
    /// steps in a block ⌊m/n⌋ each, and one more in the first m mod n.
    case schedule(steps: Int)
    /// All positions with at least this confidence, and always the most confident one.
    case threshold(Double)
    /// The n most confident positions, as many as (n + 1)·(1 − c₍ₙ₎) < factor allows, and always the most confident one. With a
    /// factor of 1 the tokens are those of the joint distribution's maximum, if each is right for its position (theorem 1).
    case factor(Double, form: FactorForm = .paper)
    /// As `schedule`, in random order.
    case random(steps: Int)
    /// The positions with the least entropy. The masked part of a block falls from 1 to `epsilon` in even steps; a step commits
    /// the whole positions that this takes, which may be none, and the last step all that are left.
    case entropy(steps: Int, epsilon: Double = 1e-3)

    /// Throws `.invalidArgument` for a number out of its domain.
    func validate() throws(SparseKernelsError) {
        switch self {
        case .tokensPerStep(let count):
            try require(count >= 1, .invalidArgument, "rule.tokensPerStep", expected: "at least 1", actual: "\(count)")
        case .threshold(let threshold):
            try require(
                threshold >= 0 && threshold <= 1, .invalidArgument, "rule.threshold", expected: "from 0 to 1",
                actual: "\(threshold)")
        case .factor(let factor, _):
            try require(
                factor > 0 && factor.isFinite, .invalidArgument, "rule.factor", expected: "positive and finite",
                actual: "\(factor)")
        case .schedule(let steps), .random(let steps): try validate(steps)
        case .entropy(let steps, let epsilon):
            try validate(steps)
            try require(
                epsilon > 0 && epsilon < 1, .invalidArgument, "rule.epsilon", expected: "above 0 and below 1",
                actual: "\(epsilon)")
        }
    }

    private func validate(_ steps: Int) throws(SparseKernelsError) {
        try require(
            steps >= 1 && steps <= 1 << 30, .invalidArgument, "rule.steps", expected: "1 to 2³⁰", actual: "\(steps)")
    }

    /// Steps of the whole generation, for rules that have a schedule.
    var steps: Int? {
        switch self {
        case .schedule(let steps), .random(let steps), .entropy(let steps, _): steps
        case .tokensPerStep, .threshold, .factor: nil
        }
    }

    /// How many positions each step commits when `masked` positions are spread over steps: `get_num_transfer_tokens`.
    /// - Throws: `.invalidArgument` for fewer than 1 step or a negative number of positions.
    public static func schedule(masked: Int, steps: Int) throws(SparseKernelsError) -> [Int] {
        try require(steps >= 1 && steps <= 1 << 30, .invalidArgument, "steps", expected: "1 to 2³⁰", actual: "\(steps)")
        try require(masked >= 0, .invalidArgument, "masked", expected: "at least 0", actual: "\(masked)")
        return (0..<steps).map { scheduled(masked: masked, steps: steps, step: $0) }
    }

    private static func scheduled(masked: Int, steps: Int, step: Int) -> Int {
        masked / steps + (step < masked % steps ? 1 : 0)
    }

    /// How many positions a step commits, for rules that count; nil for those that look at confidences.
    ///
    /// - Parameters:
    ///   - step: that of the block, from 0.
    ///   - steps: those of the block.
    ///   - initial: masked positions at the block's start.
    ///   - remaining: masked positions now.
    func count(step: Int, of steps: Int, initial: Int, remaining: Int) -> Int? {
        switch self {
        case .threshold, .factor: return nil
        case .tokensPerStep(let count): return min(count, remaining)
        case .schedule, .random:
            // The last step takes what is left, which is more than its part if an earlier one had to take less.
            if step >= steps - 1 { return remaining }
            return min(remaining, Self.scheduled(masked: initial, steps: steps, step: step))
        case .entropy(_, let epsilon):
            if step >= steps - 1 { return remaining }
            func time(_ i: Int) -> Double { 1 + (epsilon - 1) * Double(i) / Double(steps) }
            return min(remaining, Int(Double(remaining) * (1 - time(step + 1) / time(step))))
        }
    }
}
