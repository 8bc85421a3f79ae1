import BenchmarkReport
import Terminal
import Testing

@Suite struct ReportChartTests {
    @Test func speedupOverDensityHasACurvePerCase() {
        var rows = [Samples.complete, Samples.complete, Samples.bare]
        rows[1][.density] = 0.5
        rows[1][.speedup] = 1.9
        rows.append(Samples.complete)
        rows[3].threads = 1
        let chart = LineChart(title: "", speedupRows: rows)
        #expect(chart.series.map(\.name) == ["n4096 h8 d64, avx512, 2 threads", "n4096 h8 d64, avx512, 1 thread"])
        #expect(chart.series[0].points.map(\.x) == [0.125, 0.5] && chart.series[0].points.map(\.y) == [7.01, 1.9])
        #expect(chart.ideal?.function(0.25) == 4)
        #expect(LineChart(title: "", speedupRows: []).svg().hasPrefix("<svg"))
    }

    @Test func speedupOfQuantisedLayersHasABarPerVariant() {
        func row(_ name: String, _ speedup: Double?, isa: String = "avx2", threads: Int = 2) -> BenchmarkRow {
            BenchmarkRow(
                op: "quant.product", caseName: name, isa: isa, threads: threads,
                baseline: speedup == nil ? nil : "OpenBLAS", metrics: speedup.map { [.speedup: $0] } ?? [:])
        }
        let chart = BarChart(
            title: "", subtitle: "a CPU",
            quantizedRows: [
                row("512×1408 M 1 f32", nil, isa: "openblas"), row("512×1408 M 1 f32", 1.1),
                row("512×1408 M 1 W4A4", 5), row("512×1408 M 1 W4A4 r32", 4), row("512×1408 M 1 W4A4 r32", 9, isa: "avx512"),
                row("512×1408 M 1 W4A4 r32", 3, threads: 1), row("512×1408 M 8 W4A4 r32", 2), row("512×1408 M 8 W8A8", 1.5),
            ])
        #expect(chart.categories == ["512×1408 M 1", "512×1408 M 8"])
        #expect(chart.series.map(\.name) == ["f32", "W4A4 r32", "W8A8"])
        #expect(chart.series.map(\.values) == [[1.1, nil], [4, 2], [nil, 1.5]])
        #expect(chart.subtitle == "a CPU, avx2, 2 threads" && chart.limit?.name == "OpenBLAS")
        #expect(BarChart(title: "", quantizedRows: []).svg().hasPrefix("<svg"))
    }

    @Test func timeOverContextHasACurvePerLabel() {
        func row(_ name: String, _ seconds: Double?, threads: Int = 2) -> BenchmarkRow {
            BenchmarkRow(
                op: "decode.step", caseName: name, isa: "avx2", threads: threads,
                metrics: seconds.map { [.medianSeconds: $0] } ?? [:])
        }
        let chart = LineChart(
            title: "", subtitle: "a CPU",
            decodeRows: [
                row("8192 b1 f16 dense", 0.002), row("8192 b1 f16 dense", 0.009), row("8192 b1 f16 dense", 0.004, threads: 1),
                row("8192 b8 f16 dense", 0.001), row("32768 b1 f16 dense", 0.008), row("8192 b1 f16 Quest 4096", 0.001),
                row("8192 b1 int4 dense", nil),
            ], labels: ["f16 dense", "f16 Quest 4096", "int4 dense"])
        #expect(chart.series.map(\.name) == ["f16 dense", "f16 Quest 4096"])
        #expect(chart.series[0].points.map(\.x) == [8192, 32768] && chart.series[0].points.map(\.y) == [2, 8])
        #expect(chart.subtitle == "a CPU, avx2, 2 threads")
        #expect(!chart.svg().isEmpty)
    }

    @Test func chartsAreAskedForByKind() throws {
        #expect(ReportChart.allCases.map(\.rawValue) == ["roof", "density", "quant", "decode"])
        let request = try ChartRequest("decode=a=b.svg")
        #expect(request.chart == .decode && request.path == "a=b.svg")
        for argument in ["roof", "roof=", "=a.svg", "pie=a.svg"] {
            #expect(throws: UsageError.self) { try ChartRequest(argument) }
        }
        let error = #expect(throws: UsageError.self) { try ChartRequest("pie=a.svg") }
        #expect(ReportChart.allCases.allSatisfy { error!.description.contains($0.rawValue) })
    }
}
