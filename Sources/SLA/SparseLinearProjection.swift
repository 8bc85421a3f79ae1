public import SparseKernels

/// The linear layer after the linear branch, which all heads share: W·o + b.
///
/// It is what training adds to a model. A model that was not trained has zeros, and then attention is exactly that over the
/// critical blocks.
public struct SparseLinearProjection: Sendable, Equatable {
    /// W, `[valueDim, valueDim]`: output channels × input channels, as PyTorch stores them.
    public let weight: Tensor<Float>
    /// b, `[valueDim]`.
    public let bias: Tensor<Float>

    /// - Throws: `.invalidShape` for a weight that is not square, or a bias of another length.
    public init(weight: Tensor<Float>, bias: Tensor<Float>) throws(SparseKernelsError) {
        try require(
            weight.shape.count == 2 && weight.shape[0] == weight.shape[1], .invalidShape, "weight",
            expected: "[valueDim, valueDim]", actual: "\(weight.shape)")
        try require(
            bias.shape == [weight.shape[0]], .invalidShape, "bias", expected: "[\(weight.shape[0])]", actual: "\(bias.shape)")
        self.weight = weight
        self.bias = bias
    }

    /// Whether every weight and bias is zero, so that the linear branch need not be computed.
    var isZero: Bool { weight.elements.allSatisfy { $0 == 0 } && bias.elements.allSatisfy { $0 == 0 } }
}
