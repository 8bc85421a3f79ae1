/// Activations as a quantised product uses them. As in ``QuantizedWeight``, a scale is the value of the number 1 in codes.
///
///     value = scale of the token's group · code          .fp4: scale · code / 2
///
/// For `.fp4` scales are the E4M3 numbers, and codes are twice the E2M1 values, so that they are integers. Smoothing and shift
/// are not undone: values are those of (x + shift) / smooth.
public struct QuantizedActivations: Sendable {
    /// The format of the activations.
    public let format: ActivationFormat
    /// Consecutive channels that share a scale.
    public let groupSize: Int
    /// `[tokens, paddedInFeatures]`; for `.fp4` twice the value of the E2M1 code.
    public let codes: Tensor<Int8>
    /// `[tokens, groups]`. `.int8PerToken` repeats the scale of the token.
    public let scales: Tensor<Float>

    /// The value that the product uses for a channel of a token.
    public func value(row: Int, column: Int) -> Float {
        let (padded, groups) = (codes.shape[1], scales.shape[1])
        precondition(
            row >= 0 && row < codes.shape[0] && column >= 0 && column < padded,
            "index (\(row), \(column)) outside \(codes.shape[0]) × \(padded)")
        let scale = scales[flat: row * groups + column / groupSize]
        return (format == .fp4 ? scale / 2 : scale) * Float(codes[flat: row * padded + column])
    }
}
