/// QServe's progressive quantisation of one row of a weight, in `Double`: arXiv 2405.04532, section 4.1, with the zeros and the
/// clamp of deepcompressor's "PostScale" form.
///
/// Numbers that are rounded to integers are also stored before rounding, so that tests can allow `Float` code to differ at near
/// ties.
public struct ReferenceProgressiveQuantization: Sendable {
    public struct Group: Sendable {
        /// The scale and the zero, before and after rounding to integers (per channel: to fp16).
        public let scaleQuotient: Double
        public let scale: Double
        public let zeroQuotient: Double
        public let zero: Double
    }

    /// s1; it is 1 per channel.
    public let channelScale: Double
    public let groups: [Group]
    /// (w + zero) / s2, before rounding and clamping.
    public let codeQuotients: [Double]
    public let codes: [Int]
    /// s2 · q − zero.
    public let brackets: [Double]

    /// The values that the row is stored as.
    public var values: [Double] { brackets.map { $0 * channelScale } }

    /// - Parameters:
    ///   - row: finite weights.
    ///   - groupSize: weights per group; nil means one level, per channel.
    ///   - range: the largest magnitude after level 1.
    public init(_ row: [Float], groupSize: Int?, range: Double) {
        let weights = row.map { Double($0) }
        var levelOne = weights
        var channelScale = 1.0
        if groupSize != nil {
            channelScale = Self.half((weights.map { abs($0) }.max() ?? 0) / range)
            if channelScale == 0 { channelScale = 1 }
            levelOne = weights.map { max(-range, min(range, $0 / channelScale)) }
        }
        let round = groupSize == nil ? Self.half : { $0.rounded(.toNearestOrEven) }

        var groups: [Group] = []
        var (quotients, codes, brackets): ([Double], [Int], [Double]) = ([], [], [])
        let size = groupSize ?? row.count
        for start in stride(from: 0, to: row.count, by: size) {
            let members = levelOne[start..<min(row.count, start + size)]
            let (low, high) = (members.min() ?? 0, members.max() ?? 0)
            let rounded = round((high - low) / 15)
            let group = Group(
                scaleQuotient: (high - low) / 15, scale: rounded == 0 ? 1 : rounded, zeroQuotient: -low, zero: round(-low))
            groups.append(group)
            for w in members {
                let quotient = (w + group.zero) / group.scale
                let code = max(0, min(15, quotient.rounded(.toNearestOrEven)))
                quotients.append(quotient)
                codes.append(Int(code))
                brackets.append(group.scale * code - group.zero)
            }
        }
        self.channelScale = channelScale
        self.groups = groups
        codeQuotients = quotients
        self.codes = codes
        self.brackets = brackets
    }

    /// The nearest fp16 value, ties to even: 11 significant bits, fewer below 2⁻¹⁴.
    public static func half(_ value: Double) -> Double {
        if value == 0 || !value.isFinite { return value }
        let exponent = max(-14, Int(value.exponent))
        let unit = Double(sign: .plus, exponent: exponent - 10, significand: 1)
        return (value / unit).rounded(.toNearestOrEven) * unit
    }
}
