public import SparseKernelsModels
import Terminal

/// What `generate` says about a run.
public struct GenerationReport: Codable, Hashable, Sendable {
    public struct Sample: Codable, Hashable, Sendable {
        public let text: String
        public let tokens: [Int]
        public let end: String
    }

    public let method: String
    public let linear: String
    public let cache: String
    public let promptTokens: Int
    public let samples: [Sample]
    /// Tokens per second; nil when there were none.
    public let prefillRate: Double?
    public let decodingRate: Double?
    /// Seconds of attention, recurrences, linear layers and the rest, of prefill and decoding together. nil in models without recurrences.
    public let attentionSeconds: Double
    public let recurrenceSeconds: Double?
    public let linearSeconds: Double
    public let otherSeconds: Double
    public let byteCount: Int

    public init(
        results: [GenerationResult], promptTokens: Int, statistics: SessionStatistics, byteCount: Int, method: String,
        linear: String, cache: String
    ) {
        (self.method, self.linear, self.cache) = (method, linear, cache)
        self.promptTokens = promptTokens
        samples = results.map { Sample(text: $0.text, tokens: $0.tokens, end: Self.words($0.end)) }
        func rate(_ tokens: Int, _ seconds: Double) -> Double? { tokens > 0 && seconds > 0 ? Double(tokens) / seconds : nil }
        prefillRate = rate(statistics.prefillTokens, statistics.prefill.total)
        decodingRate = rate(statistics.decodedTokens, statistics.decoding.total)
        attentionSeconds = statistics.prefill.attention + statistics.decoding.attention
        let recurrence = statistics.prefill.recurrence + statistics.decoding.recurrence
        recurrenceSeconds = recurrence > 0 ? recurrence : nil
        linearSeconds = statistics.prefill.linear + statistics.decoding.linear
        otherSeconds = statistics.prefill.other + statistics.decoding.other
        self.byteCount = max(byteCount, statistics.peakByteCount)
    }

    static func words(_ end: GenerationResult.End) -> String {
        switch end {
        case .endToken: "ended by the model"
        case .stopString(let text): "ended by \(String(reflecting: text))"
        case .length: "all tokens made"
        case .cancelled: "cancelled"
        }
    }

    /// One paragraph for people.
    public var summary: String {
        let made = samples.reduce(0) { $0 + $1.tokens.count }
        return
            "\(promptTokens) tokens of prompt at \(Format.number(prefillRate))/s, \(made) made at \(Format.number(decodingRate))/s; "
            + "attention \(Format.number(attentionSeconds)) s, "
            + (recurrenceSeconds.map { "recurrences \(Format.number($0)) s, " } ?? "")
            + "linear layers \(Format.number(linearSeconds)) s, other "
            + "\(Format.number(otherSeconds)) s; \(Format.number(Double(byteCount) / 1e6)) MB (\(method), \(linear), \(cache) cache)"
            + (samples.count == 1 ? "; \(samples[0].end)" : "")
    }
}

/// A row of `perplexity --json`.
public struct PerplexityReport: Codable, Hashable, Sendable {
    public let context: Int
    public let path: String
    public let scoredTokens: Int
    public let scoredBytes: Int
    public let bitsPerByte: Double
    public let bitsPerToken: Double
    public let perplexity: Double

    public init(context: Int, score: Perplexity.Score, path: String) {
        (self.context, self.path) = (context, path)
        (scoredTokens, scoredBytes) = (score.tokens, score.bytes)
        (bitsPerByte, bitsPerToken, perplexity) = (score.bitsPerByte, score.bitsPerToken, score.perplexity)
    }
}

/// A row of `needle --json`.
public struct NeedleReport: Codable, Hashable, Sendable {
    public let context: Int
    public let correct: Int
    public let questions: Int
    public let accuracy: Double
    public let density: Double
    public let readFraction: Double

    public init(context: Int, score: NeedleTask.Score, density: Double, readFraction: Double) {
        (self.context, self.density, self.readFraction) = (context, density, readFraction)
        (correct, questions, accuracy) = (score.correct, score.questions, score.accuracy)
    }
}
