import SparseKernels

/// The quantisation of a linear layer, as rows of the tables name it.
struct QuantizedVariant: Hashable {
    var weightFormat: WeightFormat
    var activation: ActivationFormat
    /// The rank of the low-rank branch; 0 means that there is none.
    var rank = 0

    /// "W4A8 r32".
    var label: String {
        let activationBits =
            switch activation {
            case .float: 16
            case .int8PerToken, .int8PerGroup: 8
            case .int4, .uint4, .fp4: 4
            }
        return "W\(weightFormat.code.bits)A\(activationBits)" + (rank > 0 ? " r\(rank)" : "")
    }

    /// Whether products of codes are integer products.
    var isInteger: Bool { activation != .float }

    static let w4a16 = QuantizedVariant(weightFormat: .svdQuantInt4, activation: .float)
    static let w4a8 = QuantizedVariant(weightFormat: .svdQuantInt4, activation: .int8PerToken)
    static let w4a4 = QuantizedVariant(weightFormat: .svdQuantInt4, activation: .int4)
    static let w8a8 = QuantizedVariant(weightFormat: .int8PerChannel, activation: .int8PerToken)

    /// The three ways to run 4-bit weights, without and with SVDQuant's branch, and the 8-bit layer for comparison.
    static let all = [w4a16, w4a8, w4a4].flatMap { [$0, $0.withBranch] } + [w8a8]

    var withBranch: QuantizedVariant {
        var variant = self
        variant.rank = 32
        return variant
    }
}
