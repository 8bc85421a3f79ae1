import Terminal

/// One section of the report for people: a title, a header of two lines (name over unit), and a line per case.
///
/// Rows arrive one by one, minutes apart, so widths are fixed in advance, from the names that will appear and the widest number
/// of a column. All lines of a section have the same length. A long case name is shown without its middle, so that the table is
/// not wider than `lineWidth`; the JSON report has the whole name.
public struct ReportTable: Sendable {
    public let title: String
    private let table: TextTable
    private let metrics: [Metric]
    /// The number of metrics before instruction set and threads.
    private let describingCount: Int
    private let names: NameColumn
    /// If all rows have one baseline, its name is in the header, otherwise after each factor.
    private let baselineWidth: Int

    /// The number of characters that a case name may always have.
    private static let nameMinimum = 32

    /// - Parameters:
    ///   - caseNames: all case names of the section, which are shown such that they differ.
    ///   - isas: all instruction sets of the section.
    ///   - baselines: all baselines of the section.
    ///   - metrics: the metrics that some row of the section will have; others get no column.
    ///   - lineWidth: the desired number of characters. Columns are two spaces apart if that fits, otherwise one. Case names
    ///     are shortened to the remaining characters, but not below 32.
    public init(
        title: String, caseNames: [String], isas: [String] = [], baselines: [String] = [],
        metrics: [Metric] = Metric.all, lineWidth: Int = 120
    ) {
        let baselines = Set(baselines).sorted()
        let baselineWidth = baselines.count > 1 ? baselines.map(\.count).max()! : 0
        func columns(_ metrics: [Metric]) -> [TextTable.Column] {
            metrics.map { $0 == .speedup ? Self.speedup(over: baselines, $0) : .init($0.name, $0.unit, width: $0.width) }
        }
        let describing = Metric.describing.filter(metrics.contains)
        let measured = Metric.measured.filter(metrics.contains)
        let others =
            columns(describing) + [.init("ISA", width: isas.map(\.count).max() ?? 0, alignment: .left), .init("Thr")]
            + columns(measured) + [.init("Status", alignment: .left)]
        // The width with single spaces between the columns, of which the name is the first.
        names = NameColumn(caseNames, limit: max(Self.nameMinimum, lineWidth - others.reduce(0) { $0 + $1.width + 1 }))
        table = TextTable([.init("Case", width: names.width, alignment: .left)] + others, lineWidth: lineWidth)
        self.title = title
        self.metrics = describing + measured
        self.baselineWidth = baselineWidth
        describingCount = describing.count
    }

    private static func speedup(over baselines: [String], _ metric: Metric) -> TextTable.Column {
        if baselines.count == 1 { return .init(metric.name, "\(metric.unit) \(baselines[0])", width: metric.width) }
        // The unit is above the numbers, not above the names.
        let space = baselines.isEmpty ? "" : String(repeating: " ", count: 1 + baselines.map(\.count).max()!)
        return .init(metric.name + space, metric.unit + space, width: metric.width + space.count)
    }

    /// Makes a table for existing rows, with the metrics that they have.
    public init(title: String, rows: [BenchmarkRow], metrics: [Metric] = Metric.all, lineWidth: Int = 120) {
        self.init(
            title: title, caseNames: rows.map(\.caseName), isas: rows.map(\.isa),
            baselines: rows.compactMap { $0[.speedup] == nil ? nil : $0.baseline },
            metrics: metrics.filter { metric in rows.contains { $0[metric] != nil } }, lineWidth: lineWidth)
    }

    /// An empty line, the title, the names, the units and a rule.
    public var header: [String] { ["", title] + table.header }

    public func line(_ row: BenchmarkRow) -> String {
        var cells = metrics.map { metric in metric == .speedup ? speedup(row) : metric.text(row[metric]) }
        cells.insert(contentsOf: [row.isa, String(row.threads)], at: describingCount)
        return table.line([names.text(row.caseName)] + cells + [row.status.rawValue])
    }

    private func speedup(_ row: BenchmarkRow) -> String {
        let factor = Metric.speedup.text(row[.speedup])
        guard baselineWidth > 0 else { return factor }
        let name = row[.speedup] == nil ? "" : row.baseline ?? ""
        return factor + " " + name + String(repeating: " ", count: max(0, baselineWidth - name.count))
    }

    // MARK: Printing

    public func printHeader() { header.forEach { printNow($0) } }

    public func printRow(_ row: BenchmarkRow) { printNow(line(row)) }
}

extension Report {
    /// The tables of the rows, one for each section with rows.
    ///
    /// - Parameter metrics: the columns; nil means those of each section.
    public func tables(metrics: [Metric]? = nil) -> [(table: ReportTable, rows: [BenchmarkRow])] {
        ReportSection.allCases.compactMap { section in
            let rows = rows.filter { ReportSection(op: $0.op) == section }
            if rows.isEmpty { return nil }
            return (ReportTable(title: section.title, rows: rows, metrics: metrics ?? section.metrics), rows)
        }
    }
}
