import ArgumentParser
import Foundation
import SequenceParallel
import Terminal
import Testing

@testable import SparseRanksTool

@Suite("sparse-ranks simulate")
struct SimulationSweepTests {
    private static let sweep = try! SimulationSweep(
        model: .eightBillion, machine: .sixteenCoreHosts, contexts: [1 << 17, 1 << 20], ranks: [2, 16, 64])

    @Test("there is a table for each context, with a line for each number of ranks")
    func tables() {
        #expect(Self.sweep.prefillTables.count == 2 && Self.sweep.decodeTables.count == 2)
        for table in Self.sweep.prefillTables + Self.sweep.decodeTables {
            // An empty line, a title, a header of three lines.
            #expect(table.count == 5 + 3)
            #expect(Set(table.dropFirst(2).map(\.count)).count == 1, "lines of one length")
        }
        #expect(Self.sweep.prefillTables[1][1].contains("prefill of 1M tokens"))
        // 64 ranks are more than the 32 query heads: Ulysses has no numbers.
        #expect(Self.sweep.prefills[0].rows[2].ulysses == nil)
        #expect(Self.sweep.prefills[0].rows[1].ulysses != nil)
    }

    @Test("the report is read again as it was written")
    func report() throws {
        let report = Self.sweep.report
        #expect(report.prefill.count == 2 * (4 + 4 + 3) && report.decode.count == 6)
        let read = try JSONDecoder().decode(SimulationSweep.Report.self, from: JSONEncoder().encode(report))
        #expect(read.machine == .sixteenCoreHosts && read.model == .eightBillion)
        #expect(read.prefill.map(\.seconds) == report.prefill.map(\.seconds))
    }

    @Test("charts have a curve for each arrangement", arguments: SimulationSweep.ChartKind.allCases)
    func charts(_ kind: SimulationSweep.ChartKind) {
        let chart = Self.sweep.chart(kind)
        #expect(chart.series.map(\.points.count) == [3, 3, 2, 3])
        #expect(chart.title.contains("1M"))
        #expect(chart.svg().contains("zigzag ring"))
    }

    @Test("contexts are numbers with K and M")
    func contexts() throws {
        #expect(try SimulationSweep.contexts("4096,128K,16M") == [4096, 1 << 17, 1 << 24])
        #expect(SimulationSweep.label(3000) == "3000" && SimulationSweep.label(1 << 21) == "2M")
        for text in ["", "K", "0", "-1", "1G", "9999999999999M"] where text != "" {
            #expect(throws: (any Error).self) { try SimulationSweep.contexts(text) }
        }
    }

    @Test("measured constants are a file that the simulation reads")
    func files() throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("ranks-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        func path(_ name: String) -> String { folder.appendingPathComponent(name).path }
        try MeasureCommand.parse([
            "--local", "2", "--quick", "--check", "256", "--name", "two threads", "--json", path("machine.json"),
        ]).run()
        try SimulateCommand.parse([
            "--constants", path("machine.json"), "--model", "0.5B", "--ranks", "2,4", "--contexts", "8K", "--json",
            path("rows.json"), "--chart", "speedup=\(path("chart.svg"))",
        ]).run()
        let rows = try Data(contentsOf: URL(fileURLWithPath: path("rows.json")))
        let report = try JSONDecoder().decode(SimulationSweep.Report.self, from: rows)
        #expect(report.machine.name == "two threads" && report.machine.ranksPerHost == 2)
        #expect(report.model == .halfBillion && Set(report.prefill.map(\.ranks)) == [2, 4])
        #expect(try String(contentsOfFile: path("chart.svg"), encoding: .utf8).contains("two threads"))
        // A file of something else, and none.
        for wrong in [path("rows.json"), path("missing.json")] {
            #expect(throws: (any Error).self) { try SimulateCommand.parse(["--constants", wrong]).run() }
        }
    }

    @Test("options that make no sense are errors")
    func options() {
        for arguments in [
            ["--ranks", "0"], ["--ranks", "two"], ["--contexts", "x"], ["--chart", "nothing=a.svg"], ["--chart", "memory"],
            ["--ranks-per-host", "0"], ["--threads-per-rank", "0"],
        ] {
            #expect(throws: (any Error).self, "\(arguments)") { try SimulateCommand.parse(arguments) }
        }
        for arguments in [
            ["--local", "0"], ["--network", "fast"], ["--network", "-1,3"], ["--check", "3"], ["--threads", "0"],
        ] {
            #expect(throws: (any Error).self, "\(arguments)") { try MeasureCommand.parse(arguments) }
        }
    }
}
