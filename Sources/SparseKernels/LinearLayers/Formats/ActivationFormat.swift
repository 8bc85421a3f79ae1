/// The form in which activations are multiplied with the quantised weights.
///
/// Activations are divided by the smoothing factors, if a layer has them, and quantised as the product runs. They have one
/// scale per token and group of the weights, or one per token.
public enum ActivationFormat: Hashable, Sendable {
    /// Activations stay floating-point, and weights are dequantised: W4A16.
    case float
    /// −127…127, one scale per token: scale = max |x| / 127, code = x / scale.
    case int8PerToken
    /// −127…127, one scale per token and group.
    case int8PerGroup
    /// −7…7, one scale per token and group: SVDQuant's W4A4.
    case int4
    /// 0…15, one scale per token and group, of x + `shift`. It must not be negative, as after a GELU. The layer's bias undoes
    /// the shift.
    case uint4(shift: Float)
    /// E2M1, one E4M3 scale per token and group: NVFP4. Scales are at least 2⁻⁹, the smallest number of E4M3. So a group whose
    /// largest magnitude is below 6 · 2⁻⁹ = 0.0117 keeps multiples of 2⁻¹⁰, and only magnitudes up to 2⁻¹¹ = 0.0005 become 0.
    case fp4

    /// The shift of SVDQuant's GELU layers: 11/64, a little above −min GELU(x) = 0.17 and exact in 16 bits.
    public static let geluShift: Float = 0.171875
}
