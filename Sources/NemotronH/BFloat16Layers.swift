/// Which layers of a model keep their weights in 16 bits where the others have FP8: the first ones and the last ones.
///
/// The largest model of the paper was trained with four at each end; released recipes have other numbers, so both are parameters.
///
/// ```swift
/// let rule = BFloat16Layers(first: 4, last: 4)
/// let isWide = (0..<118).map { rule.contains($0, of: 118) }
/// ```
///
/// - Source: Nemotron-H (arXiv 2504.03624), section 2.3; `first_last_layers_bf16` of NeMo's recipes.
public struct BFloat16Layers: Hashable, Sendable {
    /// Layers from the first one on.
    public var first: Int
    /// Layers up to the last one.
    public var last: Int

    /// As in the paper. A negative number means none.
    public init(first: Int = 4, last: Int = 4) {
        self.first = max(0, first)
        self.last = max(0, last)
    }

    /// Whether a layer, counted from 0, is one of them. Models with fewer layers than the rule names have no others.
    public func contains(_ layer: Int, of count: Int) -> Bool { layer < first || layer >= count - last }
}
