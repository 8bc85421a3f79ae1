import Terminal

/// A number that rows may have. Its declaration is complete: the key in the JSON report, the column, and the tables with that
/// column. A new metric is a declaration below and its position in `all`; then cases store values.
public struct Metric: Sendable {
    /// The key in the JSON report.
    public let key: String
    let name: String
    let unit: String
    let width: Int
    let text: @Sendable (Double?) -> String
    /// The tables with this column. The column is shown if a row of the table has a value.
    let sections: Set<ReportSection>
    /// Computes the metric from other numbers of the row; nil for a metric that the row stores.
    let derived: (@Sendable (BenchmarkRow) -> Double?)?

    /// - Parameters:
    ///   - key: the key in the JSON report, which omits derived metrics.
    ///   - name, unit: the head of the column.
    ///   - width: characters of the widest number that the format makes for sensible input, such as "0.00123".
    init(
        _ key: String, _ name: String = "", _ unit: String = "", width: Int = 0,
        in sections: Set<ReportSection> = [], format text: @escaping @Sendable (Double?) -> String = number,
        derived: (@Sendable (BenchmarkRow) -> Double?)? = nil
    ) {
        (self.key, self.name, self.unit, self.width) = (key, name, unit, width)
        (self.sections, self.text, self.derived) = (sections, text, derived)
    }
}

extension Metric: Hashable {
    public static func == (a: Metric, b: Metric) -> Bool { a.key == b.key }
    public func hash(into hasher: inout Hasher) { hasher.combine(key) }
}

// MARK: - All metrics

extension Metric {
    /// Metrics of the request, with columns after the name of the case.
    static let describing: [Metric] = [density, oracleDensity, keptTokens, budgetTokens]

    /// Metrics of the measurement, with columns after instruction set and threads.
    static let measured: [Metric] = [
        medianSeconds, relativeSpread, bytesRead, readRate, actualGFLOPS, effectiveGFLOPS, weightRate, roofFraction,
        quantizationSeconds, speedup, sameFormatSpeedup, attentionSpeedup, efficiency, baselineShare, scoringShare,
        bytesPerToken, branchBytes, parallelEfficiency, computingShare, hiddenShare, sentBytes, sentRatio, workBalance,
        recall,
        outputError, error, errorBound,
    ]

    /// All metrics with a column, in the order of the columns.
    public static let all = describing + measured

    /// The kept fraction of the blocks, weights or tokens, from 0 to 1.
    public static let density = Metric(
        "density", "Dens.", "%", width: 5, in: [.blockSparse, .scoring, .prefill, .decodeQuality, .video], format: percent)
    /// The smallest density at which any choice of blocks has this recall.
    public static let oracleDensity = Metric(
        "oracle_density", "Oracle", "%", width: 5, in: [.prefill, .decodeQuality], format: percent)
    /// Mean number of tokens that a query head attends to.
    public static let keptTokens = Metric("tokens_kept", "Kept", "tokens", width: 6, in: [.decodeQuality])
    /// Number of tokens that a fixed budget of pages needs for the same recall.
    public static let budgetTokens = Metric("tokens_budget", "Budget", "tokens", width: 6, in: [.decodeQuality])

    public static let medianSeconds = Metric(
        "median_s", "Median", "ms", width: 7, in: timed, format: { Format.number($0.map { $0 * 1e3 }) })
    public static let minSeconds = Metric("min_s")
    public static let maxSeconds = Metric("max_s")
    /// Half the range over the median.
    public static let relativeSpread = Metric("spread", "Spread", "± %", width: 5, in: timed, format: percent) { row in
        guard let median = row[.medianSeconds], let min = row[.minSeconds], let max = row[.maxSeconds] else { return nil }
        return Summary(median: median, min: min, max: max).relativeSpread
    }
    /// Bytes of the KV cache that must be read for the result: keys, values, scales, page metadata and estimates. Of row operators
    /// and steps of recurrences, bytes that are read and written.
    public static let bytesRead = Metric(
        "bytes_read", "Read", "MB", width: 6,
        in: [.decode, .branches, .rowOperators, .blocks, .recurrence, .contextual, .vision, .ranks],
        format: { Format.number($0.map { $0 / 1e6 }) })
    /// `bytesRead` over the median time, in 10⁹ per second.
    public static let readRate = Metric(
        "read_gbs", "Rate", "GB/s", width: 6,
        in: [.decode, .branches, .rowOperators, .blocks, .recurrence, .contextual, .vision, .ranks],
        format: number
    ) { row in
        guard let bytes = row[.bytesRead], let seconds = row[.medianSeconds], seconds > 0 else { return nil }
        return bytes / seconds / 1e9
    }
    /// Operations done per second, in 10⁹.
    public static let actualGFLOPS = Metric(
        "gflops_actual", "Actual", "GFLOP/s", width: 7,
        in: [
            .matrixProduct, .denseAttention, .blockSparse, .scoring, .blocks, .video, .recurrence, .contextual, .vision, .ranks,
        ])
    /// Operations that the dense operator would have needed, per second, in 10⁹.
    public static let effectiveGFLOPS = Metric(
        "gflops_effective", "Effect.", "GFLOP/s", width: 7, in: [.denseAttention, .quantizedProduct])
    /// Bytes of weights and their scales that a run reads, per second, in 10⁹.
    public static let weightRate = Metric("gbytes_per_s", "Weights", "GB/s", width: 7, in: [.quantizedProduct])
    /// Speed as a fraction of the roof that bounds this case; 1 is the roof itself.
    public static let roofFraction = Metric(
        "roof_fraction", "Roof", "%", width: 5,
        in: [
            .matrixProduct, .denseAttention, .blockSparse, .quantizedProduct, .rowOperators, .decode, .branches, .blocks,
            .video, .recurrence, .contextual, .vision, .ranks,
        ],
        format: percent)
    /// The time of making the layer, once: search of the smoothing, factorisation and rounding.
    public static let quantizationSeconds = Metric("quantize_s", "Quant.", "s", width: 7, in: [.quantizationError])

    public static let baselineSeconds = Metric("baseline_s")
    /// `baselineSeconds / medianSeconds`, or better the median of the ratios of interleaved rounds. For a row whose only time
    /// is `quantizationSeconds`, the ratio of those.
    public static let speedup = Metric(
        "speedup", "Speed", "×", width: 6, in: .all(but: [.rowOperators, .decodeUpkeep, .decodeQuality]))
    /// The `speedup` over the dense operator with the cache in the same format.
    public static let sameFormatSpeedup = Metric("speedup_same_format", "Dense", "×", width: 6, in: [.decode])
    /// The `speedup` over dense attention of as many tokens, heads and channels.
    public static let attentionSpeedup = Metric("speedup_attention", "Attn.", "×", width: 6, in: [.recurrence])
    /// Speed-up over dense times density; 1 when the time is proportional to the kept part.
    public static let efficiency = Metric("efficiency", "Effic.", "%", width: 5, in: [.blockSparse, .video], format: percent) {
        row in
        guard row.baseline == BenchmarkRow.denseBaseline, let speedup = row[.speedup] else { return nil }
        return row[.density].map { speedup * $0 }
    }
    /// Time as a fraction of the baseline's.
    public static let baselineShare = Metric(
        "baseline_share", "Time", "% base", width: 5, in: [.blockSparse, .scoring, .prefill, .decodeUpkeep, .video],
        format: percent
    ) { row in row[.speedup].map { 1 / $0 } }
    /// The fraction of the time that selecting pages and tokens takes.
    public static let scoringShare = Metric("scoring_share", "Score", "%", width: 5, in: [.decode], format: percent)
    /// Memory of one token in the cache over all KV heads of a layer, with scales, metadata and estimates.
    public static let bytesPerToken = Metric("bytes_per_token", "Memory", "B/token", width: 7, in: [.decodeUpkeep])
    /// Memory that a branch adds to the cache of a layer beside the pages that it shares.
    public static let branchBytes = Metric(
        "bytes_per_branch", "Memory", "KB/branch", width: 9, in: [.branches], format: { Format.number($0.map { $0 / 1024 }) })

    /// The `speedup` of ranks over one core, per rank.
    public static let parallelEfficiency = Metric("parallel_efficiency", "Effic.", "%", width: 5, in: [.ranks], format: percent)
    /// The fraction of the time in which ranks compute, on average.
    public static let computingShare = Metric("computing_share", "Comp.", "%", width: 5, in: [.ranks], format: percent)
    /// The fraction of the waits for messages that overlapping avoids.
    public static let hiddenShare = Metric("hidden_share", "Hidden", "%", width: 6, in: [.ranks], format: percent)
    /// Bytes that the rank with the most sends in a call.
    public static let sentBytes = Metric(
        "bytes_sent", "Sent", "MB", width: 6, in: [.ranks], format: { Format.number($0.map { $0 / 1e6 }) })
    /// Those bytes over the bytes of the formula.
    public static let sentRatio = Metric(
        "sent_ratio", "Sent", "÷ form.", width: 7, in: [.ranks], format: { $0.map { Format.fixed($0, 3) } ?? "" })
    /// The work of the rank with the most over the mean.
    public static let workBalance = Metric(
        "work_balance", "Work", "÷ mean", width: 6, in: [.ranks], format: { $0.map { Format.fixed($0, 3) } ?? "" })

    /// The fraction of the attention mass that the selection covers, from 0 to 1.
    public static let recall = Metric(
        "recall", "Recall", "%", width: 5, in: [.scoring, .prefill, .decodeQuality, .video], format: percent)
    /// The loss of accuracy by selection or quantisation: ‖output − exact output‖ / ‖exact output‖, where exact means the dense
    /// operator or the single-precision layer. `error`, in contrast, is that of the arithmetic.
    public static let outputError = Metric(
        "output_error", "O.err.", "%", width: 5, in: [.prefill, .quantizedProduct, .quantizationError, .decodeQuality, .video],
        format: percent)
    public static let error = Metric(
        "error", "Error", width: 7, in: .all(but: [.decodeUpkeep]), format: { Format.scientific($0) })
    /// The derived tolerance, which `error` must not exceed. Only some tables show it, to keep the lines of others short.
    public static let errorBound = Metric(
        "error_bound", "Bound", width: 7,
        in: [.matrixProduct, .denseAttention, .scoring, .quantizedProduct, .quantizationError, .rowOperators],
        format: { Format.scientific($0) })

    private static let timed = Set<ReportSection>.all(but: [.quantizationError, .decodeQuality])

    static let number: @Sendable (Double?) -> String = { Format.number($0) }
    private static let percent: @Sendable (Double?) -> String = { Format.percent($0) }
}

extension Set<ReportSection> {
    fileprivate static func all(but others: Set) -> Set { Set(ReportSection.allCases).subtracting(others) }
}
