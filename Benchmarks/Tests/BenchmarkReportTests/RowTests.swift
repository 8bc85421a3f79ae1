import BenchmarkReport
import Foundation
import Testing

@Suite struct RowTests {
    private func keys(_ row: BenchmarkRow) throws -> [String: Any] {
        let data = try JSONEncoder().encode(row)
        return try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
    }

    @Test func aCompleteRowHasExactlyTheAgreedKeys() throws {
        let expected: Set = [
            "op", "case", "density", "isa", "threads", "median_s", "min_s", "max_s", "gflops_actual", "gflops_effective",
            "gbytes_per_s", "roof_fraction", "baseline", "baseline_s", "speedup", "error", "error_bound", "recall",
            "oracle_density", "output_error", "quantize_s", "bytes_read", "scoring_share", "speedup_same_format",
            "speedup_attention",
            "bytes_per_token", "bytes_per_branch", "tokens_kept", "tokens_budget", "verified", "parallel_efficiency",
            "computing_share", "hidden_share", "bytes_sent", "sent_ratio", "work_balance",
        ]
        let object = try keys(Samples.complete)
        #expect(Set(object.keys) == expected)
        #expect(object["case"] as? String == "n4096 h8 d64")
        #expect(object["max_s"] as? Double == 0.0131)
        #expect(object["verified"] as? Bool == true)
    }

    @Test func whatDoesNotApplyIsLeftOut() throws {
        #expect(Set(try keys(Samples.bare).keys) == ["op", "case", "isa", "threads"])
    }

    @Test func metricsComeBackFromJSON() throws {
        let copy = try JSONDecoder().decode(BenchmarkRow.self, from: JSONEncoder().encode(Samples.complete))
        #expect(copy == Samples.complete)
        for metric in Metric.all { #expect(copy[metric] != nil && copy[metric] == Samples.complete[metric], "\(metric.key)") }
        #expect(Set(Metric.all.map(\.key)).count == Metric.all.count)
    }

    @Test func aMetricOfALaterVersionIsKept() throws {
        let text = #"{"op": "gemm", "case": "a", "isa": "avx2", "threads": 1, "watts": 7.5, "density": 1}"#
        let row = try JSONDecoder().decode(BenchmarkRow.self, from: Data(text.utf8))
        #expect(row[.density] == 1)
        #expect(try keys(row)["watts"] as? Double == 7.5)
    }

    @Test func anErrorOfZeroIsWritten() throws {
        var row = Samples.bare
        row[.error] = 0
        #expect(try keys(row)["error"] as? Double == 0)
    }

    @Test(arguments: [Double.nan, .infinity, -.infinity])
    func anErrorThatIsNoNumberIsLeftOutAndFails(error: Double) throws {
        var row = Samples.complete
        row[.error] = error
        row[.speedup] = error
        let object = try keys(row)
        #expect(object["error"] == nil && object["speedup"] == nil)
        #expect(object["verified"] as? Bool == false)
    }

    @Test func whatIsDerivedIsNotWritten() {
        #expect(Samples.complete[.efficiency] == 7.01 * 0.125)
        #expect(Samples.complete[.baselineShare] == 1 / 7.01)
        var row = Samples.complete
        row.baseline = "run"
        #expect(row[.efficiency] == nil && row[.baselineShare] != nil)
        row[.speedup] = nil
        #expect(row[.baselineShare] == nil)
    }

    @Test func statusHasTwoThresholds() {
        var row = Samples.complete
        row[.errorBound] = 1
        let expected: [(Double, BenchmarkRow.Status)] = [(0, .ok), (0.5, .ok), (0.51, .warn), (1, .warn), (1.01, .fail)]
        for (error, status) in expected {
            row[.error] = error
            #expect(row.status == status, "error \(error)")
        }
        row[.error] = 0
        row.verified = false
        #expect(row.status == .fail)
        #expect(Samples.bare.status == .unchecked)
    }
}

@Suite struct ReportTests {
    private let report = Report(
        machine: Machine(cpu: "Some CPU", cores: 2, isa: "avx512", commit: "0123abc+dirty", compiler: "Swift 6.3"),
        roofs: [.fmaOneCore: 150.5, .readAllCores: 21, Roof(rawValue: "broken"): .nan], rows: Samples.rows)

    @Test func aReportHasThreeParts() throws {
        let object = try #require(try JSONSerialization.jsonObject(with: report.json()) as? [String: Any])
        #expect(Set(object.keys) == ["machine", "roofs", "rows"])
        let machine = try #require(object["machine"] as? [String: Any])
        #expect(Set(machine.keys) == ["cpu", "cores", "isa", "commit", "compiler"])
        #expect(object["roofs"] as? [String: Double] == ["fma_gflops_1": 150.5, "read_gbs_all": 21])
        #expect((object["rows"] as? [Any])?.count == Samples.rows.count)
    }

    @Test func theBaselineIsPartOfTheMachine() throws {
        var other = report
        other.machine.baseline = "OpenBLAS 0.3.21 (SkylakeX kernels, OPENBLAS_CORETYPE=SkylakeX set by the benchmark)"
        let copy = try JSONDecoder().decode(Report.self, from: other.json())
        #expect(copy.machine == other.machine)
        // Reports of older versions have no baseline.
        #expect(try JSONDecoder().decode(Report.self, from: report.json()).machine.baseline == nil)
    }

    @Test func aFileIsReplacedAndReadBack() throws {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("report-\(UUID()).json").path
        defer { try? FileManager.default.removeItem(atPath: path) }
        try Data(repeating: 0x20, count: 100_000).write(to: URL(fileURLWithPath: path))
        try report.write(to: path)
        let copy = try Report(contentsOf: path)
        #expect(copy.machine == report.machine)
        #expect(copy.rows[0] == report.rows[0])
        #expect(copy.rows[2][.error] == nil && copy.rows[2].verified == false)
        #expect(try copy.json() == report.json())
    }

    /// Reports of all versions.
    @Test func storedReportsLoadAndKeepTheirNumbers() throws {
        let folder = (0..<3).reduce(URL(fileURLWithPath: #filePath)) { url, _ in url.deletingLastPathComponent() }
        let results = folder.appendingPathComponent("Results").path
        let names = try FileManager.default.contentsOfDirectory(atPath: results).filter { $0.hasSuffix(".json") }
        #expect(names.count >= 15)
        for name in names {
            let data = try Data(contentsOf: URL(fileURLWithPath: "\(results)/\(name)"))
            let stored = try #require(try JSONSerialization.jsonObject(with: data) as? NSDictionary)
            let report = try JSONDecoder().decode(Report.self, from: data)
            #expect(try JSONSerialization.jsonObject(with: report.json()) as? NSDictionary == stored, "\(name)")
            #expect(report.tables().map(\.rows.count).reduce(0, +) == report.rows.count)
        }
    }

    @Test func thisMachineIsDescribed() {
        let machine = Machine.current(isa: "portable")
        #expect(machine.cores >= 1)
        #expect(![machine.cpu, machine.commit, machine.compiler].contains(""))
        #expect(machine.compiler.contains("Swift"))
    }
}
