package import SparseKernels

extension Tensor where Element: AttentionElement {
    /// The bits of every element, for comparisons that include NaN and the sign of zero. 16-bit types are widened exactly.
    package var bits: [UInt32] { elements.map(\.floatValue.bitPattern) }
}

extension QuantizedWeight {
    /// Whether two weights are equal, bit for bit.
    package func isIdentical(to other: QuantizedWeight) -> Bool {
        format == other.format && inFeatures == other.inFeatures && codes == other.codes && scales.bits == other.scales.bits
            && offsets?.bits == other.offsets?.bits && channelScales?.bits == other.channelScales?.bits
    }
}
