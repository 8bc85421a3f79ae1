/// The coding of the weights of a linear layer: the kind of code, and how many codes share a scale.
///
/// The value of element k of row n is `channelScale[n] · (scale[n, k / groupSize] · code − offset[n, k / groupSize])`. A weight
/// without channel scales or offsets has 1 and 0 there. Docs/Layouts describes the bytes.
public struct WeightFormat: Hashable, Sendable {
    /// The kind of one code.
    public enum Code: String, Hashable, Sendable, CaseIterable {
        /// −8…7, a two's-complement nibble. Symmetric quantisers use −7…7.
        case int4
        /// 0…15, a nibble, with an offset per group.
        case uint4
        /// A nibble of sign, two exponent bits and one mantissa bit (E2M1): ±{0, ½, 1, 1½, 2, 3, 4, 6}.
        case fp4
        /// −128…127, a byte. Symmetric quantisers use −127…127.
        case int8

        /// Bits per code.
        public var bits: Int { self == .int8 ? 8 : 4 }

        /// The integer that a nibble stands for; for E2M1 twice its value.
        func value(ofNibble nibble: Int) -> Int {
            switch self {
            case .int4, .int8: (nibble ^ 8) - 8
            case .uint4: nibble
            case .fp4: E2M1.doubledValue(ofCode: nibble)
            }
        }
    }

    public let code: Code
    /// Consecutive input features that share a scale; nil means the whole row, which is called "per channel".
    public let groupSize: Int?

    /// - Throws: `.invalidArgument` for a group size that is not 16, 32, 64 or 128.
    public init(_ code: Code, groupSize: Int?) throws(SparseKernelsError) {
        try require(
            groupSize.map { Self.groupSizes.contains($0) } ?? true, .invalidArgument, "groupSize",
            expected: "16, 32, 64, 128 or nil for whole rows", actual: "\(groupSize ?? 0)")
        self.init(known: code, groupSize: groupSize)
    }

    private init(known code: Code, groupSize: Int?) {
        self.code = code
        self.groupSize = groupSize
    }

    /// The group sizes that kernels support: multiples of the smallest, 16 channels, up to 128, the most that 16-bit sums
    /// allow.
    public static let groupSizes = [16, 32, 64, 128]

    /// INT4, symmetric, groups of 64, as SVDQuant's residual.
    public static let svdQuantInt4 = WeightFormat(known: .int4, groupSize: 64)
    /// NVFP4: E2M1 codes, groups of 16, E4M3 scales.
    public static let nvfp4 = WeightFormat(known: .fp4, groupSize: 16)
    /// INT8, symmetric, one scale per output channel.
    public static let int8PerChannel = WeightFormat(known: .int8, groupSize: nil)

    /// Groups per row of `inFeatures`; the last one may be short.
    public func groups(inFeatures: Int) -> Int { groupSize.map { (inFeatures + $0 - 1) / $0 } ?? 1 }

    /// Columns of a stored row: input features with the last group filled up, or without groups an even number.
    public func paddedInFeatures(_ inFeatures: Int) -> Int {
        let unit = groupSize ?? 2
        return (inFeatures + unit - 1) / unit * unit
    }
}

extension WeightFormat: CustomStringConvertible {
    public var description: String { code.rawValue + (groupSize.map { " group \($0)" } ?? " per channel") }
}
