import Testing

@testable import Terminal

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
