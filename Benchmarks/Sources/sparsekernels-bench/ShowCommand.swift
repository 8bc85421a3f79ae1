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

    @Option(help: "Write a chart of the speed-up of block-sparse attention over its density to this file.")
    var svgDensity: String?

    @Option(help: "Write a chart of the speed-up of quantised layers over the number of tokens to this file.")
    var svgQuant: String?

    @Option(help: "Write a chart of the time of a decoded token over the context to this file.")
    var svgDecode: String?

    func run() throws {
        var report = try Report(contentsOf: report)
        let machine = report.machine
        print("\(machine.cpu), \(machine.cores) cores; \(machine.compiler); commit \(machine.commit)")
        if let baseline = machine.baseline { print("OpenBLAS: \(baseline)") }
        for (roof, value) in report.roofs.all { print(String(format: "%@ %.1f", roof.rawValue, value)) }
        report.rows.removeAll { !matches(filter, op: $0.op, name: $0.caseName) }
        if report.rows.isEmpty { throw ValidationError("no row matches") }
        for section in ReportSection.allCases {
            let rows = report.rows.filter { ReportSection(op: $0.op) == section }
            if rows.isEmpty { continue }
            let table = TextTable(title: section.title, rows: rows, columns: section.columns)
            table.printHeader()
            for row in rows { table.printRow(row) }
        }
        if let svg { try report.writeChart(to: svg) }
        if let svgDensity { try report.writeDensityChart(to: svgDensity) }
        if let svgQuant { try report.writeQuantizedChart(to: svgQuant) }
        if let svgDecode { try report.writeDecodeChart(to: svgDecode) }
    }
}

/// Whether a case or row passes `--filter`: there is no filter, or its operation or name contains the text.
func matches(_ filter: String?, op: String, name: String) -> Bool {
    filter.map { "\(op) \(name)".localizedCaseInsensitiveContains($0) } ?? true
}

extension Report {
    /// Writes the chart of the percent of the roof, for the rows that have one.
    func writeChart(to path: String) throws {
        try BarChart(
            title: "Percent of the multiply-add roof", subtitle: "\(machine.cpu), commit \(machine.commit)",
            rows: rows.filter { $0.roofFraction != nil }
        ).svg().write(toFile: path, atomically: true, encoding: .utf8)
    }

    /// Writes the chart of speed-up over density, for the block-sparse rows.
    func writeDensityChart(to path: String) throws {
        try LineChart(
            title: "Block-sparse attention", subtitle: "\(machine.cpu), commit \(machine.commit)",
            speedupRows: rows.filter { ReportSection(op: $0.op) == .blockSparse }
        ).svg().write(toFile: path, atomically: true, encoding: .utf8)
    }

    /// Writes the chart of speed-up over tokens, for the quantised layers.
    func writeQuantizedChart(to path: String) throws {
        try BarChart(
            title: "Quantised linear layers", subtitle: "\(machine.cpu), commit \(machine.commit)",
            quantizedRows: rows.filter { ReportSection(op: $0.op) == .quantizedProduct }
        ).svg().write(toFile: path, atomically: true, encoding: .utf8)
    }

    /// Writes the chart of the time of a token over the context, for one sequence.
    func writeDecodeChart(to path: String) throws {
        try LineChart(
            title: "Decoding from a paged cache", subtitle: "\(machine.cpu), commit \(machine.commit)",
            decodeRows: rows.filter { ReportSection(op: $0.op) == .decode },
            labels: [
                "f16 dense", "int8 dense", "int4 dense", "f16 Quest 4096 /1", "f16 LServe 4096 /4", "f16 Twilight 0.9",
            ]
        ).svg().write(toFile: path, atomically: true, encoding: .utf8)
    }
}
