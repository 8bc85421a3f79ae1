import Foundation
import SparseKernels
import SparseKernelsModels
import Terminal
import Testing

@testable import LanguageMeasuring

@Suite("Tables of language models")
struct MeasuringTests {
    private static func corpus() -> TextCorpus {
        TextCorpus(tokens: (0..<4000).map { ($0 * 37 + $0 / 11 * 5) % 90 + 32 }, byteCount: 4000)
    }

    private static func plan(trials: Int = 1) -> MeasurementPlan {
        var plan = MeasurementPlan.quick
        (plan.scored, plan.keys, plan.trials) = (16, 2, trials)
        return plan
    }

    @Test("a row of every method has all numbers, also in JSON")
    func rows() throws {
        let tiny = try TinyBytes()
        let measurer = LanguageMeasurer(
            model: try LanguageModel(folder: tiny.folder, linear: .float32), tokenizer: ByteTokenizer(), corpus: Self.corpus(),
            plan: Self.plan(), pool: WorkerPool(threads: 2))
        for method in ["dense", "xattention:0.5", "dense+streaming:64:64"] {
            var parts: [Double] = []
            let spec = SessionSpec(method: try MethodSpec(method))
            let row = try #require(
                try measurer.row(spec, context: 640) { what, part in
                    parts.append(part)
                    return !what.isEmpty
                })
            #expect(parts == parts.sorted() && parts.last == 1)
            #expect(row.bitsPerByte > 4 && row.bitsPerByte < 30 && row.scoredBytes == 32 && row.questions == 2)
            #expect(row.path == (spec.method.hasDenseDecoding ? "prefill" : "decoding"))
            #expect(row.density > 0 && row.density <= 1 && row.readFraction > 0 && row.readFraction <= 1)
            #expect((row.stepMilliseconds != nil) == (method != "xattention:0.5"))
            #expect(row.prefillRate > 0 && row.weightBytes > 0 && row.cacheBytes > 0)
            let data = try RowFile<LanguageRow>.encode([row])
            #expect(try JSONDecoder().decode([LanguageRow].self, from: data) == [row])
        }
        #expect(try measurer.row(SessionSpec(method: MethodSpec("dense")), context: 640) { _, _ in false } == nil)
        #expect(throws: SparseKernelsError.self) { try measurer.row(SessionSpec(method: MethodSpec("dense")), context: 4001) }
    }

    @Test("lines have the width of their header, and changes a sign")
    func lines() throws {
        let formats = [LinearSpec(.float16), LinearSpec(.w4a8, rank: 32)]
        let cases = TableCase.all(
            only: nil, contexts: [2048, 32768], methods: try MethodSpec.list("dense,xattention:0.9,dense+quest:12.5%"),
            linear: LinearSpec(.float16), linears: formats, caches: try CacheSpec.list("float16,int4r"), formatContext: 8192)
        #expect(cases.count == 2 * 3 + 3 && cases[0].method.isDense && cases[3].context == 32768)
        #expect(
            cases.filter { $0.kind == .formats }.map(\.title) == ["float16, float16", "float16, int4r", "w4a8:32, float16"])
        var printer = TablePrinter(cases: cases)
        var width: Int?
        for (index, item) in cases.enumerated() {
            var row = item.row(MeasurementPlan())
            row.bitsPerByte = 0.7 + 0.01 * Double(index % 3)
            (row.correct, row.questions) = (239, 240)
            (row.prefillRate, row.attentionRate) = (1234, 98_765)
            row.stepMilliseconds = item.method.hasDenseDecoding && index % 3 == 1 ? nil : 12.345
            (row.weightBytes, row.cacheBytes) = (34_000_000, 3072)
            let lines = printer.add(row, of: item)
            if lines.count > 1 { width = lines.first { !$0.isEmpty }!.count }
            #expect(lines.last!.count == width, "\(lines)")
            if index == 1 { #expect(lines.last!.contains("+1.43"), "\(lines)") }
        }
        #expect(LanguageRow.change(0.99, 1) == "−1.00" && LanguageRow.change(1, nil) == "" && LanguageRow.change(.nan, 1) == "")
        #expect(LanguageRow.change(1.00049, 1) == "+0.05" && LanguageRow.legend(MeasurementPlan()).count == 3)
        #expect(
            TableCase.all(
                only: .formats, contexts: [1], methods: [], linear: LinearSpec(.w4a4), linears: formats, caches: [.float16],
                formatContext: 5
            ).count == 2)
    }

    @Test("rows are in the file as soon as they are measured, and a run goes on from there")
    func files() throws {
        let path = NSTemporaryDirectory() + "sparsekernels-rows-\(UUID().uuidString).json"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let item = TableCase.all(
            only: .methods, contexts: [64], methods: [], linear: LinearSpec(.float16), linears: [], caches: [], formatContext: 0
        )[0]
        var file = try RowFile<LanguageRow>(path: path, continues: true)
        #expect(file.rows.isEmpty)
        try file.append(item.row(Self.plan()))
        let again = try RowFile<LanguageRow>(path: path, continues: true)
        #expect(again.rows.count == 1 && again.rows[0].isSameCase(as: item.row(Self.plan())))
        #expect(!again.rows[0].isSameCase(as: item.row(Self.plan(trials: 2))))
        #expect(try RowFile<LanguageRow>(path: path, continues: false).rows.isEmpty)
        try Data("[{]".utf8).write(to: URL(fileURLWithPath: path))
        #expect(throws: SparseKernelsError.self) { try RowFile<LanguageRow>(path: path, continues: true) }
        var lost = try RowFile<LanguageRow>(path: "/nowhere/at/all.json", continues: false)
        #expect(throws: SparseKernelsError.self) { try lost.append(item.row(Self.plan())) }
    }

    @Test("bench runs prompts and steps at each depth, with the names of llama-bench")
    func bench() throws {
        let tiny = try TinyBytes()
        let model = try LanguageModel(folder: tiny.folder, linear: .float32)
        var bench = LanguageBench()
        (bench.prompt, bench.steps, bench.depths, bench.repetitions) = (20, 4, [0, 100], 2)
        var rows: [LanguageBench.Row] = []
        var began: [String] = []
        let spec = SessionSpec(method: try MethodSpec("dense"))
        try bench.run(model, spec, text: Self.corpus().tokens, began: { began.append($0) }) { rows.append($0) }
        #expect(rows.map(\.test) == bench.tests && bench.tests == ["pp20", "tg4", "pp20 @ d100", "tg4 @ d100"])
        #expect(began == ["pp20", "tg4", "100 tokens", "pp20 @ d100", "tg4 @ d100"])
        let table = LanguageBench.Row.table(methodWidth: 5)
        for row in rows {
            #expect(row.seconds.count == 2 && row.mean > 0 && row.line(in: table).count == table.header[0].count)
        }
        for bad in [LanguageBench.quick, bench] {
            var bad = bad
            bad.repetitions = 0
            #expect(throws: SparseKernelsError.self) { try bad.run(model, spec, text: [1]) { _ in } }
        }
        #expect(throws: SparseKernelsError.self) { try bench.run(model, spec, text: []) { _ in } }
    }

    @Test("the slope is that of the line through the steps, and σ that of the repetitions")
    func slope() {
        func row(_ test: String, _ depth: Int, _ seconds: [Double]) -> LanguageBench.Row {
            LanguageBench.Row(
                test: test, depth: depth, tokens: 10, method: "dense", linear: "float16", cache: "float16", threads: 1,
                seconds: seconds)
        }
        // 1 ms at no context, and half a millisecond more for each 1K.
        let rows = [row("tg10", 0, [0.010]), row("tg10 @ d2048", 2048, [0.020]), row("tg10 @ d4096", 4096, [0.030])]
        #expect(abs(LanguageBench.slope(rows + [row("pp10", 0, [5])])! - 0.5) < 1e-9)
        #expect(LanguageBench.slope([rows[0]]) == nil && LanguageBench.slope([]) == nil)
        let spread = row("pp10", 0, [1, 2])
        #expect(spread.mean == 7.5 && abs(spread.deviation - 2.5 * 2.0.squareRoot()) < 1e-12 && rows[0].deviation == 0)
        #expect(spread.isPrompt && !rows[0].isPrompt && spread.millisecondsPerToken == 150)
    }

    @Test("a report of generated texts is one paragraph, and JSON")
    func report() throws {
        let tiny = try TinyBytes()
        let session = try LanguageSession(LanguageModel(folder: tiny.folder, linear: .float32))
        let requests = [
            GenerationRequest(prompt: [1, 2, 3], maximumTokens: 4), GenerationRequest(prompt: [4], maximumTokens: 0),
        ]
        let results = try Generator(session, tokenizer: ByteTokenizer()).run(requests)
        let report = GenerationReport(
            results: results, promptTokens: 3, statistics: session.statistics, byteCount: 1000, method: "dense",
            linear: "float32",
            cache: "float16")
        #expect(report.samples.count == 2 && report.samples[1].end == "all tokens made")
        #expect(report.summary.contains("3 tokens of prompt") && !report.summary.contains("\n"))
        let data = try RowFile<LanguageRow>.encode(report)
        #expect(try JSONDecoder().decode(GenerationReport.self, from: data) == report)
    }
}
