import SparseKernelsModels
public import Terminal

/// How much is measured for a row.
public struct MeasurementPlan: Codable, Hashable, Sendable {
    /// Windows of the text whose ends are scored, and tokens of each that count.
    public var windows = 16
    public var scored = 256
    /// Haystacks, and keys in each. No haystacks leaves the column empty.
    public var trials = 40
    public var keys = 6
    public var seed: UInt64 = 1

    public init() {}

    /// Minutes instead of hours: the numbers show whether something is broken, and not more.
    public static var quick: MeasurementPlan {
        var plan = MeasurementPlan()
        (plan.windows, plan.scored, plan.trials) = (2, 64, 2)
        return plan
    }
}

/// What was measured of a model with a method, linear layers and a cache, at a context.
public struct LanguageRow: Codable, Hashable, Sendable {
    public var method: String
    public var linear: String
    public var cache: String
    /// Tokens of a window and of a haystack.
    public var context: Int
    public var plan: MeasurementPlan
    /// Bits per byte of the scored tokens, and how they went through the model.
    public var bitsPerByte = 0.0
    public var path = Perplexity.Path.prefill.rawValue
    public var scoredBytes = 0
    /// Right answers of the needle task, and questions.
    public var correct = 0
    public var questions = 0
    /// The part of the pairs that prefill computed, and of the bytes of the cache that decoding read.
    public var density = 1.0
    public var readFraction = 1.0
    /// Of prefill: tokens per second, and those of attention alone. Medians of the windows.
    public var prefillRate = 0.0
    public var attentionRate = 0.0
    /// The parts of prefill and decoding that are neither attention nor linear layers.
    public var otherPrefill = 0.0
    public var otherDecoding: Double?
    /// Milliseconds of a step with one sequence. nil when decoding is that of another row.
    public var stepMilliseconds: Double?
    /// Bytes of weights in memory, of the cache per token, and of a session with its cache and the memory of passes.
    public var weightBytes = 0
    public var cacheBytes = 0
    public var sessionBytes = 0

    public init(method: String, linear: String, cache: String, context: Int, plan: MeasurementPlan) {
        (self.method, self.linear, self.cache, self.context, self.plan) = (method, linear, cache, context, plan)
    }

    public var accuracy: Double? { questions == 0 ? nil : Double(correct) / Double(questions) }

    /// Whether two rows measure the same.
    public func isSameCase(as other: LanguageRow) -> Bool {
        (method, linear, cache, context) == (other.method, other.linear, other.cache, other.context) && plan == other.plan
    }

    // MARK: - Tables

    /// The table of methods, one row per method and context.
    public static func methodTable(nameWidth: Int) -> TextTable {
        TextTable([
            .init("Method", width: max(6, nameWidth), alignment: .left), .init("Context", width: 7),
            .init("Bits/", "byte", width: 6),
            .init("Change", "%", width: 6), .init("Needle", "%", width: 6), .init("Density", "%", width: 7),
            .init("KV read", "%", width: 7), .init("Prefill", "tokens/s", width: 8), .init("×", width: 5),
            .init("Attention", "×", width: 9), .init("Step", "ms", width: 6), .init("×", width: 5),
        ])
    }

    /// A line of the table of methods.
    /// - Parameter dense: the row of dense attention at this context; nil for this row itself.
    public func methodLine(in table: TextTable, dense: LanguageRow?) -> String {
        table.line([
            method, "\(context)", Format.number(bitsPerByte), Self.change(bitsPerByte, dense?.bitsPerByte),
            Format.percent(accuracy), Format.percent(density), stepMilliseconds == nil ? "" : Format.percent(readFraction),
            Format.number(prefillRate), Format.number(dense.map { prefillRate / $0.prefillRate }),
            Format.number(dense.map { attentionRate / $0.attentionRate }), Format.number(stepMilliseconds),
            Format.number(dense?.stepMilliseconds.flatMap { dense in stepMilliseconds.map { dense / $0 } }),
        ])
    }

    /// The table of linear layers and caches.
    public static func formatTable(cacheWidth: Int) -> TextTable {
        TextTable([
            .init("Linear", width: 8, alignment: .left), .init("Cache", width: max(7, cacheWidth), alignment: .left),
            .init("Context", width: 7), .init("Bits/", "byte", width: 6), .init("Change", "%", width: 6),
            .init("Needle", "%", width: 6), .init("Weights", "MB", width: 7), .init("Cache", "B/token", width: 7),
            .init("Prefill", "tokens/s", width: 8), .init("×", width: 5), .init("Step", "ms", width: 6), .init("×", width: 5),
        ])
    }

    /// A line of the table of formats.
    /// - Parameter first: the row that others are compared with; nil for this row itself.
    public func formatLine(in table: TextTable, first: LanguageRow?) -> String {
        table.line([
            linear, cache, "\(context)", Format.number(bitsPerByte), Self.change(bitsPerByte, first?.bitsPerByte),
            Format.percent(accuracy), Format.number(Double(weightBytes) / 1e6), "\(cacheBytes)",
            Format.number(prefillRate), Format.number(first.map { prefillRate / $0.prefillRate }),
            Format.number(stepMilliseconds),
            Format.number(first?.stepMilliseconds.flatMap { first in stepMilliseconds.map { first / $0 } }),
        ])
    }

    /// By how much a number is above another one, in percent with two decimals and a sign.
    static func change(_ value: Double, _ reference: Double?) -> String {
        guard let reference, reference > 0 else { return "" }
        let hundredths = ((value / reference - 1) * 10_000).rounded()
        guard hundredths.isFinite, abs(hundredths) < 1e8 else { return "" }
        let size = Int(abs(hundredths))
        let fraction = size % 100
        return "\(hundredths < 0 ? "−" : "+")\(size / 100).\(fraction < 10 ? "0" : "")\(fraction)"
    }

    /// What the columns mean, for the lines below a table.
    public static func legend(_ plan: MeasurementPlan) -> [String] {
        [
            "Bits/byte: of the last \(plan.scored) tokens of \(plan.windows) windows of the text, each seeing all of its window before "
                + "them. They go through prefill; through decoding, one by one, where decoding is sparse.",
            "Needle: right answers, of \(plan.keys) keys in each of \(plan.trials) haystacks of this length. Density: pairs of query "
                + "and key that prefill computed. KV read: bytes of the cache that a step read.",
            "×: as often as fast as the row that it is compared with, which was measured by the same command.",
        ]
    }
}
