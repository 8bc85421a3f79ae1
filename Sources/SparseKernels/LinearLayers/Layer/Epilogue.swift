/// The function that is applied to a linear layer's output after bias and low-rank branch.
public enum Epilogue: Hashable, Sendable {
    case none
    /// GELU by its tanh approximation: ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))).
    case gelu
    /// x / (1 + e⁻ˣ).
    case silu
    /// GELU itself: ½ x (1 + erf(x / √2)), which `torch.nn.GELU` has unless told otherwise.
    case geluErf
}
