import Testing

@testable import BenchmarkReport

@Suite("What --filter finds")
struct RowFilterTests {
    private static let cases: [(op: String, name: String)] = [
        ("gemm.tile", "tile, 256 deep"), ("gemm", "512³ A·B"), ("attention.dense", "N 2048 d 64 H 8 causal"),
        ("prefill.dense", "lm-layer3-8192 dense"), ("decode.quality", "lm-layer3-8192 f16 Quest 512"),
    ]

    private func found(_ text: String?) -> [String] {
        let filter = RowFilter(text)
        return Self.cases.filter { filter.matches(op: $0.op, name: $0.name) }.map(\.op)
    }

    @Test("sections, operations and cases match, in any case, and any text of a list")
    func matches() {
        #expect(found(nil).count == 5 && found("").count == 5 && found(" , ").count == 5)
        #expect(found("gemm") == ["gemm.tile", "gemm"] && found("GEMM.Tile") == ["gemm.tile"])
        #expect(found("matrixProduct") == found("gemm"))
        for text in ["denseAttention", "dense attention", "Dense-Attention"] { #expect(found(text) == ["attention.dense"]) }
        #expect(found("n 2048 D 64") == ["attention.dense"] && found("quest") == ["decode.quality"])
        #expect(found("tile,QUEST, 512³") == ["gemm.tile", "gemm", "decode.quality"])
        // Operation and name together, as in a report.
        #expect(found("dense lm-layer3") == ["prefill.dense"])
        #expect(found("softmax").isEmpty)
    }

    @Test("a text that finds nothing is an error, which names the nearest and what there is")
    func nothingFound() throws {
        try RowFilter("gemm,quest,matrix product").require(in: Self.cases)
        try RowFilter(nil).require(in: [])
        let error = #expect(throws: UsageError.self) { try RowFilter("gemm,atention.dense").require(in: Self.cases) }
        let lines = try #require(error?.description.split(separator: "\n").map(String.init))
        #expect(lines[0].contains("\"atention.dense\"") && lines[0].contains("nearest is \"attention.dense\""))
        #expect(
            lines.dropFirst() == [
                "  matrixProduct   gemm.tile, gemm", "  denseAttention  attention.dense", "  prefill         prefill.dense",
                "  decodeQuality   decode.quality",
            ])
        let foreign = #expect(throws: UsageError.self) { try RowFilter("convolution").require(in: Self.cases) }
        #expect(foreign?.description.contains("nearest") == false)
    }

    @Test(
        "the nearest needs the fewest changes to stand in a candidate",
        arguments: [
            ("gmm", "gemm"), ("GEMM.TLE", "gemm.tile"), ("N 2049", "N 2048 d 64"), ("perfill", "prefill"),
            ("qest", "Quest 512"),
            ("xyz", nil),
        ] as [(String, String?)])
    func nearest(text: String, expected: String?) {
        #expect(
            RowFilter.nearest(to: text, among: ["gemm", "gemm.tile", "N 2048 d 64", "prefill", "Quest 512"]) == expected)
    }
}
