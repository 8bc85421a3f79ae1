import BenchmarkReport
import Foundation
import Testing

@Suite("Tables in pages")
struct PageTablesTests {
    private let folder = FileManager.default.temporaryDirectory.appendingPathComponent("pages-\(UUID())")

    private func updated(_ marker: String, block: [String] = ["```text", "old", "```"], rest: String = "<!-- end -->") throws
        -> String
    {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        var rows = Samples.rows
        for index in 0..<2 { rows[index].op = ["gemm", "attention.dense"][index] }
        let machine = Machine(cpu: "a CPU", cores: 2, isa: "avx512", commit: "0", compiler: "Swift")
        try Report(machine: machine, rows: rows).write(to: folder.appendingPathComponent("a.json").path)
        let page = (["before", marker] + block + [rest, "after", ""]).joined(separator: "\n")
        return try PageTables(results: folder).updated(page)
    }

    @Test("the pages of this repository are current")
    func pages() throws {
        let tables = PageTables()
        #expect(PageTables.pages.count > 5)
        for page in PageTables.pages {
            let text = try String(contentsOfFile: page, encoding: .utf8)
            #expect(try tables.updated(text) == text, "sparsekernels-bench tables \(page) makes its tables anew")
        }
    }

    @Test("a block is replaced by the lines that `show` prints, without a title where there is one section")
    func replaced() throws {
        let lines = try updated("<!-- table: a.json section=matrixProduct -->").split(separator: "\n").map(String.init)
        let table = ReportTable(title: "", rows: [gemm], metrics: ReportSection.matrixProduct.metrics)
        let expected = (table.header.dropFirst(2) + [table.line(gemm)]).map { $0.replacing(/\ +$/, with: "") }
        #expect(lines[0...2] == ["before", "<!-- table: a.json section=matrixProduct -->", "```text"])
        #expect(Array(lines[3..<7]) == expected)
        #expect(lines[7...] == ["```", "<!-- end -->", "after"])
        // A second update changes nothing, even with empty lines around the block.
        let again = try updated("<!-- table: a.json section=matrixProduct -->", block: [""] + Array(lines[2...7]) + [""])
        #expect(again.contains(lines[3..<7].joined(separator: "\n")))
    }

    private var gemm: BenchmarkRow {
        var row = Samples.rows[0]
        row.op = "gemm"
        return row
    }

    @Test("rows are chosen by section, filter, instruction set and threads, columns by key")
    func options() throws {
        let all = try updated("<!-- table: a.json -->")
        #expect(all.contains(ReportSection.matrixProduct.title) && all.contains(ReportSection.denseAttention.title))
        for options in ["filter=\"n32768 H16\"", "isa=avx2", "threads=16,3", "filter=causal isa=avx2,portable"] {
            let one = try updated("<!-- table: a.json \(options) -->")
            #expect(
                one.contains("n32768") && !one.contains("n4096") && !one.contains("tiny") && !one.contains("Dense attention"))
        }
        let narrow = try updated("<!-- table: a.json section=matrixProduct,denseAttention columns=recall,spread -->")
        #expect(narrow.contains("Recall") && narrow.contains("Spread") && !narrow.contains("Median"))
    }

    @Test(
        "what is not there is named, with its line",
        arguments: [
            ("b.json", "b.json"), ("a.json section=gemm", "matrixProduct"), ("a.json filter=softmax", "softmax"),
            ("a.json isa=neon", "no such row"), ("a.json threads=two", "threads=two"), ("a.json columns=time", "median_s"),
            ("a.json colour=red", "colour=red"), ("a.json filter=\"a", "quotation"), ("section=prefill", "file"),
        ])
    func mistakes(marker: String, fragment: String) {
        let error = #expect(throws: UsageError.self) { try updated("<!-- table: \(marker) -->") }
        let text = error?.description ?? ""
        #expect(text.hasPrefix("line 2: ") && text.contains(fragment), "\(text)")
    }

    @Test("a marker needs its block and its end, unless it stands in a block itself")
    func markers() throws {
        #expect(throws: UsageError.self) { try updated("<!-- table: a.json -->", block: ["old"]) }
        #expect(throws: UsageError.self) { try updated("<!-- table: a.json -->", rest: "more") }
        let shown = "```text\n<!-- table: FILE.json section=NAME -->\n```\n"
        #expect(try PageTables().updated(shown) == shown)
    }
}
