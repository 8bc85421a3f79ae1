/// One measured case, which is a line of the table and an element of `rows` in the JSON report.
///
/// Every number is optional, because no row has them all: a micro-kernel has no recall, a dense product no density. A number
/// that is absent or not finite is left out of the JSON, so that readers never find `null` or a made-up zero.
public struct BenchmarkRow: Codable, Sendable, Equatable {
    public var op: String
    public var caseName: String
    public var isa: String
    public var threads: Int
    /// The name of the baseline of `speedup`.
    public var baseline: String?
    /// The result of the check before the measurement; absent when there was none.
    public var verified: Bool?
    private var metrics: [Metric: Double]

    public init(
        op: String, caseName: String, isa: String, threads: Int, baseline: String? = nil, verified: Bool? = nil,
        metrics: [Metric: Double] = [:]
    ) {
        (self.op, self.caseName, self.isa, self.threads) = (op, caseName, isa, threads)
        (self.baseline, self.verified, self.metrics) = (baseline, verified, metrics)
    }

    /// A number of the row; nil if it has none. Derived metrics are read-only.
    public subscript(metric: Metric) -> Double? {
        get { metric.derived.map { $0(self) } ?? metrics[metric] }
        set {
            precondition(metric.derived == nil, "\(metric.key) follows from other metrics")
            metrics[metric] = newValue
        }
    }

    /// Sets the median, the smallest and the largest time.
    public mutating func setTime(_ time: Summary) {
        (self[.medianSeconds], self[.minSeconds], self[.maxSeconds]) = (time.median, time.min, time.max)
    }

    /// The name of the dense operator as the baseline of sparse rows.
    public static let denseBaseline = "dense"
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
        guard let error = self[.error] else { return verified == true ? .ok : .unchecked }
        guard error.isFinite else { return .fail }
        guard let errorBound = self[.errorBound] else { return verified == true ? .ok : .unchecked }
        if !(error <= errorBound) { return .fail }
        return error > Self.warnFraction * errorBound ? .warn : .ok
    }
}

// MARK: - JSON

extension BenchmarkRow {
    /// The keys of a row that are not keys of metrics.
    private enum Field: String {
        case op, isa, threads, baseline, verified
        case caseName = "case"
    }

    private struct Key: CodingKey {
        var stringValue: String
        var intValue: Int? { nil }

        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
        init(_ field: Field) { stringValue = field.rawValue }
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: Key.self)
        op = try container.decode(String.self, forKey: Key(.op))
        caseName = try container.decode(String.self, forKey: Key(.caseName))
        isa = try container.decode(String.self, forKey: Key(.isa))
        threads = try container.decode(Int.self, forKey: Key(.threads))
        baseline = try container.decodeIfPresent(String.self, forKey: Key(.baseline))
        verified = try container.decodeIfPresent(Bool.self, forKey: Key(.verified))
        metrics = [:]
        // Metrics of newer versions are kept too, so that nothing is lost.
        for key in container.allKeys where Field(rawValue: key.stringValue) == nil {
            metrics[Metric(key.stringValue)] = try container.decode(Double.self, forKey: key)
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: Key.self)
        try container.encode(op, forKey: Key(.op))
        try container.encode(caseName, forKey: Key(.caseName))
        try container.encode(isa, forKey: Key(.isa))
        try container.encode(threads, forKey: Key(.threads))
        try container.encodeIfPresent(baseline, forKey: Key(.baseline))
        // NaN cannot be written to JSON, so the verdict of such an error is written instead.
        try container.encodeIfPresent(status == .fail ? false : verified, forKey: Key(.verified))
        for (metric, number) in metrics where number.isFinite {
            try container.encode(number, forKey: Key(stringValue: metric.key))
        }
    }
}
