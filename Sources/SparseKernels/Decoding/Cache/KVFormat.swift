internal import KernelInterface

/// How a cache stores keys or values.
///
/// The quantised formats store unsigned codes with a half-precision scale and offset per token and head, as ``KVQuantization``
/// defines: the channels of a head are one group. The range is that of each token, so no calibration is needed.
public enum KVFormat: String, Sendable, CaseIterable {
    case float32
    case float16
    case bfloat16
    /// 8 bits per value, and 4 bytes per token and head.
    case int8
    /// 4 bits per value, and 4 bytes per token and head.
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

/// The numbers that the codes of a quantised token stand for.
public enum KVQuantization: String, Sendable, CaseIterable {
    /// The smallest element and steps above it:
    ///
    ///     m = min, rounded down to half precision      s = (max − m)/(2ᵇ − 1), rounded up
    ///     code = nearest((x − m)/s)                    x′ = s·code + m
    ///
    /// The default. No element is off by more than half a step of the row's range, widened by the rounding of m. That holds
    /// wherever the range is: a row of 300…301 is stored as exactly as one of 0…1, because 300 is a half-precision number.
    case minimum
    /// 4-bit keys, and 4-bit estimates of keys, have an offset and a scale that are fitted to the row:
    ///
    ///     m, s ≈ argmin Σ (x − s·code − m)²
    ///
    /// Ends of the range are cut off where that makes the other elements more exact, by more than is lost at the ends: of rows of
    /// 64 to 128 channels 15 to 20 percent of the squared error. No row is less exact than with ``minimum``, but single elements may
    /// be off by more than half a step. A cache is read at the same speed; storing a key takes a dozen passes over its row more.
    ///
    /// Values, and all codes of 8 bits, are those of ``minimum``. Attention averages values over tokens, where roundings cancel, but
    /// what is cut off does not: on a language model, values that are fitted cost more.
    case leastSquares
    /// A zero point is the code that stands for 0, as KV4 and KV8 of QServe (Lin et al., 2024) and LServe publish it:
    ///
    ///     s = half((max − min)/(2ᵇ − 1))    z = half(−(2ᵇ − 1)·min/(max − min))    code = clamp(nearest(x/s + z), 0, 2ᵇ − 1)
    ///     x′ = s·(code − z)
    ///
    /// The zero point is stored in half precision, which has 11 bits. With 8-bit codes, rows whose distance from 0 is more than
    /// about eight times their range thus lose precision, at worst all of it: a row of 300…301 is stored as one value. The
    /// released kernel masks codes to their bits where this clamps, which differs where rounding of s and z pushes a value
    /// beyond the last code.
    case zeroPoint

    var offsetKind: TokenOffset {
        switch self {
        case .minimum, .leastSquares: .minimum
        case .zeroPoint: .zeroPoint
        }
    }
}

/// The metadata that a cache stores about each logical page, so that pages can be ranked without reading their keys.
///
/// Metadata describe the keys as they are stored, after quantisation, so bounds hold for the keys that attention reads. They
/// are rounded outwards and stay bounds in every format, for keys within the range of half precision. Scores of 8-bit metadata
/// are rounded upwards too, so no product of the query with a key of the page exceeds the page's score. Scores of float formats
/// are sums in single precision, with its usual rounding.
public struct PageMetadata: Hashable, Sendable {
    /// The statistic that is stored per channel.
    public enum Kind: String, Sendable, CaseIterable {
        /// The largest and the smallest value: Σ max(q·max, q·min) bounds every score of the page (Quest, LServe).
        case minMax
        /// The mean: q·mean is the mean score of the page.
        case mean
    }

    public let kind: Kind
    /// Tokens per logical page; divides the page size of the cache.
    public let logicalPageSize: Int
    /// `.float32`, `.float16` or `.int8`, which has a scale and an offset per logical page.
    public let format: KVFormat

    public init(_ kind: Kind = .minMax, logicalPageSize: Int = 16, format: KVFormat = .float16) {
        self.kind = kind
        self.logicalPageSize = logicalPageSize
        self.format = format
    }
}
