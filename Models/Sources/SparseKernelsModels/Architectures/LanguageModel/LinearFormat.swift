/// The arithmetic of the linear layers in the blocks of a language model. Norms, embeddings and attention are not affected.
public enum LinearFormat: String, Hashable, Sendable, CaseIterable {
    /// Weights in single precision.
    case float32
    /// Weights in half precision, widened in registers.
    case float16
    /// Weights in bfloat16, widened in registers.
    case bfloat16
    /// Weights in 8-bit floats, E4M3 with a scale per layer, widened in registers.
    case fp8
    /// Weights of 4 bits, activations in single precision.
    case w4a16
    /// Weights of 4 bits, activations of 8.
    case w4a8
    /// Weights and activations of 4 bits, beside a low-rank branch, as SVDQuant has them: of a file that was quantised with a
    /// calibration, or made from weights alone, of a rank that is given.
    case w4a4

    /// Whether weights are codes.
    public var isQuantized: Bool {
        switch self {
        case .float32, .float16, .bfloat16, .fp8: false
        case .w4a16, .w4a8, .w4a4: true
        }
    }
}
