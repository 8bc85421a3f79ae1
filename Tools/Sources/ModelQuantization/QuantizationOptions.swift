internal import SparseKernels

/// The options that determine the bytes of a quantised layer, given its weight and calibration tokens.
public struct QuantizationOptions: Codable, Hashable, Sendable {
    /// The rounding of the residual.
    public enum Method: String, Codable, Sendable, CaseIterable { case rtn, gptq }

    public enum Smoothing: Codable, Hashable, Sendable {
        /// No smoothing.
        case none
        /// The exponents with the least output error, from SVDQuant's grid.
        case search
        /// These exponents.
        case fixed(alpha: Double, beta: Double)
    }

    public enum ScaleType: String, Codable, Sendable, CaseIterable {
        case f16, bf16
        var elementType: ElementType { self == .f16 ? .float16 : .bfloat16 }
    }

    public enum Activation: String, Codable, Sendable, CaseIterable {
        case int4, int8
        /// Unsigned codes of shifted activations where the calibration tokens allow them (after a GELU), int4 elsewhere.
        case uint4Shift = "uint4-shift"
    }

    public var rank = 32
    public var method = Method.rtn
    public var smoothing = Smoothing.search
    /// Iterations of the split. More than one stop early when the error no longer falls.
    public var iterations = LowRankQuantizer.Configuration().iterations
    public var scaleType = ScaleType.f16
    public var activation = Activation.int4

    public init() {}
}

extension QuantizationOptions: CustomStringConvertible {
    /// All options in the form "rank 32, rtn, smoothing search, 4 iterations, f16 scales, int4 activations". It is in digests.
    public var description: String {
        let smoothing =
            switch smoothing {
            case .none: "no smoothing"
            case .search: "smoothing search"
            case .fixed(let alpha, let beta): "smoothing α \(alpha) β \(beta)"
            }
        return "rank \(rank), \(method.rawValue), \(smoothing), \(iterations) iteration\(iterations == 1 ? "" : "s"), "
            + "\(scaleType.rawValue) scales, \(activation.rawValue) activations"
    }
}
