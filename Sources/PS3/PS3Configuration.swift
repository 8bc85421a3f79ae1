public import SparseKernels

/// The sizes and rules of PS3 that its weights do not tell.
public struct PS3Configuration: Hashable, Sendable {
    public var scales: PS3Scales
    /// Patches of a pass.
    public var budget: PS3Budget
    /// Heads of the attention; the width is a multiple of them.
    public var heads: Int
    /// The layers, from 0, whose outputs at low resolution make the features that are compared with the prompt.
    public var selectionLayers: [Int]
    /// ε of the layer norms of the transformer.
    public var epsilon: Float
    /// The function of the MLPs of the transformer.
    public var activation: VisionLayerConfiguration.Activation
    /// The side of the square picture that the detail network sees.
    public var detailSide: Int

    public init(
        scales: PS3Scales, budget: PS3Budget, heads: Int, selectionLayers: [Int], epsilon: Float = 1e-6,
        activation: VisionLayerConfiguration.Activation = .gelu, detailSide: Int = 1512
    ) {
        self.scales = scales
        self.budget = budget
        self.heads = heads
        self.selectionLayers = selectionLayers
        self.epsilon = epsilon
        self.activation = activation
        self.detailSide = detailSide
    }

    /// The released encoders over SigLIP so400m: 27 layers of width 1152, 16 heads, patches of 14.
    ///
    /// - Parameters:
    ///   - sides: 378, 756 and 1512, and 3780 of the one for 4K.
    ///   - budget: patches of a pass.
    /// - Throws: the errors of ``PS3Scales`` and ``PS3Budget``.
    public static func so400m(
        sides: [Int] = [378, 756, 1512], budget: Int = 2560
    ) throws(SparseKernelsError) -> PS3Configuration {
        let scales = try PS3Scales(sides)
        return PS3Configuration(
            scales: scales, budget: try PS3Budget(budget, scales), heads: 16, selectionLayers: [0, 9, 18, 26])
    }
}
