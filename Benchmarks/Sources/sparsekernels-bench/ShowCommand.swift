import ArgumentParser
import BenchmarkReport
import Foundation

struct ShowCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "show", abstract: "Prints the tables of a report that --json wrote, and its chart with --svg.")

    @Argument(help: "The report.")
    var report: String

    @Option(help: "Show only rows whose operation or case contains this text.")
    var filter: String?

    @Option(help: "Write a chart of the percent of the roof to this file.")
    var svg: String?

    func run() throws {
        let report = try Report(contentsOf: report)
        let machine = report.machine
        print("\(machine.cpu), \(machine.cores) cores; \(machine.compiler); commit \(machine.commit)")
        for (roof, value) in report.roofs.all { print(String(format: "%@ %.1f", roof.rawValue, value)) }
        let rows = report.rows.filter { row in
            filter.map { "\(row.op) \(row.caseName)".localizedCaseInsensitiveContains($0) } ?? true
        }
        if rows.isEmpty { throw ValidationError("no row matches") }
        for (title, matches) in [("Matrix product", true), ("Attention", false)] {
            let section = rows.filter { $0.op.hasPrefix("gemm") == matches }
            if section.isEmpty { continue }
            let table = TextTable(title: title, rows: section)
            table.printHeader()
            for row in section { table.printRow(row) }
        }
        if let svg {
            try BarChart(
                title: "Percent of the multiply-add roof", subtitle: "\(machine.cpu), commit \(machine.commit)",
                rows: rows.filter { $0.roofFraction != nil }
            ).svg().write(toFile: svg, atomically: true, encoding: .utf8)
        }
    }
}
