import ArgumentParser
import BenchmarkReport

/// The options for rows and charts: the same flags for a run and for a stored report.
struct ReportOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Only cases whose section, operation or name contains this text, or one of several between commas.",
            valueName: "text"))
    var filter: String?

    @Option(
        help: ArgumentHelp(
            "Write a chart to a file. May be repeated. Kinds: "
                + ReportChart.allCases.map { "\($0.rawValue), \($0.summary)" }.joined(separator: "; ") + ".",
            valueName: "kind=file"),
        transform: Self.chart)
    var chart: [ChartRequest] = []

    private static func chart(_ argument: String) throws -> ChartRequest {
        do { return try ChartRequest(argument) } catch { throw ValidationError(error.description) }
    }

    /// The filter. It throws unless every text matches some of the cases.
    func filter(for cases: [(op: String, name: String)]) throws -> RowFilter {
        let filter = RowFilter(filter)
        do { try filter.require(in: cases) } catch { throw ValidationError(error.description) }
        return filter
    }

    func writeCharts(of report: Report) throws {
        for request in chart { try request.write(report) }
    }
}
