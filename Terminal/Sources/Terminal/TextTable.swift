/// A table for people: a header of two lines, name over unit, a rule, and a line for each row.
///
/// Rows may arrive one by one, minutes apart, so column widths are fixed in advance. All lines have the same length as long as
/// no cell is wider than its column; cells are never cut.
public struct TextTable: Sendable {
    public enum Alignment: Sendable { case left, right }

    public struct Column: Sendable {
        public let name: String
        public let unit: String
        /// Characters of the widest cell; at least those of name and unit.
        public let width: Int
        public let alignment: Alignment

        public init(_ name: String, _ unit: String = "", width: Int = 0, alignment: Alignment = .right) {
            (self.name, self.unit, self.alignment) = (name, unit, alignment)
            self.width = max(width, name.count, unit.count)
        }

        fileprivate func padded(_ text: String) -> String {
            let space = String(repeating: " ", count: max(0, width - text.count))
            return alignment == .right ? space + text : text + space
        }
    }

    private let columns: [Column]
    private let gap: String

    /// - Parameters:
    ///   - columns: the columns from left to right.
    ///   - lineWidth: columns are two spaces apart if that fits into this many characters, otherwise one.
    public init(_ columns: [Column], lineWidth: Int = .max) {
        self.columns = columns
        let width = columns.reduce(0) { $0 + $1.width } + 2 * (columns.count - 1)
        gap = width <= lineWidth ? "  " : " "
    }

    /// The names, the units and a rule.
    public var header: [String] {
        let names = line(columns.map(\.name))
        return [names, line(columns.map(\.unit)), String(repeating: "─", count: names.count)]
    }

    /// A row, with a cell for each column.
    public func line(_ cells: [String]) -> String {
        precondition(cells.count == columns.count, "\(cells.count) cells, \(columns.count) columns")
        return zip(columns, cells).map { $0.padded($1) }.joined(separator: gap)
    }
}
