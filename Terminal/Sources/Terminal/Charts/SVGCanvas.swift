import Foundation

/// The few SVG elements that a chart needs, collected in drawing order.
///
/// Everything is written out, with presentation attributes instead of a style sheet and a white ground instead of transparency,
/// so that the picture looks the same in a README, on a dark page and in a slide. Equal input gives equal bytes.
struct SVGCanvas {
    enum Anchor: String { case start, middle, end }

    enum Ink {
        static let text = "#24292f"
        static let softText = "#57606a"
        static let axis = "#8c959f"
        static let grid = "#e4e7eb"
        static let limit = "#24292f"
        /// Colours that the colour-blind can distinguish in this order; line charts add markers.
        static let series = ["#2b6cb0", "#e08a1e", "#2f9e6e", "#b0487e", "#7263b8", "#6b7680"]
    }

    let width: Double
    private var elements: [String] = []

    init(width: Double) {
        self.width = width
    }

    static func color(_ series: Int) -> String {
        Ink.series[series % Ink.series.count]
    }

    // MARK: Elements

    mutating func rectangle(x: Double, y: Double, width: Double, height: Double, fill: String, radius: Double = 0) {
        let corner = radius > 0 ? " rx=\"\(number(radius))\"" : ""
        elements.append(
            "<rect x=\"\(number(x))\" y=\"\(number(y))\" width=\"\(number(width))\" height=\"\(number(height))\"\(corner)"
                + " fill=\"\(fill)\"/>")
    }

    mutating func line(
        from start: (x: Double, y: Double), to end: (x: Double, y: Double), color: String, width: Double = 1,
        dash: String? = nil
    ) {
        let pattern = dash.map { " stroke-dasharray=\"\($0)\"" } ?? ""
        elements.append(
            "<line x1=\"\(number(start.x))\" y1=\"\(number(start.y))\" x2=\"\(number(end.x))\" y2=\"\(number(end.y))\""
                + " stroke=\"\(color)\" stroke-width=\"\(number(width))\"\(pattern)/>")
    }

    mutating func path(
        _ points: [(x: Double, y: Double)], color: String, width: Double, dash: String? = nil, clip: String? = nil
    ) {
        guard points.count > 1 else { return }
        let list = points.map { "\(number($0.x)),\(number($0.y))" }.joined(separator: " ")
        let extra = (dash.map { " stroke-dasharray=\"\($0)\"" } ?? "") + (clip.map { " clip-path=\"url(#\($0))\"" } ?? "")
        elements.append(
            "<polyline points=\"\(list)\" fill=\"none\" stroke=\"\(color)\" stroke-width=\"\(number(width))\""
                + " stroke-linejoin=\"round\" stroke-linecap=\"round\"\(extra)/>")
    }

    mutating func clipRectangle(id: String, x: Double, y: Double, width: Double, height: Double) {
        elements.append(
            "<clipPath id=\"\(id)\"><rect x=\"\(number(x))\" y=\"\(number(y))\" width=\"\(number(width))\""
                + " height=\"\(number(height))\"/></clipPath>")
    }

    /// A filled marker at a point. Its shape depends on the series, like its colour.
    mutating func marker(_ series: Int, x: Double, y: Double) {
        let fill = Self.color(series)
        let outline: [(Double, Double)]
        switch series % 4 {
        case 0:
            elements.append(
                "<circle cx=\"\(number(x))\" cy=\"\(number(y))\" r=\"4\" fill=\"\(fill)\" stroke=\"#ffffff\"/>")
            return
        case 1: outline = [(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)]
        case 2: outline = [(0, -5), (5, 0), (0, 5), (-5, 0)]
        default: outline = [(0, -4.8), (4.8, 3.6), (-4.8, 3.6)]
        }
        let list = outline.map { "\(number(x + $0.0)),\(number(y + $0.1))" }.joined(separator: " ")
        elements.append("<polygon points=\"\(list)\" fill=\"\(fill)\" stroke=\"#ffffff\"/>")
    }

    mutating func text(
        _ text: String, x: Double, y: Double, size: Double = 12, color: String = Ink.text, anchor: Anchor = .start,
        isBold: Bool = false, isUpright: Bool = false
    ) {
        let weight = isBold ? " font-weight=\"600\"" : ""
        let turn = isUpright ? " transform=\"rotate(-90 \(number(x)) \(number(y)))\"" : ""
        elements.append(
            "<text x=\"\(number(x))\" y=\"\(number(y))\" font-size=\"\(number(size))\" fill=\"\(color)\""
                + " text-anchor=\"\(anchor.rawValue)\"\(weight)\(turn)>\(Self.escape(text))</text>")
    }

    // MARK: Title and legend

    enum Key { case bar, marker, dashes }

    /// Draws title, subtitle and legend from the top down, on the left. Returns their height.
    mutating func heading(title: String, subtitle: String, keys: [(key: Key, name: String, series: Int)]) -> Double {
        let left = 20.0
        var y = 32.0
        text(title, x: left, y: y, size: 17, isBold: true)
        if !subtitle.isEmpty {
            y += 20
            text(subtitle, x: left, y: y, size: 12, color: Ink.softText)
        }
        y += 24
        var x = left
        for (key, name, series) in keys {
            let needed = 24 + Self.textWidth(name, size: 12)
            if x > left, x + needed > width - left {
                x = left
                y += 20
            }
            let middle = y - 4
            switch key {
            case .bar: rectangle(x: x, y: middle - 5, width: 16, height: 10, fill: Self.color(series), radius: 1.5)
            case .marker:
                line(from: (x, middle), to: (x + 18, middle), color: Self.color(series), width: 2)
                marker(series, x: x + 9, y: middle)
            case .dashes: line(from: (x, middle), to: (x + 18, middle), color: Ink.axis, width: 1.5, dash: "5 4")
            }
            text(name, x: x + 24, y: y)
            x += needed + 14
        }
        return keys.isEmpty ? y - 12 : y + 14
    }

    // MARK: Result

    /// The whole file. An element repeats the title for screen readers.
    func document(height: Double, title: String) -> String {
        let size = "\(number(width)) \(number(height))"
        return """
            <svg xmlns="http://www.w3.org/2000/svg" width="\(number(width))" height="\(number(height))" viewBox="0 0 \(size)" \
            role="img" font-family="Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif">
            <title>\(Self.escape(title))</title>
            <rect width="100%" height="100%" fill="#ffffff"/>
            \(elements.joined(separator: "\n"))
            </svg>

            """
    }

    static func escape(_ text: String) -> String {
        var result = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "&": result += "&amp;"
            case "<": result += "&lt;"
            case ">": result += "&gt;"
            case "\"": result += "&quot;"
            case "'": result += "&#39;"
            // XML 1.0 cannot represent the other control characters.
            case "\0"..<" ", "\u{FFFE}", "\u{FFFF}": result += " "
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result
    }

    /// An estimate for margins, because no font is known. Generous for Helvetica, right for wider fonts.
    static func textWidth(_ text: String, size: Double) -> Double {
        Double(text.count) * size * 0.62
    }

    private func number(_ value: Double) -> String {
        let text = Format.fixed(value, decimals: 1)
        return text.hasSuffix(".0") ? String(text.dropLast(2)) : text
    }
}
