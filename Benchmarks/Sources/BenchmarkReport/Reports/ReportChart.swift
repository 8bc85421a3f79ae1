import Foundation
public import Terminal

/// The charts of a report, with the names for `--chart KIND=FILE`.
public enum ReportChart: String, CaseIterable, Sendable {
    case roof, density, quant, decode

    public var summary: String {
        switch self {
        case .roof: "percent of the roof"
        case .density: "speed-up of block-sparse attention over its density"
        case .quant: "speed-up of quantised layers over the number of tokens"
        case .decode: "time of a decoded token over the context"
        }
    }

    public func svg(of report: Report) -> String {
        let subtitle = "\(report.machine.cpu), commit \(report.machine.commit)"
        func rows(_ section: ReportSection) -> [BenchmarkRow] { report.rows.filter { ReportSection(op: $0.op) == section } }
        switch self {
        case .roof:
            return BarChart(title: "Percent of the multiply-add roof", subtitle: subtitle, rows: report.rows).svg()
        case .density:
            return LineChart(title: "Block-sparse attention", subtitle: subtitle, speedupRows: rows(.blockSparse)).svg()
        case .quant:
            return BarChart(
                title: "Quantised linear layers", subtitle: subtitle, quantizedRows: rows(.quantizedProduct)
            ).svg()
        case .decode:
            return LineChart(
                title: "Decoding from a paged cache", subtitle: subtitle, decodeRows: rows(.decode),
                labels: [
                    "f16 dense", "int8 dense", "int4 dense", "f16 Quest 4096 /1", "f16 LServe 4096 /4", "f16 Twilight 0.9",
                ]
            ).svg()
        }
    }
}

/// A chart and its file: "roof=chart.svg".
public struct ChartRequest: Sendable, Equatable {
    public let chart: ReportChart
    public let path: String

    /// - Throws: an error for another form or an unknown kind.
    public init(_ argument: String) throws(UsageError) {
        let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2, !parts[1].isEmpty else {
            throw UsageError("a chart is KIND=FILE, such as roof=chart.svg, not \"\(argument)\"")
        }
        guard let chart = ReportChart(rawValue: String(parts[0])) else {
            let kinds = ReportChart.allCases.map { "\($0.rawValue) (\($0.summary))" }
            throw UsageError("no chart is called \"\(parts[0])\"; there are \(kinds.joined(separator: ", "))")
        }
        (self.chart, path) = (chart, String(parts[1]))
    }

    public func write(_ report: Report) throws {
        try chart.svg(of: report).write(toFile: path, atomically: true, encoding: .utf8)
    }
}

// MARK: - From rows

extension BarChart {
    /// Percent of the roof for the rows that have it, with a group per case and a bar per instruction set and thread count.
    public init(title: String, subtitle: String = "", rows: [BenchmarkRow]) {
        let rows = rows.filter { $0[.roofFraction] != nil }
        var categories: [String] = []
        var names: [String] = []
        var values: [String: [String: Double]] = [:]
        for row in rows {
            let name = "\(row.isa), \(row.threads) thread\(row.threads == 1 ? "" : "s")"
            if !categories.contains(row.caseName) { categories.append(row.caseName) }
            if !names.contains(name) { names.append(name) }
            values[name, default: [:]][row.caseName] = row[.roofFraction]
        }
        self.init(
            title: title, subtitle: subtitle, axisTitle: "percent of the measured roof", categories: categories,
            series: names.map { name in Series(name, categories.map { values[name]?[$0] }) })
    }

    /// Speed-up of quantised layers over the single-precision product. The first three words of a case name the group, which is
    /// a shape and a number of tokens; the others name the bar, which is a variant.
    ///
    /// It uses rows of the first instruction set on the most threads. Variants with a low-rank branch replace those without.
    public init(title: String, subtitle: String = "", quantizedRows rows: [BenchmarkRow]) {
        let compared = rows.filter { $0[.speedup] != nil }
        let (isa, threads) = (compared.first?.isa ?? "", compared.map(\.threads).max() ?? 1)
        let baseline = compared.first?.baseline ?? ""
        var categories: [String] = []
        var names: [String] = []
        var values: [String: [String: Double]] = [:]
        for row in compared where row.isa == isa && row.threads == threads {
            let words = row.caseName.split(separator: " ")
            let (category, name) = (words.prefix(3).joined(separator: " "), words.dropFirst(3).joined(separator: " "))
            if !categories.contains(category) { categories.append(category) }
            if !names.contains(name) { names.append(name) }
            values[name, default: [:]][category] = row[.speedup]
        }
        names = names.filter { name in !names.contains { $0.hasPrefix(name + " ") } }
        self.init(
            title: title, subtitle: subtitle + ", \(isa), \(threads) thread\(threads == 1 ? "" : "s")",
            axisTitle: "speed-up over single precision", axisStyle: .times, categories: categories,
            series: names.map { name in Series(name, categories.map { values[name]?[$0] }) }, limit: (1, baseline))
    }
}

extension LineChart {
    /// Speed-up over density for the block-sparse rows that have both, with a curve per case, instruction set and thread count,
    /// beside the line on which time is proportional to density.
    public init(title: String, subtitle: String = "", speedupRows rows: [BenchmarkRow]) {
        var series: [Series] = []
        for row in rows where row[.efficiency] != nil {
            let name = "\(row.caseName), \(row.isa), \(row.threads) thread\(row.threads == 1 ? "" : "s")"
            let index = series.firstIndex { $0.name == name } ?? series.count
            if index == series.count { series.append(Series(name, [])) }
            series[index].points.append((row[.density]!, row[.speedup]!))
        }
        self.init(
            title: title, subtitle: subtitle, xAxis: Axis("density", scale: .logarithmic, style: .percent),
            yAxis: Axis("speed-up over dense", scale: .logarithmic, style: .times), series: series,
            ideal: Ideal("1 / density") { 1 / $0 })
    }

    /// Time of a token over the context, with a curve per way to decode.
    ///
    /// It uses rows of one sequence, of the first instruction set, on the most threads. A case is named by context, batch
    /// (`b1`) and label.
    ///
    /// - Parameter labels: the labels of the curves.
    public init(title: String, subtitle: String = "", decodeRows rows: [BenchmarkRow], labels: [String]) {
        let timed = rows.filter { $0[.medianSeconds] != nil }
        let (isa, threads) = (timed.first?.isa ?? "", timed.map(\.threads).max() ?? 1)
        var series = labels.map { Series($0, []) }
        for row in timed where row.isa == isa && row.threads == threads {
            let words = row.caseName.split(separator: " ", maxSplits: 2).map(String.init)
            guard words.count == 3, let context = Double(words[0]), words[1] == "b1",
                let index = labels.firstIndex(of: words[2]),
                // The dense row is in several groups; the first one counts.
                !series[index].points.contains(where: { $0.x == context })
            else { continue }
            series[index].points.append((context, row[.medianSeconds]! * 1e3))
        }
        self.init(
            title: title, subtitle: subtitle + ", \(isa), \(threads) thread\(threads == 1 ? "" : "s")",
            xAxis: Axis("tokens in the cache", scale: .logarithmic),
            yAxis: Axis("milliseconds per token and layer", scale: .logarithmic),
            series: series.filter { !$0.points.isEmpty })
    }
}
