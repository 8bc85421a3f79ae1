internal import SparseKernels

/// The names of tensors in a nunchaku checkpoint.
public enum NunchakuNames: String, Hashable, Sendable, CaseIterable {
    /// The names of the C++ engine: `smooth`, `lora_down`, `lora_up`.
    case v1
    /// The names of the Python modules since nunchaku 1.0: `smooth_factor`, `proj_down`, `proj_up`.
    case v2

    var smooth: String { self == .v1 ? "smooth" : "smooth_factor" }
    var originalSmooth: String { self == .v1 ? "smooth_orig" : "smooth_factor_orig" }
    var down: String { self == .v1 ? "lora_down" : "proj_down" }
    var up: String { self == .v1 ? "lora_up" : "proj_up" }

    // These are the same in both versions.
    static let codes = "qweight"
    static let scales = "wscales"
    static let zeros = "wzeros"
    static let tensorScale = "wtscale"
    static let channelScales = "wcscales"
    static let bias = "bias"

    static func of(_ name: String, in layer: String) -> String { layer.isEmpty ? name : "\(layer).\(name)" }
}

/// The two kinds of W4A4 layers.
enum NunchakuPrecision: CaseIterable {
    case int4, fp4

    var format: WeightFormat { self == .int4 ? .svdQuantInt4 : .nvfp4 }
    var groupSize: Int { self == .int4 ? 64 : 16 }
    /// The name in `quantization_config`.
    var dtype: String { self == .int4 ? "int4" : "fp4_e2m1_all" }
}
