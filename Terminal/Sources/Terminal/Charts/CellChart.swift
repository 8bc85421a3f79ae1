import Foundation

/// Rows of cells with a tree at their left: which blocks of memory belong to which branch, and which of them they share.
///
/// A filled cell is a block that a row has first, an outlined one a block of a row above. Columns get narrower with their number;
/// where they are narrower than a few points, runs of equal cells become bars.
public struct CellChart: Sendable {
    public enum Cell: Hashable, Sendable {
        case filled(series: Int)
        case outlined(series: Int)
        case empty
    }

    public struct Row: Sendable {
        public var name: String
        /// A row above, which this one is a branch of.
        public var parent: Int?
        public var cells: [Cell]
        /// Text behind the cells.
        public var note: String

        public init(_ name: String, parent: Int? = nil, cells: [Cell], note: String = "") {
            self.name = name
            self.parent = parent
            self.cells = cells
            self.note = note
        }
    }

    public var title: String
    public var subtitle: String
    /// The names of the series.
    public var keys: [String]
    public var rows: [Row]

    public init(title: String, subtitle: String = "", keys: [String], rows: [Row]) {
        for (index, row) in rows.enumerated() {
            precondition(row.parent.map { $0 >= 0 && $0 < index } ?? true, "\(row.name): the parent must be a row above")
        }
        self.title = title
        self.subtitle = subtitle
        self.keys = keys
        self.rows = rows
    }

    // MARK: Drawing

    private static let rowHeight = 18.0
    private static let cellHeight = 12.0
    private static let indent = 14.0

    public func svg() -> String {
        var canvas = SVGCanvas(width: 860)
        let top =
            canvas.heading(
                title: title, subtitle: subtitle, keys: keys.enumerated().map { (SVGCanvas.Key.bar, $1, $0) }) + 8
        let depths = rows.indices.map(depth)
        let labels = zip(rows, depths).map { Double($1) * Self.indent + SVGCanvas.textWidth($0.name, size: 11) }
        let notes = rows.map { SVGCanvas.textWidth($0.note, size: 11) }.max() ?? 0
        let left = 24 + min(labels.max() ?? 0, 300) + 12
        let right = max(left + 100, canvas.width - 24 - notes)
        let columns = rows.map(\.cells.count).max() ?? 0
        let width = min(16, (right - left) / Double(max(1, columns)))
        func middle(_ row: Int) -> Double { top + (Double(row) + 0.5) * Self.rowHeight }

        for (index, row) in rows.enumerated() {
            let x = 24 + Double(depths[index]) * Self.indent
            if let parent = row.parent {
                let knee = x - Self.indent / 2
                canvas.line(from: (knee, middle(parent) + 6), to: (knee, middle(index)), color: SVGCanvas.Ink.axis)
                canvas.line(from: (knee, middle(index)), to: (x - 2, middle(index)), color: SVGCanvas.Ink.axis)
            }
            canvas.text(row.name, x: x, y: middle(index) + 4, size: 11)
            draw(row.cells, on: &canvas, x: left, width: width, y: middle(index) - Self.cellHeight / 2)
            canvas.text(
                row.note, x: left + Double(columns) * width + 8, y: middle(index) + 4, size: 11, color: SVGCanvas.Ink.softText)
        }
        return canvas.document(height: top + Double(rows.count) * Self.rowHeight + 16, title: title)
    }

    private func depth(_ row: Int) -> Int {
        var (depth, place) = (0, row)
        while let parent = rows[place].parent { (depth, place) = (depth + 1, parent) }
        return depth
    }

    private func draw(_ cells: [Cell], on canvas: inout SVGCanvas, x: Double, width: Double, y: Double) {
        let gap = width >= 4 ? 1.0 : 0
        var first = 0
        while first < cells.count {
            var end = first + 1
            if gap == 0 { while end < cells.count, cells[end] == cells[first] { end += 1 } }
            let (start, extent) = (x + Double(first) * width, Double(end - first) * width - gap)
            switch cells[first] {
            case .filled(let series):
                canvas.rectangle(x: start, y: y, width: extent, height: Self.cellHeight, fill: SVGCanvas.color(series))
            case .outlined(let series):
                canvas.rectangle(x: start, y: y, width: extent, height: Self.cellHeight, fill: SVGCanvas.color(series))
                let border = min(1, extent / 4)
                canvas.rectangle(
                    x: start + border, y: y + 1, width: extent - 2 * border, height: Self.cellHeight - 2, fill: "#ffffff")
            case .empty: break
            }
            first = end
        }
    }
}
