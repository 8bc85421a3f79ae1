import BenchmarkReport

/// Artificial rows like those of a real run: long and short names, several baselines, small and large numbers.
enum Samples {
    static let complete = timed(
        BenchmarkRow(
            op: "attention.block", caseName: "n4096 h8 d64", isa: "avx512", threads: 2, baseline: "dense", verified: true,
            metrics: [
                .density: 0.125, .actualGFLOPS: 141.25, .effectiveGFLOPS: 1130, .weightRate: 21.5, .roofFraction: 0.912,
                .baselineSeconds: 0.0862, .speedup: 7.01, .error: 3.1e-7, .errorBound: 4e-6, .recall: 0.984,
                .oracleDensity: 0.101, .outputError: 0.0234, .quantizationSeconds: 0.75, .bytesRead: 2.46e7,
                .scoringShare: 0.15, .sameFormatSpeedup: 3.5, .attentionSpeedup: 6.5, .bytesPerToken: 4672,
                .branchBytes: 98_304, .keptTokens: 131,
                .budgetTokens: 1024, .parallelEfficiency: 0.91, .computingShare: 0.97, .hiddenShare: 0.99, .sentBytes: 8.4e6,
                .sentRatio: 1.001, .workBalance: 1.002,
            ]), Summary(median: 0.0123, min: 0.0119, max: 0.0131))

    static let bare = BenchmarkRow(op: "pages.select", caseName: "one page", isa: "portable", threads: 1)

    static let rows: [BenchmarkRow] = [
        complete,
        timed(
            BenchmarkRow(
                op: "attention.block", caseName: "n32768 h16 d128 causal", isa: "avx2", threads: 16, baseline: "OpenBLAS",
                verified: true,
                metrics: [
                    .density: 0.004, .actualGFLOPS: 12345.6, .effectiveGFLOPS: 312_000, .roofFraction: 1.004,
                    .baselineSeconds: 100, .speedup: 0.0812, .error: 0, .errorBound: 4e-6,
                ]), Summary(median: 12.3456, min: 11, max: 14.2)),
        timed(
            BenchmarkRow(
                op: "attention.block", caseName: "tiny", isa: "portable", threads: 1, verified: false,
                metrics: [
                    .density: 1, .actualGFLOPS: 0.0421, .effectiveGFLOPS: 0.0421, .roofFraction: 0.0005, .error: .nan,
                    .errorBound: 4e-6,
                ]), Summary(median: 1.23e-6, min: 1.2e-6, max: 1.3e-6)),
        bare,
    ]

    private static func timed(_ row: BenchmarkRow, _ time: Summary) -> BenchmarkRow {
        var row = row
        row.setTime(time)
        return row
    }
}
