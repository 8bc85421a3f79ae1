public import SparseKernels
public import SparseKernelsModels

/// Measures rows of a model: bits per byte, needle task and speed.
public struct LanguageMeasurer {
    public let model: LanguageModel
    public let tokenizer: any Tokenizing
    public let corpus: TextCorpus
    public let plan: MeasurementPlan
    public let pool: WorkerPool

    /// Tells what is done, in words and as a part of the row from 0 to 1. When it returns false, the row is not finished.
    public typealias Progress = (_ what: String, _ part: Double) throws(SparseKernelsError) -> Bool

    public init(
        model: LanguageModel, tokenizer: any Tokenizing, corpus: TextCorpus, plan: MeasurementPlan, pool: WorkerPool = .shared
    ) {
        self.model = model
        self.tokenizer = tokenizer
        self.corpus = corpus
        self.plan = plan
        self.pool = pool
    }

    /// Measures a row.
    ///
    /// Bits per byte go through decoding where it is sparse. Steps are timed where they are those of no other row: with dense
    /// prefill or sparse decoding.
    ///
    /// - Returns: nil when `progress` returned false.
    /// - Throws: `.invalidArgument` for a text or a context that is too short, and the errors of the session.
    public func row(
        _ spec: SessionSpec, context: Int, progress: Progress = { _, _ in true }
    ) throws(SparseKernelsError) -> LanguageRow? {
        var row = LanguageRow(
            method: spec.method.description, linear: LinearSpec(model).description, cache: spec.cache.description,
            context: context,
            plan: plan)
        let parts = Double(plan.windows + plan.trials)
        guard try measureText(spec, &row, { what, done throws(SparseKernelsError) in try progress(what, done / parts) }) else {
            return nil
        }
        guard plan.trials > 0 else { return row }
        let task = try NeedleTask(context: context, keys: plan.keys, trials: plan.trials, seed: plan.seed)
        // A question, its answer and the rest of a page for each copy.
        let session = try LanguageSession(
            model, try spec.options(context: context, sequences: plan.keys + 1, extra: 128 * plan.keys), on: pool)
        var wantsMore = true
        let score = try task(session, in: corpus, tokenizer: tokenizer) { number, score throws(SparseKernelsError) in
            wantsMore = try progress(
                "needle \(number + 1) of \(plan.trials), \(score.correct) of \(score.questions)",
                Double(plan.windows + number + 1) / parts)
            return wantsMore
        }
        guard wantsMore else { return nil }
        (row.correct, row.questions) = (score.correct, score.questions)
        return row
    }

    /// Scores the text, and takes times from it. Returns whether the caller wants more.
    private func measureText(
        _ spec: SessionSpec, _ row: inout LanguageRow, _ progress: (String, Double) throws(SparseKernelsError) -> Bool
    ) throws(SparseKernelsError) -> Bool {
        let session = try LanguageSession(model, try spec.options(context: row.context), on: pool)
        let path: Perplexity.Path = spec.method.hasDenseDecoding ? .prefill : .decoding
        let perplexity = try Perplexity(context: row.context, scored: plan.scored, windows: plan.windows, path: path)
        var times = Times()
        var wantsMore = true
        let score = try perplexity(session, on: corpus, tokenizer: tokenizer) {
            index, count, score throws(SparseKernelsError) in
            times.take(session)
            wantsMore = try progress("window \(index + 1) of \(count)", Double(index + 1))
            return wantsMore
        }
        row.bitsPerByte = score.bitsPerByte
        row.path = path.rawValue
        row.scoredBytes = score.bytes
        if wantsMore, path == .prefill, spec.method.hasDensePrefill {
            // The same windows, to time steps.
            let window = try corpus.windows(1, length: row.context)[0]
            let steps = try Perplexity(context: row.context, scored: min(64, plan.scored), windows: 1, path: .decoding)
            session.resetStatistics()
            _ = try steps.score(Array(corpus.tokens[window]), session, tokenizer: tokenizer)
            times.takeSteps(session)
        }
        times.write(to: &row)
        row.weightBytes = model.byteCount
        row.cacheBytes = spec.cache.bytesPerToken(model.configuration)
        row.sessionBytes = session.byteCount
        return wantsMore
    }

    /// The times of windows.
    private struct Times {
        private var prefillRates: [Double] = []
        private var attentionRates: [Double] = []
        private var otherParts: [Double] = []
        private var steps: [Double] = []
        private var otherStepParts: [Double] = []
        private var density = 1.0
        private var readFraction = 1.0

        mutating func take(_ session: LanguageSession) {
            let statistics = session.statistics
            let (tokens, seconds) = (Double(statistics.prefillTokens), statistics.prefill)
            // JSON has no infinity.
            prefillRates.append(tokens / max(seconds.total, 1e-9))
            attentionRates.append(tokens / max(seconds.attention, 1e-9))
            otherParts.append(seconds.other / max(seconds.total, 1e-9))
            density = statistics.prefillDensity
            takeSteps(session)
            session.resetStatistics()
        }

        mutating func takeSteps(_ session: LanguageSession) {
            let statistics = session.statistics
            guard statistics.steps > 0 else { return }
            steps.append(statistics.decoding.total / Double(statistics.steps) * 1000)
            otherStepParts.append(statistics.decoding.other / max(statistics.decoding.total, 1e-9))
            readFraction = statistics.decodingReadFraction
        }

        func write(to row: inout LanguageRow) {
            row.prefillRate = Self.median(prefillRates) ?? 0
            row.attentionRate = Self.median(attentionRates) ?? 0
            row.otherPrefill = Self.median(otherParts) ?? 0
            row.stepMilliseconds = Self.median(steps)
            row.otherDecoding = Self.median(otherStepParts)
            (row.density, row.readFraction) = (density, readFraction)
        }

        private static func median(_ values: [Double]) -> Double? {
            let sorted = values.sorted()
            guard !sorted.isEmpty else { return nil }
            return (sorted[(sorted.count - 1) / 2] + sorted[sorted.count / 2]) / 2
        }
    }
}
