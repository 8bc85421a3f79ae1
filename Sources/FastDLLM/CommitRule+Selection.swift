/// The masked positions that a step commits.
public struct CommitSelection: Hashable, Sendable {
    /// Indices into the list of masked positions, in descending order of what the rule looks at.
    public let indices: [Int]
    /// How far the nearest other decision is, in units of what the rule looks at: probabilities, or entropies. It is infinite
    /// where there was nothing to decide.
    public let margin: Double
}

extension CommitRule {
    /// Chooses positions by confidence, for the rules `threshold` and `factor`; other rules have a number, see
    /// ``select(_:count:)``.
    ///
    /// - Parameter confidences: those of the masked positions, without NaN. Of equal ones the first comes first.
    /// - Returns: at least one position if there is any; all of them with a rule that counts.
    /// - Complexity: O(n log n).
    public func select(_ confidences: [Double]) -> CommitSelection {
        guard !confidences.isEmpty else { return CommitSelection(indices: [], margin: .infinity) }
        let order = Self.order(confidences)
        let sorted = order.map { confidences[$0] }
        switch self {
        case .threshold(let threshold):
            var (count, margin) = (1, Double.infinity)
            for confidence in sorted.dropFirst() {
                if confidence >= threshold { count += 1 }
                margin = min(margin, abs(confidence - threshold))
            }
            // Below the threshold it matters which one is the best.
            if count == 1, sorted.count > 1, sorted[0] < threshold { margin = min(margin, sorted[0] - sorted[1]) }
            return CommitSelection(indices: Array(order.prefix(count)), margin: margin)
        case .factor(let factor, let form):
            let (count, margin) = Self.factored(sorted, factor, form)
            let gap = count < sorted.count ? sorted[count - 1] - sorted[count] : .infinity
            return CommitSelection(indices: Array(order.prefix(count)), margin: min(margin, gap))
        case .tokensPerStep, .schedule, .random, .entropy:
            return CommitSelection(indices: order, margin: .infinity)
        }
    }

    /// Chooses positions as ``select(_:)`` does with exact confidences, of which only those near a decision are computed.
    ///
    /// - Parameters:
    ///   - predictions: of the masked positions.
    ///   - count: positions to choose, for rules that count; nil means all.
    /// - Returns: a selection with the predictions' order of confidences. The rules `random` and `entropy` look at other
    ///   things, which the decoder knows; here they choose by confidence.
    public func select(_ predictions: MaskedPredictions, count: Int? = nil) -> CommitSelection {
        var predictions = predictions
        return select(refining: &predictions, count: count)
    }

    func select(refining predictions: inout MaskedPredictions, count: Int?) -> CommitSelection {
        // Better confidences may move the end of the list to where others are near.
        while predictions.refine(undecided(predictions.confidences, errors: predictions.confidenceErrors, count: count)) {}
        if let count { return Self.select(predictions.confidences, count: count) }
        return select(predictions.confidences)
    }

    /// The positions with the largest keys.
    ///
    /// - Parameters:
    ///   - keys: of the masked positions, without NaN. Of equal ones the first comes first.
    ///   - count: positions to choose, limited to those that there are.
    public static func select(_ keys: [Double], count: Int) -> CommitSelection {
        let count = max(0, min(count, keys.count))
        let order = order(keys)
        let isOpen = count > 0 && count < keys.count
        return CommitSelection(
            indices: Array(order.prefix(count)), margin: isOpen ? keys[order[count - 1]] - keys[order[count]] : .infinity)
    }

    private static func order(_ keys: [Double]) -> [Int] {
        keys.indices.sorted { keys[$0] == keys[$1] ? $0 < $1 : keys[$0] > keys[$1] }
    }

    /// How many of a descending list the factor accepts, and the distance of the nearest decision in units of confidence.
    private static func factored(_ sorted: [Double], _ factor: Double, _ form: FactorForm) -> (count: Int, margin: Double) {
        var margin = Double.infinity
        for n in 2..<max(2, sorted.count + 1) {
            let confidence = sorted[n - 1]
            // At the end of the list the released code accepts both answers.
            if form == .paper || n < sorted.count {
                margin = min(margin, abs(confidence - limit(factor, n)))
            }
            switch form {
            case .paper:
                // (n + 1)·(1 − c₍ₙ₎) never falls with n, so the first failure ends the list.
                if !(Double(n + 1) * (1 - confidence) < factor) { return (n - 1, margin) }
            case .released:
                if confidence < limit(factor, n) { return (n == sorted.count ? n : n - 1, margin) }
            }
        }
        return (sorted.count, margin)
    }

    /// The confidence that the n-th position must have.
    private static func limit(_ factor: Double, _ n: Int) -> Double { 1 - factor / Double(n + 1) }

    /// The positions whose confidence is so near a decision that an error of `errors` could change it.
    ///
    /// - Parameter count: positions to choose, for rules that count.
    func undecided(_ confidences: [Double], errors: [Double], count: Int?) -> [Int] {
        guard let largest = confidences.max() else { return [] }
        let error = errors.max() ?? 0
        func near(_ values: [Double]) -> [Int] {
            confidences.indices.filter { i in values.contains { abs(confidences[i] - $0) <= 2 * error } }
        }
        switch self {
        case .threshold(let threshold):
            // The best is committed anyway; which one it is matters below the threshold only.
            return near(largest > threshold + error ? [threshold] : [threshold, largest])
        case .factor(let factor, _):
            let limits = (2..<max(2, confidences.count + 1)).map { Self.limit(factor, $0) }
            let chosen = select(confidences).indices
            // Where the list ends among confidences that are all but equal, their order matters.
            return near(chosen.count < confidences.count ? limits + [confidences[chosen[chosen.count - 1]]] : limits)
        case .tokensPerStep, .schedule:
            guard let count, count > 0, count < confidences.count else { return [] }
            return near([confidences.sorted(by: >)[count - 1]])
        case .random, .entropy: return []
        }
    }
}
