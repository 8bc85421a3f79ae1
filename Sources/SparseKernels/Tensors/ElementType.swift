/// The storage type of an element. Raw values are the names in safetensors files.
///
/// Files may name types that are newer than this library. Any name is therefore valid: `init(rawValue:)` gives the case of that
/// name if there is one, and `.other` otherwise. Two types are equal if their names are.
public enum ElementType: RawRepresentable, Hashable, Sendable {
    case float64
    case float32
    case float16
    case bfloat16
    case float8E4M3
    case float8E5M2
    /// E4M3 without infinities and negative zero, with another bias (AMD).
    case float8E4M3FNUZ
    /// E5M2 without infinities and negative zero, with another bias (AMD).
    case float8E5M2FNUZ
    /// Powers of two, the scales of the OCP microscaling formats.
    case float8E8M0
    /// Six bits; four elements in three bytes.
    case float6E2M3
    /// Six bits; four elements in three bytes.
    case float6E3M2
    /// E2M1; two elements in a byte.
    case float4
    /// Two `float32`, real part first.
    case complex64
    case int64
    case int32
    case int16
    case int8
    case uint64
    case uint32
    case uint16
    case uint8
    case bool
    /// A type of which only the name is known. `init(rawValue:)` makes it.
    case other(String)

    /// The case with that name, or `.other`.
    public init(rawValue: String) {
        // Only `rawValue` lists the names. There are few of them, and strings this short are compared quickly.
        self = Self.allCases.first { $0.rawValue == rawValue } ?? .other(rawValue)
    }

    public var rawValue: String {
        switch self {
        case .float64: "F64"
        case .float32: "F32"
        case .float16: "F16"
        case .bfloat16: "BF16"
        case .float8E4M3: "F8_E4M3"
        case .float8E5M2: "F8_E5M2"
        case .float8E4M3FNUZ: "F8_E4M3FNUZ"
        case .float8E5M2FNUZ: "F8_E5M2FNUZ"
        case .float8E8M0: "F8_E8M0"
        case .float6E2M3: "F6_E2M3"
        case .float6E3M2: "F6_E3M2"
        case .float4: "F4"
        case .complex64: "C64"
        case .int64: "I64"
        case .int32: "I32"
        case .int16: "I16"
        case .int8: "I8"
        case .uint64: "U64"
        case .uint32: "U32"
        case .uint16: "U16"
        case .uint8: "U8"
        case .bool: "BOOL"
        case .other(let name): name
        }
    }

    /// Bits of one element; nil when they are not known. Elements smaller than a byte are packed to whole bytes.
    public var bitCount: Int? {
        switch self {
        case .float64, .complex64, .int64, .uint64: 64
        case .float32, .int32, .uint32: 32
        case .float16, .bfloat16, .int16, .uint16: 16
        case .float8E4M3, .float8E5M2, .float8E4M3FNUZ, .float8E5M2FNUZ, .float8E8M0, .int8, .uint8, .bool: 8
        case .float6E2M3, .float6E3M2: 6
        case .float4: 4
        case .other: nil
        }
    }

    /// Bytes of one element; nil when they are not known or not a whole number.
    public var byteCount: Int? { bitCount.flatMap { $0 % 8 == 0 ? $0 / 8 : nil } }

    public static func == (a: Self, b: Self) -> Bool { a.rawValue == b.rawValue }

    public func hash(into hasher: inout Hasher) { hasher.combine(rawValue) }
}

extension ElementType: CaseIterable {
    /// The types with a case of their own.
    public static let allCases: [ElementType] = [
        .float64, .float32, .float16, .bfloat16, .float8E4M3, .float8E5M2, .float8E4M3FNUZ, .float8E5M2FNUZ, .float8E8M0,
        .float6E2M3, .float6E3M2, .float4, .complex64, .int64, .int32, .int16, .int8, .uint64, .uint32, .uint16, .uint8, .bool,
    ]
}

extension ElementType {
    /// Whether a Swift type can hold such elements (`TensorElement`). Others can only be read as bytes.
    var hasSwiftType: Bool {
        switch self {
        case .float8E4M3FNUZ, .float8E5M2FNUZ, .float8E8M0, .float6E2M3, .float6E3M2, .float4, .complex64, .other:
            false
        default: true
        }
    }

    /// Whether a file may use the name: 1 to 64 printable ASCII characters, so that messages can show it.
    var hasLegalName: Bool {
        let name = rawValue.utf8
        return (1...64).contains(name.count) && name.allSatisfy { $0 >= 0x20 && $0 < 0x7f }
    }

    /// The checked number of bytes of a tensor; nil for a type of unknown size, whose shape must fit 63 bits too.
    ///
    /// - Throws: `.invalidShape` for a size that overflows, and for elements smaller than a byte that end inside one.
    func checkedByteCount(_ shape: [Int]) throws(SparseKernelsError) -> Int? {
        let count = try checkedElementCount(shape, elementBytes: byteCount ?? 1)
        guard let bitCount else { return nil }
        if let byteCount { return count * byteCount }
        // Eight elements fill `bitCount` bytes.
        let (whole, rest) = count.quotientAndRemainder(dividingBy: 8)
        try require(
            rest * bitCount % 8 == 0, .invalidShape, "shape",
            expected: "a whole number of bytes of \(rawValue), whose elements have \(bitCount) bits", actual: abbreviated(shape)
        )
        return whole * bitCount + rest * bitCount / 8
    }
}

/// A Swift type that tensors can hold.
///
/// Every bit pattern of the type is a valid value, so that files can be viewed in place. That excludes `Bool`: `BOOL` is read
/// as `UInt8`.
public protocol TensorElement: BitwiseCopyable, Sendable {
    /// The storage type in files.
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
    /// The nearest value, ties to even.
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
