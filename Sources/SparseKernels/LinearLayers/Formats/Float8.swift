internal import KernelInterface

/// An 8-bit float: ``E4M3`` or ``E5M2``. Other types cannot conform usefully, because kernels know these two.
public protocol Float8: TensorElement {
    /// The nearest value, ties to even; what is too large becomes the largest finite value of its sign, and NaN stays NaN.
    init(_ value: Float)
    init(bitPattern: UInt8)
    var bitPattern: UInt8 { get }
    /// The value, exactly.
    var floatValue: Float { get }
    static var greatestFiniteMagnitude: Float { get }
    /// The name of the format.
    static var name: String { get }
}

extension Float8 {
    static var kernelType: Float8Type { elementType == .float8E4M3 ? .e4m3 : .e5m2 }

    /// Kernels read codes of E4M3 as 2⁻⁸ of their values.
    static var weightUnit: Float { kernelType == .e4m3 ? 256 : 1 }

    var isFinite: Bool { Self.kernelType == .e4m3 ? bitPattern & 0x7f != 0x7f : bitPattern & 0x7f < 0x7c }
}

extension WeightType {
    init(_ type: StorageType) {
        self =
            switch type {
            case .float32: .float32
            case .float16: .float16
            case .bfloat16: .bfloat16
            }
    }

    init(_ type: Float8Type) { self = type == .e4m3 ? .e4m3 : .e5m2 }

    var byteCount: Int {
        switch self {
        case .float32: 4
        case .float16, .bfloat16: 2
        case .e4m3, .e5m2: 1
        }
    }
}
