import SparseKernels

/// A sequence on its way from masks to tokens.
struct FastDLLMRun {
    private let configuration: FastDLLMConfiguration
    private let statistics: LogitStatistics
    private let maskToken: Int
    /// Steps of a block, for rules that have a schedule.
    private let blockSteps: Int
    private(set) var tokens: [Int]
    private(set) var steps: [FastDLLMStep] = []
    private(set) var nearTies = 0
    /// Passes that the released code makes after a block is full.
    private(set) var emptyPasses = 0

    init<Model: DiffusionModel>(
        _ configuration: FastDLLMConfiguration, _ tokens: [Int], _ model: Model, steps: Int?
    ) throws(SparseKernelsError) {
        self.configuration = configuration
        self.tokens = tokens
        maskToken = model.maskToken
        blockSteps = steps ?? 1
        // The chosen token, the next one, and the mask, which is never chosen.
        statistics = try LogitStatistics(vocabulary: model.vocabularySize, topK: 3)
    }

    /// Fills a block.
    mutating func fill<Model: DiffusionModel>(
        _ block: Range<Int>, with model: inout Model, on pool: WorkerPool, observing observe: (FastDLLMStep) -> Void
    ) throws(SparseKernelsError) {
        var masked = block.filter { tokens[$0] == maskToken }
        let initial = masked.count
        var pass = 0
        while !masked.isEmpty {
            let isWhole =
                pass == 0 || configuration.cache == .none || configuration.refreshEvery.map { pass.isMultiple(of: $0) } == true
            let running =
                isWhole ? tokens.indices : configuration.cache == .prefix ? block.lowerBound..<tokens.count : block
            // In Dream passes over a block have no row for its first position.
            let isUnconditional =
                configuration.shiftsLogits && configuration.cache != .none && pass == 0 && masked[0] == block.lowerBound
            let positions = isUnconditional ? [block.lowerBound] : masked
            let rows = configuration.shiftsLogits ? positions.map { $0 - 1 } : positions
            let logits = try model.logits(of: rows, running: running, in: tokens, on: pool)
            try require(
                logits.shape == [rows.count, statistics.vocabulary], .invalidShape, "logits",
                expected: "[\(rows.count), \(statistics.vocabulary)], a row per position that was asked for",
                actual: "\(logits.shape)")
            var predictions = try MaskedPredictions(
                logits, statistics, excluding: maskToken, noise: noise(positions), on: pool)
            let count =
                isUnconditional
                ? 1 : configuration.rule.count(step: pass, of: blockSteps, initial: initial, remaining: masked.count)
            let selection = select(&predictions, positions, count: count)
            let step = commit(selection, predictions, positions, block: block, running: running)
            masked.removeAll { tokens[$0] != maskToken }
            observe(step)
            pass += 1
        }
        if pass == 1, configuration.cache != .none { emptyPasses += 1 }
    }

    private mutating func select(_ predictions: inout MaskedPredictions, _ positions: [Int], count: Int?) -> CommitSelection {
        if let count, count >= positions.count { return CommitRule.select(predictions.confidences, count: count) }
        switch configuration.rule {
        case .random:
            return CommitRule.select(positions.map { randomKey($0) }, count: count ?? 0)
        case .entropy:
            return CommitRule.select(predictions.negativeEntropies(), count: count ?? 0)
        case .tokensPerStep, .schedule, .threshold, .factor:
            return configuration.rule.select(refining: &predictions, count: count)
        }
    }

    private mutating func commit(
        _ selection: CommitSelection, _ predictions: MaskedPredictions, _ positions: [Int], block: Range<Int>,
        running: Range<Int>
    ) -> FastDLLMStep {
        let commits = selection.indices.map { index in
            FastDLLMStep.Commit(
                position: positions[index], token: predictions.tokens[index], confidence: predictions.confidences[index])
        }
        for commit in commits { tokens[commit.position] = commit.token }
        let step = FastDLLMStep(
            forward: steps.count, block: block, running: running, projectedRows: positions.count, commits: commits,
            positionMargin: selection.margin,
            tokenMargin: selection.indices.map { predictions.tokenMargins[$0] }.min() ?? .infinity)
        if min(step.positionMargin, step.tokenMargin) < configuration.nearTie { nearTies += 1 }
        steps.append(step)
        return step
    }

    // MARK: - Random numbers

    private func noise(_ positions: [Int]) -> MaskedPredictions.Noise? {
        guard configuration.temperature > 0 else { return nil }
        return MaskedPredictions.Noise(temperature: configuration.temperature, streams: positions.map { stream($0, 0) })
    }

    private func randomKey(_ position: Int) -> Double {
        var generator = SplitMix64(seed: stream(position, 1))
        return Double(generator.next() >> 11) * 0x1p-53
    }

    /// A state that belongs to a position in this pass, and to a use.
    private func stream(_ position: Int, _ use: UInt64) -> UInt64 {
        var state = configuration.seed
        for number in [UInt64(steps.count), UInt64(position), use] {
            var generator = SplitMix64(seed: state ^ number)
            state = generator.next()
        }
        return state
    }
}
