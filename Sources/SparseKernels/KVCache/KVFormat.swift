internal import KernelInterface

/// How a cache stores keys or values.
///
/// Codes of the quantised formats stand for s·(code − z), with a half-precision scale s and zero point z per token and head: the
/// channels of a head are one group. Ranges are those of each token, so nothing has to be calibrated:
///
///     s = half((max − min)/(2ᵇ − 1))    z = half(−(2ᵇ − 1)·min/(max − min))    code = clamp(nearest(x/s + z), 0, 2ᵇ − 1)
///
/// - Source: KV4 and KV8 of QServe (Lin et al., 2024) and LServe, fine-grained granularity. The official kernel masks codes to their
///   bits where ours clamps, which differs where rounding of s and z pushes a value beyond the last code.
public enum KVFormat: String, Sendable, CaseIterable {
    case float32
    case float16
    case bfloat16
    /// 8 bits a value, and 4 bytes a token and head.
    case int8
    /// 4 bits a value, and 4 bytes a token and head.
    case int4

    /// Whether values are codes with scales.
    public var isQuantized: Bool { kernelFormat.isQuantized }

    var kernelFormat: TokenFormat {
        switch self {
        case .float32: .float32
        case .float16: .float16
        case .bfloat16: .bfloat16
        case .int8: .int8
        case .int4: .int4
        }
    }
}

/// What a cache keeps about each logical page, so that pages can be ranked without reading their keys.
///
/// Metadata describes the keys as they are stored, after quantisation: bounds hold for what attention reads. It is rounded outwards, so
/// that it stays a bound in every format, for keys within the range of half precision.
public struct PageMetadata: Hashable, Sendable {
    /// What is kept per channel.
    public enum Kind: String, Sendable, CaseIterable {
        /// The largest and the smallest value: Σ max(q·max, q·min) bounds every score of the page (Quest, LServe).
        case minMax
        /// The mean: q·mean is the mean score of the page.
        case mean
    }

    public let kind: Kind
    /// Tokens of a logical page; divides the page size of the cache.
    public let logicalPageSize: Int
    /// `.float32`, `.float16` or `.int8`, which has a scale and a zero point per logical page.
    public let format: KVFormat

    public init(_ kind: Kind = .minMax, logicalPageSize: Int = 16, format: KVFormat = .float16) {
        self.kind = kind
        self.logicalPageSize = logicalPageSize
        self.format = format
    }
}
