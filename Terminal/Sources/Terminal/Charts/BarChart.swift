import Foundation

/// Horizontal bars in groups: the fraction of the roof that each case reaches, one bar per instruction set or thread count.
///
/// Bars are horizontal because names of cases are long and many: the picture grows downwards and stays legible.
public struct BarChart: Sendable {
    public struct Series: Sendable {
        public var name: String
        /// One value per category; nil leaves the place empty.
        public var values: [Double?]

        public init(_ name: String, _ values: [Double?]) {
            self.name = name
            self.values = values
        }
    }

    public var title: String
    public var subtitle: String
    public var axisTitle: String
    public var axisStyle: AxisStyle
    public var categories: [String]
    public var series: [Series]
    /// A strong line across all bars, such as the roof.
    public var limit: (value: Double, name: String)?

    public init(
        title: String, subtitle: String = "", axisTitle: String = "", axisStyle: AxisStyle = .percent,
        categories: [String], series: [Series], limit: (value: Double, name: String)? = (1, "roof")
    ) {
        for one in series {
            precondition(
                one.values.count == categories.count, "\(one.name): \(one.values.count) values, \(categories.count) categories")
        }
        self.title = title
        self.subtitle = subtitle
        self.axisTitle = axisTitle
        self.axisStyle = axisStyle
        self.categories = categories
        self.series = series
        self.limit = limit
    }

    // MARK: Drawing

    private static let barHeight = 13.0
    private static let barGap = 2.0
    private static let groupGap = 13.0

    public func svg() -> String {
        var canvas = SVGCanvas(width: 860)
        let keys = series.enumerated().map { (SVGCanvas.Key.bar, $1.name, $0) }
        let top = canvas.heading(title: title, subtitle: subtitle, keys: keys) + (limit == nil ? 8 : 24)

        let values = series.flatMap(\.values).compactMap { $0 } + (limit.map { [$0.value] } ?? [])
        let axis = ChartAxis(values: values, scale: .linear, includingZero: true)
        let labelWidth = categories.map { SVGCanvas.textWidth($0, size: 12) }.max() ?? 0
        let left = 20 + min(max(labelWidth, 60), 380) + 10
        let right = canvas.width - 50
        let groupHeight = Double(max(series.count, 1)) * (Self.barHeight + Self.barGap) - Self.barGap
        let bottom = top + Double(categories.count) * (groupHeight + Self.groupGap) + Self.groupGap / 2
        func x(_ value: Double) -> Double { left + axis.position(value) * (right - left) }

        for tick in axis.ticks {
            canvas.line(from: (x(tick), top), to: (x(tick), bottom), color: SVGCanvas.Ink.grid)
            canvas.text(
                axisStyle.text(tick), x: x(tick), y: bottom + 18, size: 11, color: SVGCanvas.Ink.softText, anchor: .middle)
        }
        if let limit { drawLimit(limit, on: &canvas, x: x(limit.value), top: top, bottom: bottom) }
        for (row, category) in categories.enumerated() {
            let y = top + Self.groupGap * 0.75 + Double(row) * (groupHeight + Self.groupGap)
            canvas.text(category, x: left - 10, y: y + groupHeight / 2 + 4, anchor: .end)
            for (index, one) in series.enumerated() {
                guard let value = one.values[row], value.isFinite else { continue }
                let barTop = y + Double(index) * (Self.barHeight + Self.barGap)
                drawBar(value, index, on: &canvas, zero: x(0), end: x(value), y: barTop)
            }
        }
        canvas.line(from: (x(0), top), to: (x(0), bottom), color: SVGCanvas.Ink.axis)
        var height = bottom + 32
        if !axisTitle.isEmpty {
            canvas.text(axisTitle, x: (left + right) / 2, y: bottom + 40, color: SVGCanvas.Ink.softText, anchor: .middle)
            height += 24
        }
        return canvas.document(height: height, title: title)
    }

    private func drawLimit(
        _ limit: (value: Double, name: String), on canvas: inout SVGCanvas, x: Double, top: Double, bottom: Double
    ) {
        canvas.line(from: (x, top - 6), to: (x, bottom), color: SVGCanvas.Ink.limit, width: 1.5, dash: "6 3")
        canvas.text(limit.name, x: x, y: top - 11, size: 11, anchor: .middle, isBold: true)
    }

    /// The number is after the bar, on a white ground so that grid and limit do not cross it.
    private func drawBar(_ value: Double, _ index: Int, on canvas: inout SVGCanvas, zero: Double, end: Double, y: Double) {
        let label = axisStyle.text(Double(Format.fixed(value, decimals: abs(value) < 0.01 ? 3 : 2)) ?? value)
        canvas.rectangle(
            x: min(zero, end), y: y, width: abs(end - zero), height: Self.barHeight, fill: SVGCanvas.color(index), radius: 1.5)
        let edge = max(zero, end)
        canvas.rectangle(
            x: edge + 2, y: y, width: SVGCanvas.textWidth(label, size: 10) + 4, height: Self.barHeight, fill: "#ffffff")
        canvas.text(label, x: edge + 4, y: y + Self.barHeight - 3, size: 10, color: SVGCanvas.Ink.softText)
    }
}
