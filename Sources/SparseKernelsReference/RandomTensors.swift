public import SparseKernels

extension Tensor where Element: AttentionElement {
    /// A tensor of independent normal values.
    /// - Throws: `.invalidShape` for a negative extent or a size that overflows.
    public static func normal(
        _ shape: [Int], seed: UInt64, scale: Float = 1
    ) throws(SparseKernelsError) -> Tensor<Element> {
        var generator = SplitMix64(seed: seed)
        return try Tensor(shape) { _ in Element(generator.normal() * scale) }
    }
}
