/// Activations as a quantised product sees them, in the terms of `QuantizedWeight`: a scale is what the value 1 of a code is worth.
///
///     value = scale of the token's group · code          .fp4: scale · code / 2
///
/// For `.fp4` scales are the E4M3 numbers, and codes are twice the E2M1 values, so that they are integers. Smoothing and shift are not
/// undone: values are those of (x + shift) / smooth.
public struct QuantizedActivations: Sendable {
    /// How the activations were quantised.
    public let format: ActivationFormat
    /// Consecutive channels that share a scale.
    public let groupSize: Int
    /// `[tokens, paddedInFeatures]`; for `.fp4` twice the value of the E2M1 code.
    public let codes: Tensor<Int8>
    /// `[tokens, groups]`. `.int8PerToken` repeats the one of the token.
    public let scales: Tensor<Float>

    /// What the product has in place of a channel of a token.
    public func value(row: Int, column: Int) -> Float {
        let (padded, groups) = (codes.shape[1], scales.shape[1])
        precondition(
            row >= 0 && row < codes.shape[0] && column >= 0 && column < padded,
            "index (\(row), \(column)) outside \(codes.shape[0]) × \(padded)")
        let scale = scales[flat: row * groups + column / groupSize]
        return (format == .fp4 ? scale / 2 : scale) * Float(codes[flat: row * padded + column])
    }
}
