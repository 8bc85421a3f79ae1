import Testing

@testable import BenchmarkReport

@Suite struct ReportTableTests {
    @Test(arguments: [80, 120, 200])
    func allLinesOfASectionHaveTheSameLength(width: Int) {
        let table = ReportTable(title: "Attention", rows: Samples.rows, lineWidth: width)
        let lines = table.header.dropFirst(2) + Samples.rows.map(table.line)
        #expect(Set(lines.map(\.count)).count == 1, "\(lines.joined(separator: "\n"))")
    }

    @Test(arguments: [
        (ReportSection.matrixProduct, "tile, 256 deep", ["OpenBLAS"]),
        (.denseAttention, "lm-layer3-32768 causal f16", ["1 thread", "avx2"]),
        (.blockSparse, "N 32768 d 128 H 1 B 128 dense", ["dense", "run"]),
        (.scoring, "lm-layer3-32768 S16 f32", ["dense"]),
        (.prefill, "lm-layer3-32768 S16 τ0.95 f32 attend", ["dense"]),
        (.quantizedProduct, "14336×4096 M 4096 W4A16 r32", ["OpenBLAS"]),
        (.quantizationError, "code-lm layers.3.mlp.down W4A4 smooth r32 GPTQ", ["39 SVDs"]),
        (.rowOperators, "RMSNorm of sums 512×4096", []),
        (.decode, "131072 b8 f16 LServe 4096 L16 f16 /4", ["f16"]),
        (.branches, "32768+4096 x32 one by one", ["one by one"]),
        (.decodeUpkeep, "131072 b1 int8 append to a fork", ["dense"]),
        (.decodeQuality, "lm-layer3-32768 f16 LServe 8192 per query head", []),
        (.recurrence, "131072 tokens H 8 per channel", ["steps"]),
        (.contextual, "FFN 14336×4096 2048 tokens 97%", ["dense"]),
        (.vision, "PS3 3780×3780, 2560 of 72900 patches", ["all patches"]),
    ])
    func everySectionFitsATerminal(section: ReportSection, name: String, baselines: [String]) {
        let table = ReportTable(
            title: section.title, caseNames: [name], isas: ["avx512"], baselines: baselines, metrics: section.metrics)
        #expect(table.header.allSatisfy { $0.count <= 120 }, "\(table.header[2].count)")
    }

    @Test func columnsMayBeLimitedToThoseOfASection() {
        let table = ReportTable(title: "", rows: [Samples.complete], metrics: ReportSection.scoring.metrics)
        #expect(!table.header[2].contains("Roof") && table.header[2].contains("Recall"))
    }

    @Test func columnsThatNobodyUsesAreDropped() {
        let table = ReportTable(title: "", rows: [Samples.bare])
        #expect(table.header[2].split(separator: " ") == ["Case", "ISA", "Thr", "Status"])
        #expect(table.line(Samples.bare).split(separator: " ") == ["one", "page", "portable", "1", "-"])
    }

    @Test func aSingleBaselineStandsInTheHeader() {
        let table = ReportTable(title: "", rows: [Samples.complete])
        #expect(table.header[3].contains("× dense"))
        #expect(!table.line(Samples.complete).contains("dense"))
        let several = ReportTable(title: "", rows: Samples.rows)
        #expect(several.line(Samples.complete).contains("7.01 dense"))
    }

    @Test func aRowShowsItsNumbers() {
        let line = ReportTable(title: "", rows: [Samples.complete]).line(Samples.complete)
        let cells = line.split(separator: " ").dropFirst(3).map(String.init)
        #expect(
            cells == [
                "12.5", "10.1", "131", "1024", "avx512", "2", "12.3", "4.9", "24.6", "2.00", "141", "1130", "21.5", "91.2",
                "0.750", "7.01", "3.50", "6.50", "87.6", "14.3", "15.0", "4672", "96.0", "91.0", "97.0", "99.0", "8.40",
                "1.001", "1.002", "98.4", "2.3",
                "3.1e-07", "4.0e-06", "ok",
            ])
        #expect(ReportTable(title: "", rows: Samples.rows).line(Samples.rows[2]).contains("nan"))
        #expect(ReportTable(title: "", rows: Samples.rows).line(Samples.rows[2]).contains("FAIL"))
    }

    @Test("a long case name does not widen a table")
    func tables() {
        var rows = Samples.rows
        for index in rows.indices {
            rows[index].caseName = "model.layers.\(index)." + String(repeating: "very_long_", count: 20)
        }
        let narrow = ReportTable(title: "t", rows: Samples.rows)
        let table = ReportTable(title: "t", rows: rows)
        let lines = table.header.dropFirst(2) + rows.map(table.line)
        #expect(Set(lines.map(\.count)).count == 1)
        #expect(lines[2].count <= max(120, narrow.header[2].count + 32))
        #expect(Set(rows.map(table.line)).count == rows.count)
        let few = ReportTable(title: "t", rows: rows, metrics: [.medianSeconds])
        #expect(few.header.allSatisfy { $0.count <= 120 })
    }
}
