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

    @Test func aRateIsBytesOverTime() {
        var row = Samples.complete
        #expect(abs(row[.readRate]! - 2) < 1e-12)
        row[.medianSeconds] = nil
        #expect(row[.readRate] == nil)
    }
}
