import Testing

@testable import BenchmarkReport

@Suite struct TextTableTests {
    @Test(arguments: [80, 120, 200])
    func allLinesOfASectionHaveTheSameLength(width: Int) {
        let table = TextTable(title: "Attention", rows: Samples.rows, lineWidth: width)
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
        (.decode, "131072 b8 f16 LServe 4096 L16 f16 /4", ["f16"]),
        (.decodeUpkeep, "131072 b1 int8 append to a fork", ["dense"]),
        (.decodeQuality, "lm-layer3-32768 f16 LServe 8192 per query head", []),
    ])
    func everySectionFitsATerminal(section: ReportSection, name: String, baselines: [String]) {
        let table = TextTable(
            title: section.title, caseNames: [name], isas: ["avx512"], baselines: baselines, columns: section.columns)
        #expect(table.header.allSatisfy { $0.count <= 120 }, "\(table.header[2].count)")
    }

    @Test func columnsMayBeLimitedToThoseOfASection() {
        let table = TextTable(title: "", rows: [Samples.complete], columns: ReportSection.scoring.columns)
        #expect(!table.header[2].contains("Roof") && table.header[2].contains("Recall"))
    }

    @Test func columnsThatNobodyUsesAreDropped() {
        let table = TextTable(title: "", rows: [Samples.bare])
        #expect(table.header[2].split(separator: " ") == ["Case", "ISA", "Thr", "Status"])
        #expect(table.line(Samples.bare).split(separator: " ") == ["one", "page", "portable", "1", "-"])
    }

    @Test func aSingleBaselineStandsInTheHeader() {
        let table = TextTable(title: "", rows: [Samples.complete])
        #expect(table.header[3].contains("× dense"))
        #expect(!table.line(Samples.complete).contains("dense"))
        let several = TextTable(title: "", rows: Samples.rows)
        #expect(several.line(Samples.complete).contains("7.01 dense"))
    }

    @Test func aRowShowsItsNumbers() {
        let line = TextTable(title: "", rows: [Samples.complete]).line(Samples.complete)
        let cells = line.split(separator: " ").dropFirst(3).map(String.init)
        #expect(
            cells == [
                "12.5", "10.1", "131", "1024", "avx512", "2", "12.3", "4.9", "24.6", "2.00", "141", "1130", "21.5", "91.2",
                "0.750", "7.01", "3.50", "87.6", "14.3", "15.0", "4672", "98.4", "2.3",
                "3.1e-07", "4.0e-06", "ok",
            ])
        #expect(TextTable(title: "", rows: Samples.rows).line(Samples.rows[2]).contains("nan"))
        #expect(TextTable(title: "", rows: Samples.rows).line(Samples.rows[2]).contains("FAIL"))
    }

    @Test func numbersHaveThreeDigits() {
        let expected: [(Double, String)] = [
            (0, "0"), (0.001234, "0.00123"), (0.01234, "0.0123"), (0.9996, "1.00"), (9.996, "10.0"), (99.96, "100"),
            (123.4, "123"), (123456, "123456"), (1.2e7, "1.2e+07"), (-1.234, "-1.23"), (1e-5, "1.0e-05"),
        ]
        for (value, text) in expected { #expect(Format.number(value) == text) }
        #expect(Format.number(nil) == "" && Format.number(.nan) == "nan")
        #expect(Format.percent(0.00123) == "0.12" && Format.percent(1) == "100.0")
        #expect(Format.duration(59.6) == "1 min 00 s" && Format.duration(7500) == "2 h 05 min")
    }
}

@Suite struct ProgressTests {
    private final class Screen {
        var time = Duration.zero
        var output: [String] = []

        func progress(isTerminal: Bool) -> ProgressLine {
            ProgressLine(
                total: 4, isTerminal: isTerminal, width: 54, write: { self.output.append($0) }, now: { self.time })
        }
    }

    @Test func aTerminalLineIsRewrittenAndCleared() {
        let screen = Screen()
        let progress = screen.progress(isTerminal: true)
        progress.begin("a case")
        screen.time = .seconds(30)
        progress.finishCase()
        progress.clear()
        progress.clear()
        let erase = "\r\u{1B}[K"
        #expect(
            screen.output == [
                erase + "▕            ▏ [0/4] 0 s: a case", erase + "▕███         ▏ [1/4] 30 s, about 1 min 30 s left: a ca",
                erase,
            ])
    }

    @Test func theTimeLeftIsThatOfTheWorkThatWasNotSkipped() {
        var output = ""
        var time = Duration.zero
        let progress = ProgressLine(total: 3, work: 16, isTerminal: true, write: { output = $0 }, now: { time })
        progress.begin("a")
        progress.finishCase(work: 8, isSkipped: true)
        progress.begin("b")
        time = .seconds(10)
        progress.finishCase(work: 2)
        #expect(output == "\r\u{1B}[K▕███████▌    ▏ [2/3] 10 s, about 30 s left: b")
    }

    @Test func ticksAreThrottled() {
        let screen = Screen()
        let progress = screen.progress(isTerminal: true)
        progress.begin("a")
        for _ in 0..<100 { progress.tick() }
        #expect(screen.output.count == 1)
    }

    @Test func aLogHasALineEveryTenSecondsAndNoneForAShortRun() {
        let screen = Screen()
        let progress = screen.progress(isTerminal: false)
        progress.begin("a")
        for second in 0..<25 {
            screen.time = .seconds(second)
            progress.tick()
            progress.clear()
        }
        #expect(screen.output == ["[0/4] 2 s: a\n", "[0/4] 12 s: a\n", "[0/4] 22 s: a\n"])
    }
}
