import Foundation

/// The spacing of the values of an axis.
public enum AxisScale: Sendable {
    case linear
    case logarithmic
}

/// The format of the values of an axis.
public enum AxisStyle: Sendable {
    case number
    /// 0.25 as 25 %.
    case percent
    /// 4 as 4×.
    case times

    func text(_ value: Double) -> String {
        switch self {
        case .number: Self.short(value)
        case .percent: Self.short(value * 100) + " %"
        case .times: Self.short(value) + "×"
        }
    }

    /// Up to four significant digits without trailing zeros.
    private static func short(_ value: Double) -> String {
        String(format: "%.4g", value)
    }
}

/// The range and the ticks of an axis, with round numbers at the ends.
struct ChartAxis {
    let scale: AxisScale
    let range: ClosedRange<Double>
    let ticks: [Double]

    /// Values that the scale cannot show are ignored.
    init(values: [Double], scale: AxisScale, includingZero: Bool = false) {
        let shown = values.filter { Self.canShow($0, scale) } + (includingZero && scale == .linear ? [0] : [])
        let low = shown.min() ?? (scale == .linear ? 0 : 1)
        let high = shown.max() ?? (scale == .linear ? 1 : 10)
        self.scale = scale
        switch scale {
        case .linear:
            let step = Self.step(for: high > low ? high - low : max(abs(high), 1))
            let first = (low / step + 1e-9).rounded(.down)
            let last = max((high / step - 1e-9).rounded(.up), first + 1)
            ticks = (0...Int(last - first)).map { (first + Double($0)) * step }
        case .logarithmic:
            ticks = Self.logarithmicTicks(low: low, high: high)
        }
        range = ticks[0]...ticks[ticks.count - 1]
    }

    static func canShow(_ value: Double, _ scale: AxisScale) -> Bool {
        value.isFinite && (scale == .linear || value > 0)
    }

    /// The position of a value between the ends of the axis, 0 to 1.
    func position(_ value: Double) -> Double {
        switch scale {
        case .linear: (value - range.lowerBound) / (range.upperBound - range.lowerBound)
        case .logarithmic: log(value / range.lowerBound) / log(range.upperBound / range.lowerBound)
        }
    }

    /// The inverse of `position`.
    func value(at position: Double) -> Double {
        switch scale {
        case .linear: range.lowerBound + position * (range.upperBound - range.lowerBound)
        case .logarithmic: range.lowerBound * pow(range.upperBound / range.lowerBound, position)
        }
    }

    /// 1, 2 or 5 times a power of ten, such that there are four to eight steps in the span.
    private static func step(for span: Double) -> Double {
        let power = pow(10, (log10(span / 5)).rounded(.down))
        let part = span / 5 / power
        return power * (part <= 1.5 ? 1 : part <= 3 ? 2 : part <= 7 ? 5 : 10)
    }

    /// The ticks 1, 2, 5, 10, … that enclose the values; for more than three decades only powers of ten.
    private static func logarithmicTicks(low: Double, high: Double) -> [Double] {
        let factors: [Double] = log10(high / low) > 3 ? [1] : [1, 2, 5]
        let exponents = Int(log10(low).rounded(.down)) - 1...Int(log10(high).rounded(.up)) + 1
        let all = exponents.flatMap { exponent in factors.map { $0 * pow(10, Double(exponent)) } }
        let first = all.lastIndex { $0 <= low * 1.000_001 } ?? 0
        var last = all.firstIndex { $0 >= high * 0.999_999 } ?? all.count - 1
        if last == first { last += 1 }
        return Array(all[first...last])
    }
}
