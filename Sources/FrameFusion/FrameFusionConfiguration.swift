internal import SparseKernels

/// The thresholds and the budget of FrameFusion.
public struct FrameFusionConfiguration: Hashable, Sendable {
    /// The budget: the mean over the layers of the part of visual tokens that they see, above 0 and at most 1.
    public var cost: Double
    /// The cosine from which a token is merged into the one before it.
    public var similarity: Float
    /// Merging ends after a layer at which less than this part of the visual tokens was merged.
    public var leastMerged: Double
    /// Layers of the model, over which the budget is a mean.
    public var layers: Int

    /// - Parameters:
    ///   - cost: the budget; 0.3 in the released code.
    ///   - similarity: 0.6 in the released code.
    ///   - leastMerged: 0.1 in the released code.
    ///   - layers: those of the model; the released code has 28 for every model.
    /// - Throws: `.invalidArgument` naming the number that is out of range.
    public init(
        cost: Double = 0.3, similarity: Float = 0.6, leastMerged: Double = 0.1, layers: Int = 28
    ) throws(SparseKernelsError) {
        self.cost = cost
        self.similarity = similarity
        self.leastMerged = leastMerged
        self.layers = layers
        try check()
    }

    func check() throws(SparseKernelsError) {
        try require(cost > 0 && cost <= 1, .invalidArgument, "cost", expected: "above 0 and at most 1", actual: "\(cost)")
        try require(
            similarity >= -1 && similarity.isFinite, .invalidArgument, "similarity", expected: "−1 or more, and finite",
            actual: "\(similarity)")
        try require(
            leastMerged >= 0 && leastMerged <= 1, .invalidArgument, "leastMerged", expected: "in 0...1",
            actual: "\(leastMerged)")
        try require(layers >= 1, .invalidArgument, "layers", expected: "at least 1", actual: "\(layers)")
    }

    /// The part of the visual tokens that a reduction before the next layer must remove, so that all layers together meet the budget
    /// if nothing is removed afterwards; 0 when nothing need be removed.
    ///
    /// With r_i the parts removed so far and s = Π (1 − r_i): 1 − (layers · cost − Σ_i Π_{j ≤ i} (1 − r_j)) / ((layers − n) · s).
    ///
    /// - Parameter removed: the part that was removed before each layer so far.
    /// - Throws: `.invalidArgument` when the layers so far have used up the budget.
    public func requiredRemoval(after removed: [Double]) throws(SparseKernelsError) -> Double {
        var (kept, spent) = (1.0, 0.0)
        for part in removed {
            kept *= 1 - part
            spent += kept
        }
        let left = Double(layers) * cost - spent
        let rest = Double(layers - removed.count) * kept
        try require(
            left >= 0, .invalidArgument, "cost",
            expected: "at least \(spent / Double(layers)), which \(removed.count) layers took",
            actual: "\(cost)")
        return left >= rest ? 0 : 1 - left / rest
    }
}
