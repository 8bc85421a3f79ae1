/// One measured case, which is a line of the table and an element of `rows` in the JSON report.
///
/// Every number is optional, because no row has them all: a micro-kernel has no recall, a dense product no density. A number
/// that is absent or not finite is left out of the JSON, so that readers never find `null` or a made-up zero.
public struct BenchmarkRow: Codable, Sendable, Equatable {
    public var op: String
    public var caseName: String
    /// The kept fraction of the blocks, weights or tokens, from 0 to 1.
    public var density: Double?
    public var isa: String
    public var threads: Int

    public var medianSeconds: Double?
    public var minSeconds: Double?
    public var maxSeconds: Double?

    /// Operations done per second, in 10⁹.
    public var actualGFLOPS: Double?
    /// Operations that the dense operator would have needed, per second, in 10⁹.
    public var effectiveGFLOPS: Double?
    /// Bytes of weights that a run reads, with their scales, per second, in 10⁹.
    public var weightGigabytesPerSecond: Double?
    /// Speed as a fraction of the roof that bounds this case; 1 is the roof itself.
    public var roofFraction: Double?

    public var baseline: String?
    public var baselineSeconds: Double?
    /// `baselineSeconds / medianSeconds`, or better the median of the ratios of interleaved rounds. For a row whose only time
    /// is `quantizationSeconds`, the ratio of those.
    public var speedup: Double?

    public var error: Double?
    /// The derived tolerance, which `error` must not exceed.
    public var errorBound: Double?
    /// The fraction of the attention mass that the selection covers, from 0 to 1.
    public var recall: Double?
    /// The least density at which any choice of blocks has this recall.
    public var oracleDensity: Double?
    /// The loss of accuracy by selection or quantisation: ‖output − exact output‖ / ‖exact output‖, where exact means the dense
    /// operator or the single-precision layer. `error`, in contrast, is that of the arithmetic.
    public var outputError: Double?
    /// The time of making the layer, once: search of the smoothing, factorisation and rounding.
    public var quantizationSeconds: Double?
    /// Bytes of the KV cache that must be read for the result: keys, values, scales, page metadata and estimates.
    public var bytesRead: Double?
    /// The fraction of the time that selecting pages and tokens takes.
    public var scoringShare: Double?
    /// The `speedup` over the dense operator with the cache in the same format.
    public var sameFormatSpeedup: Double?
    /// Memory of one token in the cache over all KV heads of a layer, with scales, metadata and estimates.
    public var bytesPerToken: Double?
    /// Tokens that a query head attends to, on average.
    public var keptTokens: Double?
    /// Tokens that a fixed budget of pages needs for the same `recall`.
    public var budgetTokens: Double?
    /// The result of the check before the measurement; absent when there was none.
    public var verified: Bool?

    public init(
        op: String, caseName: String, density: Double? = nil, isa: String, threads: Int, timing: Summary? = nil,
        actualGFLOPS: Double? = nil, effectiveGFLOPS: Double? = nil, weightGigabytesPerSecond: Double? = nil,
        roofFraction: Double? = nil,
        baseline: String? = nil, baselineSeconds: Double? = nil, speedup: Double? = nil,
        error: Double? = nil, errorBound: Double? = nil, recall: Double? = nil, oracleDensity: Double? = nil,
        outputError: Double? = nil, quantizationSeconds: Double? = nil, bytesRead: Double? = nil,
        scoringShare: Double? = nil, sameFormatSpeedup: Double? = nil, bytesPerToken: Double? = nil,
        keptTokens: Double? = nil, budgetTokens: Double? = nil, verified: Bool? = nil
    ) {
        self.op = op
        self.caseName = caseName
        self.density = density
        self.isa = isa
        self.threads = threads
        self.medianSeconds = timing?.median
        self.minSeconds = timing?.min
        self.maxSeconds = timing?.max
        self.actualGFLOPS = actualGFLOPS
        self.effectiveGFLOPS = effectiveGFLOPS
        self.weightGigabytesPerSecond = weightGigabytesPerSecond
        self.roofFraction = roofFraction
        self.baseline = baseline
        self.baselineSeconds = baselineSeconds
        self.speedup = speedup
        self.error = error
        self.errorBound = errorBound
        self.recall = recall
        self.oracleDensity = oracleDensity
        self.outputError = outputError
        self.quantizationSeconds = quantizationSeconds
        self.bytesRead = bytesRead
        self.scoringShare = scoringShare
        self.sameFormatSpeedup = sameFormatSpeedup
        self.bytesPerToken = bytesPerToken
        self.keptTokens = keptTokens
        self.budgetTokens = budgetTokens
        self.verified = verified
    }
}

// MARK: - Verdict

extension BenchmarkRow {
    /// The verdict has two thresholds, because an error near its bound should be seen before it becomes a failure.
    public enum Status: String, Sendable {
        case ok
        case warn
        case fail = "FAIL"
        case unchecked = "-"
    }

    /// An error above this fraction of its bound is reported as `warn`.
    public static let warnFraction = 0.5

    /// The verdict over `verified`, `error` and `errorBound`: an error above its bound, or one that is not a number, is a
    /// failure even if `verified` is true.
    public var status: Status {
        if verified == false { return .fail }
        guard let error else { return verified == true ? .ok : .unchecked }
        guard error.isFinite else { return .fail }
        guard let errorBound else { return verified == true ? .ok : .unchecked }
        if !(error <= errorBound) { return .fail }
        return error > Self.warnFraction * errorBound ? .warn : .ok
    }

    /// Half the range over the median, which the table shows after ±.
    public var relativeSpread: Double? {
        guard let medianSeconds, let minSeconds, let maxSeconds else { return nil }
        return Summary(median: medianSeconds, min: minSeconds, max: maxSeconds).relativeSpread
    }
}

// MARK: - Derived

extension BenchmarkRow {
    /// The name of the dense operator as the baseline of sparse rows.
    public static let denseBaseline = "dense"

    /// Speed-up over dense times density; 1 when the time is proportional to the kept part.
    public var efficiency: Double? {
        guard baseline == Self.denseBaseline, let speedup, let density else { return nil }
        return speedup * density
    }

    /// Time as a fraction of the baseline's.
    public var baselineShare: Double? { speedup.map { 1 / $0 } }

    /// `bytesRead` over the median time, in 10⁹ per second.
    public var readGigabytesPerSecond: Double? {
        guard let bytesRead, let medianSeconds, medianSeconds > 0 else { return nil }
        return bytesRead / medianSeconds / 1e9
    }
}

// MARK: - JSON

extension BenchmarkRow {
    public enum CodingKeys: String, CodingKey, CaseIterable {
        case op, density, isa, threads, baseline, speedup, error, recall, verified
        case caseName = "case"
        case medianSeconds = "median_s"
        case minSeconds = "min_s"
        case maxSeconds = "max_s"
        case actualGFLOPS = "gflops_actual"
        case effectiveGFLOPS = "gflops_effective"
        case weightGigabytesPerSecond = "gbytes_per_s"
        case roofFraction = "roof_fraction"
        case baselineSeconds = "baseline_s"
        case errorBound = "error_bound"
        case oracleDensity = "oracle_density"
        case outputError = "output_error"
        case quantizationSeconds = "quantize_s"
        case bytesRead = "bytes_read"
        case scoringShare = "scoring_share"
        case sameFormatSpeedup = "speedup_same_format"
        case bytesPerToken = "bytes_per_token"
        case keptTokens = "tokens_kept"
        case budgetTokens = "tokens_budget"
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(op, forKey: .op)
        try container.encode(caseName, forKey: .caseName)
        try container.encode(isa, forKey: .isa)
        try container.encode(threads, forKey: .threads)
        try container.encodeIfPresent(baseline, forKey: .baseline)
        // NaN cannot be written to JSON, so the verdict of such an error is written instead.
        try container.encodeIfPresent(status == .fail ? false : verified, forKey: .verified)
        let numbers: [(CodingKeys, Double?)] = [
            (.density, density), (.medianSeconds, medianSeconds), (.minSeconds, minSeconds), (.maxSeconds, maxSeconds),
            (.actualGFLOPS, actualGFLOPS), (.effectiveGFLOPS, effectiveGFLOPS),
            (.weightGigabytesPerSecond, weightGigabytesPerSecond), (.roofFraction, roofFraction),
            (.baselineSeconds, baselineSeconds), (.speedup, speedup), (.error, error), (.errorBound, errorBound),
            (.recall, recall), (.oracleDensity, oracleDensity), (.outputError, outputError),
            (.quantizationSeconds, quantizationSeconds), (.bytesRead, bytesRead), (.scoringShare, scoringShare),
            (.sameFormatSpeedup, sameFormatSpeedup), (.bytesPerToken, bytesPerToken), (.keptTokens, keptTokens),
            (.budgetTokens, budgetTokens),
        ]
        for case (let key, let number?) in numbers where number.isFinite {
            try container.encode(number, forKey: key)
        }
    }
}
