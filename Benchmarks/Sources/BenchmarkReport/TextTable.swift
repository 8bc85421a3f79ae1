import Foundation

/// One section of the report for people: a title, a header of two lines (name over unit), and a line per case.
///
/// Rows arrive one by one, minutes apart, so widths are fixed in advance, from the names that will appear and the widest number
/// of a column. All lines of a section have the same length. A long case name is shown without its middle, so that the table is
/// not wider than `lineWidth`; the JSON report has the whole name.
public struct TextTable: Sendable {
    public enum Column: Int, CaseIterable, Sendable {
        case name, density, oracleDensity, keptTokens, budgetTokens, isa, threads, median, spread, bytesRead, readRate
        case actual, effective, weightRate, roof, quantization, speedup, sameFormat, efficiency, share, scoring, memory
        case recall, outputError, error, bound, status

        /// Columns that every table has.
        public static let fixed: Set<Column> = [.name, .isa, .threads, .status]

        /// The columns for which at least one of the rows has a value.
        public static func used(by rows: [BenchmarkRow]) -> Set<Column> {
            fixed.union(allCases.filter { column in rows.contains { column.hasValue(in: $0) } })
        }

        private func hasValue(in row: BenchmarkRow) -> Bool {
            switch self {
            case .name, .isa, .threads, .status: true
            case .density: row.density != nil
            case .oracleDensity: row.oracleDensity != nil
            case .median: row.medianSeconds != nil
            case .spread: row.relativeSpread != nil
            case .actual: row.actualGFLOPS != nil
            case .effective: row.effectiveGFLOPS != nil
            case .weightRate: row.weightGigabytesPerSecond != nil
            case .roof: row.roofFraction != nil
            case .quantization: row.quantizationSeconds != nil
            case .speedup: row.speedup != nil
            case .efficiency: row.efficiency != nil
            case .share: row.baselineShare != nil
            case .recall: row.recall != nil
            case .outputError: row.outputError != nil
            case .keptTokens: row.keptTokens != nil
            case .budgetTokens: row.budgetTokens != nil
            case .bytesRead: row.bytesRead != nil
            case .readRate: row.readGigabytesPerSecond != nil
            case .sameFormat: row.sameFormatSpeedup != nil
            case .scoring: row.scoringShare != nil
            case .memory: row.bytesPerToken != nil
            case .error: row.error != nil
            case .bound: row.errorBound != nil
            }
        }
    }

    private struct Field {
        var column: Column
        var header: (String, String)
        var width: Int
        var isRightAligned: Bool
    }

    private let title: String
    private let fields: [Field]
    private let gap: String
    /// If all rows have one baseline, its name is in the header, otherwise after each factor.
    private let baselineWidth: Int
    private let names: NameColumn

    /// The number of characters that a case name may always have.
    private static let nameMinimum = 32

    /// - Parameters:
    ///   - caseNames: all case names of the section, which are shown such that they differ.
    ///   - isas: all instruction sets of the section.
    ///   - baselines: all baselines of the section.
    ///   - columns: the columns that some row of the section will use; others are left out.
    ///   - lineWidth: the desired number of characters. Columns are two spaces apart if that fits, otherwise one. Case names
    ///     are shortened to the remaining characters, but not below 32.
    public init(
        title: String, caseNames: [String], isas: [String] = [], baselines: [String] = [],
        columns: Set<Column> = Set(Column.allCases), lineWidth: Int = 120
    ) {
        let baselines = Set(baselines).sorted()
        let baselineWidth = baselines.count > 1 ? baselines.map(\.count).max()! : 0
        var fields = Column.allCases.filter { columns.union(Column.fixed).contains($0) }.map { column in
            var field = Self.field(column)
            switch column {
            case .isa: field.width = max(field.width, isas.map(\.count).max() ?? 0)
            case .speedup where baselines.count == 1: field.header.1 = "× \(baselines[0])"
            case .speedup where baselines.count > 1:
                // The unit is above the numbers, not above the names.
                let space = String(repeating: " ", count: 1 + baselineWidth)
                field.header = (field.header.0 + space, field.header.1 + space)
                field.width += space.count
            default: break
            }
            field.width = max(field.width, field.header.0.count, field.header.1.count)
            return field
        }
        // The width with single spaces between the columns, of which the name is the first.
        let others = fields.dropFirst().reduce(0) { $0 + $1.width + 1 }
        names = NameColumn(caseNames, limit: max(Self.nameMinimum, lineWidth - others))
        fields[0].width = max(fields[0].width, names.width)
        let widths = fields.map(\.width).reduce(0, +)
        self.title = title
        self.fields = fields
        self.baselineWidth = baselineWidth
        gap = widths + 2 * (fields.count - 1) <= lineWidth ? "  " : " "
    }

    /// Makes a table for existing rows, with the columns that they use.
    public init(
        title: String, rows: [BenchmarkRow], columns: Set<Column> = Set(Column.allCases), lineWidth: Int = 120
    ) {
        self.init(
            title: title, caseNames: rows.map(\.caseName), isas: rows.map(\.isa),
            baselines: rows.compactMap { $0.speedup == nil ? nil : $0.baseline },
            columns: Column.used(by: rows).intersection(columns), lineWidth: lineWidth)
    }

    /// The title, the names, the units and a rule.
    public var header: [String] {
        let names = join(fields.map { Self.pad($0.header.0, to: $0) })
        let units = join(fields.map { Self.pad($0.header.1, to: $0) })
        return ["", title, names, units, String(repeating: "─", count: names.count)]
    }

    public func line(_ row: BenchmarkRow) -> String {
        join(fields.map { Self.pad(text($0.column, row), to: $0) })
    }

    // MARK: Printing

    public func printHeader() {
        Self.printNow(header.joined(separator: "\n"))
    }

    public func printRow(_ row: BenchmarkRow) {
        Self.printNow(line(row))
    }

    /// Output is flushed, because a row should be visible when it is measured, even through a pipe.
    private static func printNow(_ text: String) {
        print(text)
        fflush(nil)
    }
}

// MARK: - Cells

extension TextTable {
    /// Widths fit the widest number that `Format` makes for sensible input: "0.00123".
    private static func field(_ column: Column) -> Field {
        switch column {
        case .name: Field(column: column, header: ("Case", ""), width: 4, isRightAligned: false)
        case .density: Field(column: column, header: ("Dens.", "%"), width: 5, isRightAligned: true)
        case .oracleDensity: Field(column: column, header: ("Oracle", "%"), width: 5, isRightAligned: true)
        case .keptTokens: Field(column: column, header: ("Kept", "tokens"), width: 6, isRightAligned: true)
        case .budgetTokens: Field(column: column, header: ("Budget", "tokens"), width: 6, isRightAligned: true)
        case .isa: Field(column: column, header: ("ISA", ""), width: 3, isRightAligned: false)
        case .threads: Field(column: column, header: ("Thr", ""), width: 3, isRightAligned: true)
        case .median: Field(column: column, header: ("Median", "ms"), width: 7, isRightAligned: true)
        case .spread: Field(column: column, header: ("Spread", "± %"), width: 5, isRightAligned: true)
        case .bytesRead: Field(column: column, header: ("Read", "MB"), width: 6, isRightAligned: true)
        case .readRate: Field(column: column, header: ("Rate", "GB/s"), width: 6, isRightAligned: true)
        case .actual: Field(column: column, header: ("Actual", "GFLOP/s"), width: 7, isRightAligned: true)
        case .effective: Field(column: column, header: ("Effect.", "GFLOP/s"), width: 7, isRightAligned: true)
        case .weightRate: Field(column: column, header: ("Weights", "GB/s"), width: 7, isRightAligned: true)
        case .roof: Field(column: column, header: ("Roof", "%"), width: 5, isRightAligned: true)
        case .quantization: Field(column: column, header: ("Quant.", "s"), width: 7, isRightAligned: true)
        case .speedup: Field(column: column, header: ("Speed", "×"), width: 6, isRightAligned: true)
        case .sameFormat: Field(column: column, header: ("Dense", "×"), width: 6, isRightAligned: true)
        case .efficiency: Field(column: column, header: ("Effic.", "%"), width: 5, isRightAligned: true)
        case .share: Field(column: column, header: ("Time", "% base"), width: 5, isRightAligned: true)
        case .scoring: Field(column: column, header: ("Score", "%"), width: 5, isRightAligned: true)
        case .memory: Field(column: column, header: ("Memory", "B/token"), width: 7, isRightAligned: true)
        case .recall: Field(column: column, header: ("Recall", "%"), width: 5, isRightAligned: true)
        case .outputError: Field(column: column, header: ("O.err.", "%"), width: 5, isRightAligned: true)
        case .error: Field(column: column, header: ("Error", ""), width: 7, isRightAligned: true)
        case .bound: Field(column: column, header: ("Bound", ""), width: 7, isRightAligned: true)
        case .status: Field(column: column, header: ("Status", ""), width: 6, isRightAligned: false)
        }
    }

    private func text(_ column: Column, _ row: BenchmarkRow) -> String {
        switch column {
        case .name: names.text(row.caseName)
        case .density: Format.percent(row.density)
        case .oracleDensity: Format.percent(row.oracleDensity)
        case .keptTokens: Format.number(row.keptTokens)
        case .budgetTokens: Format.number(row.budgetTokens)
        case .isa: row.isa
        case .threads: String(row.threads)
        case .median: Format.number(row.medianSeconds.map { $0 * 1e3 })
        case .spread: Format.percent(row.relativeSpread)
        case .bytesRead: Format.number(row.bytesRead.map { $0 / 1e6 })
        case .readRate: Format.number(row.readGigabytesPerSecond)
        case .actual: Format.number(row.actualGFLOPS)
        case .effective: Format.number(row.effectiveGFLOPS)
        case .weightRate: Format.number(row.weightGigabytesPerSecond)
        case .roof: Format.percent(row.roofFraction)
        case .quantization: Format.number(row.quantizationSeconds)
        case .speedup: speedup(row)
        case .sameFormat: Format.number(row.sameFormatSpeedup)
        case .efficiency: Format.percent(row.efficiency)
        case .share: Format.percent(row.baselineShare)
        case .scoring: Format.percent(row.scoringShare)
        case .memory: Format.number(row.bytesPerToken)
        case .recall: Format.percent(row.recall)
        case .outputError: Format.percent(row.outputError)
        case .error: Format.scientific(row.error)
        case .bound: Format.scientific(row.errorBound)
        case .status: row.status.rawValue
        }
    }

    private func speedup(_ row: BenchmarkRow) -> String {
        let factor = Format.number(row.speedup)
        guard baselineWidth > 0 else { return factor }
        let name = row.speedup == nil ? "" : row.baseline ?? ""
        return factor + " " + name + String(repeating: " ", count: max(0, baselineWidth - name.count))
    }

    private static func pad(_ text: String, to field: Field) -> String {
        let space = String(repeating: " ", count: max(0, field.width - text.count))
        return field.isRightAligned ? space + text : text + space
    }

    private func join(_ cells: [String]) -> String {
        cells.joined(separator: gap)
    }
}
