import BenchmarkReport
import Testing

@Suite struct DecodeTests {
    @Test func rowsOfCodesHaveAScaleAndAZeroPoint() {
        #expect([32, 16, 8, 4].map { KVTraffic.rowBytes(channels: 128, bits: $0) } == [512, 256, 132, 68])
        #expect(KVTraffic.rowBytes(channels: 3, bits: 4) == 2 + 4)
    }

    @Test func aStepReadsSummariesCandidatesAndWhatIsKept() {
        let traffic = KVTraffic(keyRow: 256, valueRow: 256, summary: 512, estimateRow: 68, logicalPageSize: 16)
        // A context of 131072 tokens, of which 4096 are kept: a 16th for the summaries, and 1/32.
        let dense = traffic.attention(rows: 131072)
        #expect(dense == 131072 * 512)
        #expect(traffic.summaries(tokens: 131072) == dense / 16)
        #expect(traffic.attention(rows: 4096) == dense / 32)
        #expect(traffic.estimates(rows: 8192) == 8192 * 68)
        #expect(traffic.summaries(tokens: 17) == 2 * 512)
        #expect(traffic.bytesPerToken(kvHeads: 8) == 8 * (512 + 68 + 32))
        #expect(KVTraffic(keyRow: 132, valueRow: 132).bytesPerToken(kvHeads: 2) == 528)
    }

    private static let masses = SelectionRecall([[0.5, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]])

    @Test func recallIsTheMeanOverTheQueries() {
        #expect(abs(Self.masses.recall { _ in [0..<2] } - (0.8 + 0.3) / 2) < 1e-15)
        #expect(abs(Self.masses.recall { $0 == 0 ? [0..<1, 2..<3] : [] } - 0.35) < 1e-15)
        // Pages may end beyond the last token.
        #expect(abs(Self.masses.recall { _ in [0..<16] } - 1) < 1e-15)
        #expect(SelectionRecall([]).recall { _ in [0..<1] } == 0)
        #expect(Self.masses.count == 7)
        #expect(Self.masses.curve.density(reaching: 0.44) == 2.0 / 7)
    }

    @Test func theLeastBudgetIsFound() {
        func recall(_ budget: Int) -> Double { Double(budget) / 1000 }
        #expect(SelectionRecall.leastBudget(reaching: 0.5, step: 16, limit: 1000, recall: recall) == 512)
        #expect(SelectionRecall.leastBudget(reaching: 0.512, step: 16, limit: 1000, recall: recall) == 512)
        #expect(SelectionRecall.leastBudget(reaching: 0.513, step: 16, limit: 1000, recall: recall) == 528)
        #expect(SelectionRecall.leastBudget(reaching: 0.999, step: 16, limit: 1000, recall: recall) == 1000)
        #expect(SelectionRecall.leastBudget(reaching: 1.1, step: 16, limit: 1000, recall: recall) == nil)
        #expect(SelectionRecall.leastBudget(reaching: 0.001, step: 16, limit: 1000, recall: recall) == 16)
    }

    @Test func timeOverContextHasACurvePerLabel() {
        func row(_ name: String, _ seconds: Double?, threads: Int = 2) -> BenchmarkRow {
            BenchmarkRow(
                op: "decode.step", caseName: name, isa: "avx2", threads: threads,
                timing: seconds.map { Summary(median: $0, min: $0, max: $0) })
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

    @Test func aRateIsBytesOverTime() {
        var row = Samples.complete
        #expect(abs(row.readGigabytesPerSecond! - 2) < 1e-12)
        row.medianSeconds = nil
        #expect(row.readGigabytesPerSecond == nil)
    }
}
