public import SparseKernels

/// The rule by which a quantised layer codes one token's activations, operation by operation as in the released engines.
///
/// With x of element type X, and round(·) the rounding to X (none for `Float`):
///
///     v = round(round(x + shift) / smooth)          one division in Float; the shift for `uint4` only, before the division
///     int4, uint4, int8PerGroup, per group:
///         s = amax · (1/limit)                      limit 7, 15, 127; a product with the Float reciprocal
///         code = rne(v · (1/s)), saturated          stored scale: round(s), though codes come from the unrounded s
///     int8PerToken:
///         s = round(amax / 127)                     code = rne(v / s), saturated: the stored scale divides
///     fp4, per group:
///         s = min(amax · (1/6), 448)                code = E2M1, nearest even, saturated, of v · (1/s); stored scale: E4M3 nearest of s
///         if 0 < s < 2⁻⁹, s = 2⁻⁹                   the smallest E4M3; the engine stores 0 or 2⁻⁹ there, and codes from the smaller s
///
/// rne is rounding to nearest even, and amax is the largest |v|. Where s is 0 or subnormal, so that 1/s might overflow, scale
/// and codes are 0. Where a value is not finite, the scale is NaN, and so is the output.
///
/// - Source: nunchaku, `quantize_w4a4_from_fpsum_warp` and its fp4 sibling; QServe, per-token INT8 activations.
public struct ReferenceActivationQuantization: Sendable {
    public let format: ActivationFormat
    /// Consecutive elements that share a scale; nil means the whole row.
    public let groupSize: Int?

    /// The rule of a layer with weights of a format: groups of the weights, or 128 elements where the weights have none.
    public init(_ format: ActivationFormat, weight: WeightFormat) {
        self.format = format
        groupSize = format == .int8PerToken ? nil : weight.groupSize ?? 128
    }

    /// The coded activations of one token.
    public struct Row: Sendable {
        /// v of every element, which `.float` multiplies.
        public var values: [Float]
        /// The integers; for E2M1 twice the value. Empty for `.float`.
        public var codes: [Int]
        /// Stored scales, one per group. Empty for `.float`.
        public var scales: [Float]
    }

    /// Codes a row of activations.
    public func callAsFunction<X: AttentionElement>(_ x: [X], smooth: [Float]? = nil) -> Row {
        var values = x.map(\.floatValue)
        if case .uint4(let shift) = format { values = values.map { X($0 + shift).floatValue } }
        if let smooth { values = values.indices.map { X(values[$0] / smooth[$0]).floatValue } }
        var row = Row(values: values, codes: [], scales: [])
        if format == .float { return row }
        let size = groupSize ?? values.count
        for start in stride(from: 0, to: values.count, by: size) {
            let group = Array(values[start..<min(values.count, start + size)])
            let (quotients, scale) = scaled(group, as: X.self)
            row.scales.append(scale)
            row.codes += quotients.map(code)
        }
        return row
    }

    /// The quotients from which a group's codes are rounded, and the group's stored scale.
    private func scaled<X: AttentionElement>(_ group: [Float], as type: X.Type) -> (quotients: [Float], scale: Float) {
        let zeros = [Float](repeating: 0, count: group.count)
        guard group.allSatisfy(\.isFinite) else { return (zeros, .nan) }
        let amax = group.reduce(0) { max($0, abs($1)) }
        let scale: Float
        let stored: Float
        switch format {
        case .int8PerToken:
            scale = X(amax / 127).floatValue
            return scale < .leastNormalMagnitude ? (zeros, 0) : (group.map { $0 / scale }, scale)
        case .fp4:
            let quotient = min(amax * (1 / 6), 448)
            scale = quotient == 0 ? 0 : max(quotient, 0x1p-9)
            stored = Self.nearestE4M3(scale)
        case .uint4:
            scale = amax * (1 / 15)
            stored = X(scale).floatValue
        case .int8PerGroup:
            scale = amax * (1 / 127)
            stored = X(scale).floatValue
        default:
            scale = amax * (1 / 7)
            stored = X(scale).floatValue
        }
        let reciprocal = 1 / scale
        return scale < .leastNormalMagnitude ? (zeros, 0) : (group.map { $0 * reciprocal }, stored)
    }

    /// The code to which a quotient is rounded.
    private func code(of quotient: Float) -> Int {
        func nearest(_ range: ClosedRange<Float>) -> Int {
            Int(min(max(quotient.rounded(.toNearestOrEven), range.lowerBound), range.upperBound))
        }
        switch format {
        case .float: return 0
        case .int4: return nearest(-8...7)
        case .uint4: return nearest(0...15)
        case .int8PerGroup, .int8PerToken: return nearest(-127...127)
        case .fp4: return Self.doubledE2M1(quotient)
        }
    }

    /// Twice the E2M1 value nearest to x; ties go to the even code, and values beyond 6 saturate.
    public static func doubledE2M1(_ x: Float) -> Int {
        let magnitude = Double(abs(x))
        // 0, ½, 1, 1½, 2, 3, 4, 6.
        let step: Double = magnitude < 2 ? 0.5 : magnitude < 4 ? 1 : 2
        let doubled = Int(2 * min(step * (magnitude / step).rounded(.toNearestOrEven), 6))
        return x < 0 ? -doubled : doubled
    }

    /// The E4M3 value nearest to x in 0…448, ties to even: three mantissa bits, subnormal below 2⁻⁶.
    public static func nearestE4M3(_ x: Float) -> Float {
        if x == 0 { return 0 }
        let step = Double(sign: .plus, exponent: max(Int(x.exponent), -6) - 3, significand: 1)
        return Float((Double(x) / step).rounded(.toNearestOrEven) * step)
    }
}
