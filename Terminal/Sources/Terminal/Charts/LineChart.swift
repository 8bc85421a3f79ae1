import Foundation

/// Curves over a number, such as speed-up over density, beside the ideal curve.
public struct LineChart: Sendable {
    public struct Series: Sendable {
        public var name: String
        public var points: [(x: Double, y: Double)]

        public init(_ name: String, _ points: [(x: Double, y: Double)]) {
            self.name = name
            self.points = points
        }
    }

    public struct Axis: Sendable {
        public var title: String
        public var scale: AxisScale
        public var style: AxisStyle
        /// Whether a linear axis begins at 0 where all values are above. Without, small changes of large values can be seen.
        public var includesZero: Bool

        public init(
            _ title: String, scale: AxisScale = .linear, style: AxisStyle = .number, includesZero: Bool = true
        ) {
            self.title = title
            self.scale = scale
            self.style = style
            self.includesZero = includesZero
        }
    }

    /// The values that would be reached if only the skipped work mattered, such as 1 / density.
    public struct Ideal: Sendable {
        public var name: String
        public var function: @Sendable (Double) -> Double

        public init(_ name: String, _ function: @escaping @Sendable (Double) -> Double) {
            self.name = name
            self.function = function
        }
    }

    public var title: String
    public var subtitle: String
    public var xAxis: Axis
    public var yAxis: Axis
    public var series: [Series]
    public var ideal: Ideal?

    public init(title: String, subtitle: String = "", xAxis: Axis, yAxis: Axis, series: [Series], ideal: Ideal? = nil) {
        self.title = title
        self.subtitle = subtitle
        self.xAxis = xAxis
        self.yAxis = yAxis
        self.series = series
        self.ideal = ideal
    }

    // MARK: Drawing

    public func svg() -> String {
        var canvas = SVGCanvas(width: 760)
        var keys = series.enumerated().map { (SVGCanvas.Key.marker, $1.name, $0) }
        if let ideal { keys.append((.dashes, ideal.name, 0)) }
        let top = canvas.heading(title: title, subtitle: subtitle, keys: keys) + 10

        let curves = series.map { one in
            one.points.filter { ChartAxis.canShow($0.x, xAxis.scale) && ChartAxis.canShow($0.y, yAxis.scale) }
                .sorted { $0.x < $1.x }
        }
        let x = ChartAxis(values: curves.joined().map(\.x), scale: xAxis.scale, includingZero: xAxis.includesZero)
        let y = ChartAxis(
            values: curves.joined().map(\.y) + idealHeights(beside: curves), scale: yAxis.scale,
            includingZero: yAxis.includesZero)
        let yLabelWidth = y.ticks.map { SVGCanvas.textWidth(yAxis.style.text($0), size: 11) }.max() ?? 0
        let frame = Frame(x: x, y: y, left: 50 + yLabelWidth, right: canvas.width - 30, top: top, bottom: top + 340)

        drawAxes(on: &canvas, frame)
        canvas.clipRectangle(id: "plot", x: frame.left, y: top, width: frame.right - frame.left, height: frame.bottom - top)
        if let ideal {
            let points = (0...120).compactMap { step -> (x: Double, y: Double)? in
                let value = x.value(at: Double(step) / 120)
                let height = ideal.function(value)
                return ChartAxis.canShow(height, yAxis.scale) ? frame.point(value, height) : nil
            }
            canvas.path(points, color: SVGCanvas.Ink.axis, width: 1.5, dash: "5 4", clip: "plot")
        }
        for (index, curve) in curves.enumerated() {
            let points = curve.map { frame.point($0.x, $0.y) }
            canvas.path(points, color: SVGCanvas.color(index), width: 2)
            for point in points { canvas.marker(index, x: point.x, y: point.y) }
        }
        return canvas.document(height: frame.bottom + 60, title: title)
    }

    /// The ideal extends the picture only a little above the highest point: it is often infinite, and would flatten the others.
    private func idealHeights(beside curves: [[(x: Double, y: Double)]]) -> [Double] {
        guard let ideal, let highest = curves.joined().map(\.y).max() else { return [] }
        return curves.joined().map { ideal.function($0.x) }.filter { $0.isFinite }.map { min($0, 1.25 * highest) }
    }

    private struct Frame {
        let x: ChartAxis
        let y: ChartAxis
        let left: Double
        let right: Double
        let top: Double
        let bottom: Double

        func point(_ xValue: Double, _ yValue: Double) -> (x: Double, y: Double) {
            // The clip hides points far outside the frame, and the limits keep absurd numbers out of the file.
            let height = max(-1, min(2, y.position(yValue)))
            return (left + x.position(xValue) * (right - left), bottom - height * (bottom - top))
        }
    }

    private func drawAxes(on canvas: inout SVGCanvas, _ frame: Frame) {
        let (left, right, top, bottom) = (frame.left, frame.right, frame.top, frame.bottom)
        let ink = SVGCanvas.Ink.self
        for tick in frame.x.ticks {
            let x = frame.point(tick, frame.y.range.lowerBound).x
            canvas.line(from: (x, top), to: (x, bottom), color: ink.grid)
            canvas.text(xAxis.style.text(tick), x: x, y: bottom + 18, size: 11, color: ink.softText, anchor: .middle)
        }
        for tick in frame.y.ticks {
            let y = frame.point(frame.x.range.lowerBound, tick).y
            canvas.line(from: (left, y), to: (right, y), color: ink.grid)
            canvas.text(yAxis.style.text(tick), x: left - 8, y: y + 4, size: 11, color: ink.softText, anchor: .end)
        }
        canvas.line(from: (left, top), to: (left, bottom), color: ink.axis)
        canvas.line(from: (left, bottom), to: (right, bottom), color: ink.axis)
        let (centre, middle) = ((left + right) / 2, (top + bottom) / 2)
        canvas.text(xAxis.title, x: centre, y: bottom + 42, color: ink.softText, anchor: .middle)
        canvas.text(yAxis.title, x: 24, y: middle, color: ink.softText, anchor: .middle, isUpright: true)
    }
}
