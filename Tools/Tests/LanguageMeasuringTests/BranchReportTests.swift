import Foundation
import ReasoningBranches
import SparseKernels
import SparseKernelsModels
import Terminal
import Testing

@testable import LanguageMeasuring

@Suite("Reports of branches")
struct BranchReportTests {
    private func run(_ tiny: TinyBytes, threads: Int = 2) throws -> BranchRun {
        let model = try LanguageModel(folder: tiny.folder, linear: .float32, on: WorkerPool(threads: threads))
        var options = SessionOptions(tokenCapacity: 1024)
        (options.pageSize, options.sequenceCapacity) = (16, 32)
        let session = try LanguageSession(model, options, on: WorkerPool(threads: threads))
        return BranchRun(
            try BranchingSession(session, reusesPrefixes: false, seed: 3), tokenizer: ByteTokenizer(),
            request: BranchRequest(sampling: Sampling(temperature: 0.7), maximumTokens: 20))
    }

    private let prompt = (0..<70).map { $0 * 7 % 90 + 32 }

    @Test("the memory of samples is counted when it is most, and all of it is free afterwards")
    func best() throws {
        let tiny = try TinyBytes()
        var run = try run(tiny)
        let samples = try run.bestOf(6, after: prompt, by: .meanLogProbability)
        #expect(samples.count == 6 && run.branching.tree.cache.usedPageCount == 0)
        let memory = run.memory
        // The prompt has five pages, of which the last is copied; 20 tokens more end in the page after that.
        #expect(memory.rows.count == 7 && memory.rows[0].parent == nil && memory.rows[1...].allSatisfy { $0.parent == 0 })
        #expect(memory.rows[0].kinds.hasPrefix("SSSS") && memory.rows[1...].allSatisfy { $0.kinds.hasPrefix("sssso") })
        #expect(memory.usedPages == 5 + 6 * 2)
        #expect(memory.unsharedPages == memory.rows.reduce(0) { $0 + $1.pages })
        let lines = memory.lines(width: 3)
        #expect(lines.count == 7 && lines[0].hasPrefix("root 0") && lines[1].hasPrefix("  branch 1"))
        let chart = memory.chart(title: "best")
        #expect(chart.rows.count == 7 && chart.rows[3].parent == 0 && chart.svg().contains("branch 6"))

        let report = BranchReport(
            mode: "best", promptTokens: prompt.count, samples: samples, joined: nil, memory: memory,
            statistics: run.branching.session.statistics)
        let data = try RowFile<BranchReport>.encode(report)
        #expect(try JSONDecoder().decode(BranchReport.self, from: data) == report)
        #expect(report.summary.contains("70 tokens of prompt") && report.samples[0].end == "all tokens made")
    }

    @Test("beams are seen, and threads change nothing")
    func beams() throws {
        let tiny = try TinyBytes()
        var (one, other) = (try run(tiny, threads: 1), try run(tiny, threads: 7))
        let samples = try one.beams(4, after: prompt, lengthPenalty: 0)
        #expect(try other.beams(4, after: prompt, lengthPenalty: 0) == samples)
        #expect(samples.count == 4 && one.memory == other.memory && one.memory.rows.count == 5)
    }

    @Test("children are joined in the order of the spawn, and the parent goes on behind them")
    func spawn() throws {
        let tiny = try TinyBytes()
        var run = try run(tiny)
        let samples = try run.spawn(["first ", "second ", "third "], after: prompt, separator: "\n")
        #expect(samples.count == 4)
        var expected: [UInt8] = []
        for (start, sample) in zip(["first ", "second ", "third "], samples) {
            expected += Array(start.utf8) + sample.bytes + Array("\n".utf8)
        }
        #expect(run.joined == expected + samples[3].bytes)
        #expect(run.branching.tree.cache.usedPageCount == 0 && run.memory.rows.count == 4)
        // Children that cannot be are errors, and nothing is left.
        #expect(throws: SparseKernelsError.self) {
            try run.spawn(Array(repeating: String(repeating: "x", count: 300), count: 20), after: prompt, separator: "")
        }
        #expect(run.branching.tree.cache.sequences.isEmpty)
    }
}
