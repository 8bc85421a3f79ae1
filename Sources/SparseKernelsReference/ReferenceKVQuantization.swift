/// LServe's fine-grained quantisation of one token of one head, KV4 and KV8, in `Double`. All channels share a scale and a zero
/// point.
///
///     s = fp16((max − min)/(2ᵇ − 1))      z = fp16(−min·(2ᵇ − 1)/(max − min))      z: from the unrounded scale
///     q = clamp(rne(x/s + z), 0…2ᵇ − 1)   x′ = s·(q − z)
///
/// The released INT4 store saturates to 0…255 and then keeps four bits, so that 16, which can result only from the rounding of
/// s and z, becomes 0. Here it becomes 15. A row of equal values is 0/0 there. Here such a row, and one whose spread is too
/// small for an fp16 scale or zero point, is stored as its largest value: codes are 0, z = ∓2ᵏ and s = fp16(|max|)·2⁻ᵏ, where k
/// ≤ 14 is as large as possible with s a normal number.
///
/// - Source: omniserve (mit-han-lab), `kv_quant_granularity = fine_grained`; LServe, arXiv 2502.14866, section 3.
public struct ReferenceKVQuantization: Sendable {
    /// The scale and the zero point, before and after rounding to fp16.
    public let scaleQuotient: Double
    public let scale: Double
    public let zeroQuotient: Double
    public let zero: Double
    /// x/s + z, before rounding and clamping. A `Float` implementation may round differently near a half.
    public let codeQuotients: [Double]
    public let codes: [Int]

    /// - Parameters:
    ///   - row: the channels of a key or value, finite, and at least one.
    ///   - bits: 4 or 8.
    public init(_ row: [Double], bits: Int) {
        let steps = Double(1 << bits - 1)
        let (low, high) = (row.min() ?? 0, row.max() ?? 0)
        scaleQuotient = (high - low) / steps
        zeroQuotient = -low * steps / (high - low)
        var (scale, zero) = (Self.half(scaleQuotient), Self.half(zeroQuotient))
        if !(scale > 0 && abs(zero) < .infinity) {
            let value = min(Self.half(abs(high)), 65504)
            let k = value == 0 ? 0 : max(0, min(14, value.exponent + 14))
            (scale, zero) = (value * Double(sign: .plus, exponent: -Int(k), significand: 1), Double(1 << k))
            (self.scale, self.zero) = (scale, value == 0 ? 0 : high > 0 ? -zero : zero)
            codeQuotients = row.map { _ in 0 }
            codes = row.map { _ in 0 }
            return
        }
        scale = min(scale, 65504)
        self.scale = scale
        self.zero = zero
        codeQuotients = row.map { $0 / scale + zero }
        codes = codeQuotients.map { Int(max(0, min(steps, $0.rounded(.toNearestOrEven)))) }
    }

    /// x′ = s·(q − z).
    public var values: [Double] { codes.map { scale * (Double($0) - zero) } }

    /// x′ as LServe's INT4 kernel decodes it, with one fused multiply-add of halves: fp16(q·s + fp16(−s·z)).
    public var fusedHalfValues: [Double] {
        let offset = Self.half(-scale * zero)
        return codes.map { Self.half(Double($0) * scale + offset) }
    }

    /// The nearest fp16 value, ties to even; infinite from 65520 on.
    public static func half(_ value: Double) -> Double {
        abs(value) >= 65520 ? value * .infinity : ReferenceProgressiveQuantization.half(value)
    }
}

/// The cache's own rule for one token of one head, in `Double`. Codes count steps above the smallest element.
///
///     m = min, rounded down to fp16   s = (max − m)/(2ᵇ − 1), rounded up to fp16   code = rne((x − m)/s)   x′ = s·code + m
public struct ReferenceKVMinimum: Sendable {
    public let minimum: Double
    public let scale: Double
    /// (x − m)/s, before rounding. A `Float` implementation may round differently near a half.
    public let codeQuotients: [Double]
    public let codes: [Int]

    /// - Parameters:
    ///   - row: the channels of a key or value, finite in fp16, and at least one.
    ///   - bits: 4 or 8.
    public init(_ row: [Double], bits: Int) {
        let steps = Double(1 << bits - 1)
        let (low, high) = (row.min() ?? 0, row.max() ?? 0)
        let start = -Self.halfAbove(-low)
        let step = Self.halfAbove((high - start) / steps)
        (minimum, scale) = (start, step)
        codeQuotients = row.map { step == 0 ? 0 : ($0 - start) / step }
        codes = codeQuotients.map { Int(max(0, min(steps, $0.rounded(.toNearestOrEven)))) }
    }

    /// x′ = s·code + m.
    public var values: [Double] { codes.map { scale * Double($0) + minimum } }

    /// The smallest finite fp16 value that is at least `value`.
    public static func halfAbove(_ value: Double) -> Double {
        if value == 0 { return 0 }
        // 11 bits, with a unit of at least 2⁻²⁴ for subnormals.
        let unit = Double(sign: .plus, exponent: max(value.exponent, -14) - 10, significand: 1)
        return max(-65504, min(65504, (value / unit).rounded(.up) * unit))
    }
}

/// The least squared error of a row whose elements are s·code + m, with codes of some bits and any s and m, in `Double`.
///
/// It is searched for: from lines that cut off up to 16 percent of the range at either end, codes and line are fitted to each other in
/// turn, until nothing changes.
public struct ReferenceKVLeastSquares: Sendable {
    public let squaredError: Double

    /// - Parameters:
    ///   - row: the channels of a key or value, finite, and at least one.
    ///   - bits: of a code.
    public init(_ row: [Double], bits: Int) {
        let limit = Double(1 << bits - 1)
        let count = Double(row.count)
        let (low, high) = (row.min() ?? 0, row.max() ?? 0)
        let mean = row.reduce(0, +) / count
        var least = row.reduce(0) { $0 + ($1 - mean) * ($1 - mean) }
        guard high > low else {
            squaredError = least
            return
        }
        for cuts in 0..<81 {
            let (bottom, top) = (Double(cuts % 9) * 0.02, Double(cuts / 9) * 0.02)
            var (offset, scale) = (low + bottom * (high - low), (high - low) * (1 - bottom - top) / limit)
            var before = Double.infinity
            while scale > 0 {
                let codes = row.map { max(0, min(limit, (($0 - offset) / scale).rounded())) }
                let rests = zip(row, codes).map { $0 - scale * $1 - offset }
                let error = rests.reduce(0) { $0 + $1 * $1 }
                if !(error < before) { break }
                before = error
                let meanCode = codes.reduce(0, +) / count
                let spread = codes.reduce(0) { $0 + ($1 - meanCode) * ($1 - meanCode) }
                scale = spread > 0 ? zip(row, codes).reduce(0) { $0 + ($1.0 - mean) * ($1.1 - meanCode) } / spread : 0
                offset = mean - scale * meanCode
            }
            least = min(least, before)
        }
        squaredError = least
    }
}

/// The estimators of Twilight's released accuracy code, operation by operation in `Float`.
///
/// - Source: tsinghua-ideal/Twilight, `twilight/pyimpl/quantize.py`.
public enum ReferenceKeyEstimate {
    /// `min_max_per_token_quant_kv`: s = max(max − min, 10⁻⁹)/(2ᵇ − 1), x′ = clamp(rne((x − min)/s), 0…2ᵇ − 1)·s + min.
    public static func minMax(_ row: [Float], bits: Int) -> [Float] {
        let steps = Float(1 << bits - 1)
        let (low, high) = (row.min() ?? 0, row.max() ?? 0)
        let scale = max(high - low, 1e-9) / steps
        return row.map { max(0, min(steps, (($0 - low) / scale).rounded(.toNearestOrEven))) * scale + low }
    }

    /// `max_per_token_quant_kv`: s = max(max |x|/(2ᵇ − 1), 10⁻⁶), x′ = rne(x/s)·s, signed; only the sign for one bit.
    ///
    /// The smoothed variant first subtracts the smallest value of each channel, over all tokens, and does not add it again.
    public static func absMax(_ row: [Float], bits: Int, subtracting channelMinima: [Float]? = nil) -> [Float] {
        let smoothed = channelMinima.map { zip(row, $0).map { $0 - $1 } } ?? row
        if bits == 1 { return smoothed.map { $0 > 0 ? 1 : $0 < 0 ? -1 : 0 } }
        let scale = max((smoothed.map { abs($0) }.max() ?? 0) / Float(1 << bits - 1), 1e-6)
        return smoothed.map { ($0 / scale).rounded(.toNearestOrEven) * scale }
    }
}
