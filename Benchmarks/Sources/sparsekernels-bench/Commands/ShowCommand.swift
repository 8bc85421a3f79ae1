import ArgumentParser
import BenchmarkReport
import Foundation

struct ShowCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "show", abstract: "Prints the tables of a report that --json wrote, and draws its charts.")

    @Argument(help: "The report.")
    var report: String

    @OptionGroup var options: ReportOptions

    func run() throws {
        var report = try Report(contentsOf: report)
        let machine = report.machine
        let filter = try options.filter(for: report.rows.map { ($0.op, $0.caseName) })
        print("\(machine.cpu), \(machine.cores) cores; \(machine.compiler); commit \(machine.commit)")
        if let baseline = machine.baseline { print("OpenBLAS: \(baseline)") }
        for (roof, value) in report.roofs.all { print(String(format: "%@ %.1f", roof.rawValue, value)) }
        report.rows.removeAll { !filter.matches(op: $0.op, name: $0.caseName) }
        for (table, rows) in report.tables() {
            table.printHeader()
            rows.forEach(table.printRow)
        }
        try options.writeCharts(of: report)
    }
}
