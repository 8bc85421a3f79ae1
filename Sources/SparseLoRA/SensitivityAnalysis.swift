public import SparseKernels

/// Proposes sparsities of layers, from the loss that a model has when one layer at a time is sparse.
///
/// ```swift
/// let analysis = try SensitivityAnalysis(
///     costs: Array(repeating: .init(mlp: 3 * 512 * 1408, attention: 4 * 512 * 512), count: 8), sparsities: [0.5, 0.9, 0.99])
/// let curves = try analysis.measure(denseLoss: loss) { layer, part, sparsity in try evaluate(layer, part, sparsity) }
/// let configuration = try analysis.proposal(curves, budget: 0.5)
/// ```
///
/// A proposal begins with a dense model. In each step, one part of one layer becomes sparser: the one whose loss rises least for each
/// multiply-add that is saved, until what is left fits the budget. A part may skip a sparsity, so that a curve with a bump does not hold it up.
/// Losses of parts are taken to add up, which they do for small changes. Of equal steps the first layer, feed-forward before attention,
/// and the smaller sparsity come first: the result depends on the numbers only.
///
/// - Complexity: of a proposal, O(parts² · sparsities²).
/// - Source: SparseLoRA (arXiv 2506.16500), section 3.4, which finds by such curves that deep layers tolerate more, and feed-forward layers
///   more than attention. It sets its sparsities by hand; the greedy rule is ours.
public struct SensitivityAnalysis: Sendable {
    /// A part of a layer.
    public enum Part: String, Hashable, Sendable, Codable, CaseIterable {
        case mlp
        case attention
    }

    /// The multiply-adds of a layer per token that sparsity scales. Parts of no cost are never sparse.
    public struct Cost: Hashable, Sendable {
        /// Gate, up and down.
        public var mlp: Double
        /// Projections of queries, keys, values and outputs.
        public var attention: Double

        public init(mlp: Double, attention: Double) {
            self.mlp = mlp
            self.attention = attention
        }

        fileprivate func of(_ part: Part) -> Double { part == .mlp ? mlp : attention }
    }

    /// Losses with one part of one layer sparse.
    public struct Curves: Hashable, Sendable, Codable {
        /// With everything dense.
        public var denseLoss: Double
        /// By layer, part (`.mlp`, `.attention`) and sparsity. Parts of no cost have no losses.
        public var losses: [[[Double]]]

        public init(denseLoss: Double, losses: [[[Double]]]) {
            self.denseLoss = denseLoss
            self.losses = losses
        }
    }

    /// By layer.
    public let costs: [Cost]
    /// The sparsities that are tried, ascending.
    public let sparsities: [Double]

    /// - Parameters:
    ///   - costs: multiply-adds of every layer.
    ///   - sparsities: what is tried, above 0, below 1 and ascending.
    /// - Throws: `.invalidArgument` for costs that are negative or not finite, and sparsities out of their domain or order.
    public init(costs: [Cost], sparsities: [Double]) throws(SparseKernelsError) {
        for (layer, cost) in costs.enumerated() {
            for part in Part.allCases {
                try require(
                    cost.of(part) >= 0 && cost.of(part).isFinite, .invalidArgument, "costs[\(layer)].\(part)",
                    expected: "0 or more multiply-adds", actual: "\(cost.of(part))")
            }
        }
        for (index, sparsity) in sparsities.enumerated() {
            let previous = index == 0 ? 0 : sparsities[index - 1]
            try require(
                sparsity > previous && sparsity < 1, .invalidArgument, "sparsities[\(index)]",
                expected: "above \(previous) and below 1", actual: "\(sparsity)")
        }
        self.costs = costs
        self.sparsities = sparsities
    }

    /// Asks for the loss of every part of every layer at every sparsity, layer by layer.
    ///
    /// - Parameters:
    ///   - denseLoss: the loss with everything dense.
    ///   - loss: the loss with one part of one layer at a sparsity, on the same data.
    /// - Throws: what `loss` throws.
    public func measure<Failure: Error>(
        denseLoss: Double, loss: (_ layer: Int, _ part: Part, _ sparsity: Double) throws(Failure) -> Double
    ) throws(Failure) -> Curves {
        var losses: [[[Double]]] = []
        for (layer, cost) in costs.enumerated() {
            var parts: [[Double]] = []
            for part in Part.allCases {
                var curve: [Double] = []
                if cost.of(part) > 0 {
                    for sparsity in sparsities { curve.append(try loss(layer, part, sparsity)) }
                }
                parts.append(curve)
            }
            losses.append(parts)
        }
        return Curves(denseLoss: denseLoss, losses: losses)
    }

    /// Proposes sparsities.
    ///
    /// - Parameters:
    ///   - curves: measured losses.
    ///   - budget: the share of all multiply-adds of `costs` that sparse tokens may keep, above 0.
    /// - Returns: a configuration with the defaults of the paper, to which the sparsities were added.
    /// - Throws: `.invalidArgument` for losses that are not finite, and a budget that the largest sparsities do not reach, with what they reach;
    ///   `.invalidShape` for curves of other layers or sparsities.
    public func proposal(_ curves: Curves, budget: Double) throws(SparseKernelsError) -> SparseLoRAConfiguration {
        try check(curves)
        let total = costs.reduce(0) { $0 + $1.mlp + $1.attention }
        let least = total * (1 - (sparsities.last ?? 0))
        // What a sum of many shares may be off by.
        let slack = total * 1e-12
        try require(
            budget > 0 && budget.isFinite && least <= budget * total + slack, .invalidArgument, "budget",
            expected: "at least \(total > 0 ? least / total : 0), which sparsity \(sparsities.last ?? 0) everywhere leaves",
            actual: "\(budget)")
        // The number of sparsities that a part has passed.
        var levels = Array(repeating: [0, 0], count: costs.count)
        var remaining = total
        while remaining > budget * total + slack {
            guard let step = cheapestStep(curves, levels) else { break }
            remaining -= step.saved
            levels[step.layer][step.part] = step.level
        }
        let layers = levels.map { levels in
            SparseLoRAConfiguration.Layer(mlp: sparsity(levels[0]), attention: sparsity(levels[1]))
        }
        return SparseLoRAConfiguration(layers: layers)
    }

    /// The share of all multiply-adds that a configuration leaves for sparse tokens.
    /// - Throws: the errors of `SparseLoRAConfiguration.validate(layerCount:)`.
    public func remainingShare(of configuration: SparseLoRAConfiguration) throws(SparseKernelsError) -> Double {
        try configuration.validate(layerCount: costs.count)
        let total = costs.reduce(0) { $0 + $1.mlp + $1.attention }
        var remaining = 0.0
        for (cost, layer) in zip(costs, configuration.layers) {
            remaining += cost.mlp * (1 - (layer.mlp ?? 0)) + cost.attention * (1 - (layer.attention ?? 0))
        }
        return total > 0 ? remaining / total : 1
    }

    private struct Step {
        var layer: Int
        var part: Int
        var level: Int
        var saved: Double
        var price: Double
    }

    private func cheapestStep(_ curves: Curves, _ levels: [[Int]]) -> Step? {
        var best: Step?
        for (layer, cost) in costs.enumerated() {
            for (part, name) in Part.allCases.enumerated() where cost.of(name) > 0 {
                let level = levels[layer][part]
                let losses = curves.losses[layer][part]
                let loss = level == 0 ? curves.denseLoss : losses[level - 1]
                for next in level..<sparsities.count {
                    let saved = cost.of(name) * (sparsities[next] - (sparsity(level) ?? 0))
                    let price = (losses[next] - loss) / saved
                    if best.map({ price < $0.price }) ?? true {
                        best = Step(layer: layer, part: part, level: next + 1, saved: saved, price: price)
                    }
                }
            }
        }
        return best
    }

    private func sparsity(_ level: Int) -> Double? { level == 0 ? nil : sparsities[level - 1] }

    private func check(_ curves: Curves) throws(SparseKernelsError) {
        try require(
            curves.denseLoss.isFinite, .invalidArgument, "denseLoss", expected: "finite", actual: "\(curves.denseLoss)")
        try require(
            curves.losses.count == costs.count, .invalidShape, "losses", expected: "\(costs.count) layers",
            actual: "\(curves.losses.count)")
        for (layer, cost) in costs.enumerated() {
            let parts = curves.losses[layer]
            try require(
                parts.count == 2, .invalidShape, "losses[\(layer)]", expected: "curves of mlp and attention",
                actual: "\(parts.count) curves")
            for (part, name) in Part.allCases.enumerated() {
                let count = cost.of(name) > 0 ? sparsities.count : 0
                try require(
                    parts[part].count == count, .invalidShape, "losses[\(layer)].\(name)", expected: "\(count) losses",
                    actual: "\(parts[part].count)")
                for (index, loss) in parts[part].enumerated() {
                    try require(
                        loss.isFinite, .invalidArgument, "losses[\(layer)].\(name)[\(index)]", expected: "finite",
                        actual: "\(loss)")
                }
            }
        }
    }
}
