/// How an element is stored. Raw values are the names that safetensors files use.
public enum ElementType: String, Sendable, CaseIterable {
    case float64 = "F64"
    case float32 = "F32"
    case float16 = "F16"
    case bfloat16 = "BF16"
    case float8E4M3 = "F8_E4M3"
    case float8E5M2 = "F8_E5M2"
    case int64 = "I64"
    case int32 = "I32"
    case int16 = "I16"
    case int8 = "I8"
    case uint64 = "U64"
    case uint32 = "U32"
    case uint16 = "U16"
    case uint8 = "U8"
    case bool = "BOOL"

    /// Bytes of one element.
    public var byteCount: Int {
        switch self {
        case .float64, .int64, .uint64: 8
        case .float32, .int32, .uint32: 4
        case .float16, .bfloat16, .int16, .uint16: 2
        case .float8E4M3, .float8E5M2, .int8, .uint8, .bool: 1
        }
    }
}

/// A Swift type that tensors can hold.
///
/// Every bit pattern of the type is a valid value, so that file contents can be viewed in place. That excludes `Bool`: a
/// `BOOL` tensor is read as `UInt8`.
public protocol TensorElement: BitwiseCopyable, Sendable {
    /// How the type is stored in files.
    static var elementType: ElementType { get }
    /// The additive identity, which fills new tensors.
    static var zero: Self { get }
}

extension Double: TensorElement { public static var elementType: ElementType { .float64 } }
extension Float: TensorElement { public static var elementType: ElementType { .float32 } }
extension BFloat16: TensorElement { public static var elementType: ElementType { .bfloat16 } }
extension Int64: TensorElement { public static var elementType: ElementType { .int64 } }
extension Int32: TensorElement { public static var elementType: ElementType { .int32 } }
extension Int16: TensorElement { public static var elementType: ElementType { .int16 } }
extension Int8: TensorElement { public static var elementType: ElementType { .int8 } }
extension UInt64: TensorElement { public static var elementType: ElementType { .uint64 } }
extension UInt32: TensorElement { public static var elementType: ElementType { .uint32 } }
extension UInt16: TensorElement { public static var elementType: ElementType { .uint16 } }
extension UInt8: TensorElement { public static var elementType: ElementType { .uint8 } }

/// A real element type that attention reads and writes: `Float`, `Float16` or `BFloat16`.
public protocol AttentionElement: TensorElement {
    /// To nearest, ties to even.
    init(_ value: Float)
    /// The exact value.
    var floatValue: Float { get }
}

extension Float: AttentionElement { public var floatValue: Float { self } }
extension BFloat16: AttentionElement {}

// The compiler has no Float16 on Intel Macs.
#if !(os(macOS) && arch(x86_64))
    extension Float16: TensorElement { public static var elementType: ElementType { .float16 } }
    extension Float16: AttentionElement { public var floatValue: Float { Float(self) } }
#endif
