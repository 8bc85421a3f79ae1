import SparseKernels

/// A way to quantise a layer: SVDQuant, and SVDQuant without some of its parts.
struct QuantizationMethod {
    var label: String
    var configuration: LowRankQuantizer.Configuration
    /// The activation formats with which the weights run. The first one is that for which the smoothing was chosen.
    var activations: [ActivationFormat]

    private init(
        _ label: String, smooths: Bool = false, rank: Int = 0, isGPTQ: Bool = false,
        activations: [ActivationFormat] = [.int4]
    ) {
        self.label = label
        self.activations = activations
        configuration = LowRankQuantizer.Configuration()
        configuration.smoothing = smooths ? .search(grids: 20) : .none
        configuration.rank = rank
        configuration.residual = isGPTQ ? .gptq : .roundToNearest
    }

    static let all: [QuantizationMethod] = [
        QuantizationMethod("RTN", activations: [.int4, .int8PerToken, .float]),
        QuantizationMethod("smooth", smooths: true),
        QuantizationMethod("r32", rank: 32),
        svdQuant,
        QuantizationMethod("smooth r32 GPTQ", smooths: true, rank: 32, isGPTQ: true),
    ]

    /// The defaults of the quantiser.
    static let svdQuant = QuantizationMethod(
        "smooth r32", smooths: true, rank: 32, activations: [.int4, .int8PerToken, .float])

    /// The same for a layer after a GELU: 4-bit activations are shifted and unsigned.
    var afterGELU: QuantizationMethod {
        var method = self
        method.activations = activations.map { $0 == .int4 ? .uint4(shift: ActivationFormat.geluShift) : $0 }
        method.configuration.activation = method.activations[0]
        return method
    }

    /// "W4A8 smooth r32".
    func label(_ activation: ActivationFormat) -> String {
        "\(QuantizedVariant(weightFormat: configuration.weightFormat, activation: activation).label) \(label)"
    }
}
