public import SparseKernels
import SparseKernelsModels
public import SparseKernelsTraining
import SparseLoRA

/// Trains LoRA adapters of a frozen model by AdamW, with all channels or, as SparseLoRA does, with those of the context that matter.
///
/// ```swift
/// let trainer = try LoRATrainer(FrozenModel(folder: folder), configuration)
/// for step in 0..<configuration.steps {
///     let report = try trainer.step(windows.batch(step: step, size: configuration.batch))
///     print(report.loss, report.seconds.total)
/// }
/// ```
///
/// A step runs the batch forward, keeps what the backward pass needs, and runs back through the blocks. Logits and the loss are
/// computed for the rows whose target counts, and nothing else: embeddings, norms, weights and the output projection are frozen.
/// Memory is taken once and used again in every step. The model computes in single precision; sums of the loss are in double
/// precision.
///
/// - Results are bitwise equal for every number of threads, and a run that goes on from a `FineTuningCheckpoint` has the bits of one
///   that was not interrupted.
/// - Scratch: `byteCount` says what the trainer holds beside the model. For each token and block it is
///   4 · (4 · hiddenSize + 2 · (queryHeads + kvHeads) · headDim + queryHeads) bytes, and what projections (their ranks) and the MLP
///   (2 · intermediateSize numbers, or those of the chosen channels) keep.
public final class LoRATrainer {
    public let model: FrozenModel
    public let configuration: FineTuningConfiguration
    public let pool: WorkerPool
    /// Steps that are done.
    public internal(set) var completedSteps = 0
    var adapters: TrainedAdapters
    var tapes: [BlockTape]
    var workspace: TrainingWorkspace
    var clock = TrainingClock()
    let optimizer: AdamW
    let schedule: LearningRateSchedule
    let loss: CrossEntropy
    let attention: [DenseAttention]
    let attentionGradient: [AttentionGradient]
    /// Angles of the positions of a sequence.
    let rotation: RotaryTable
    var estimators: ChannelEstimators?

    /// Takes the memory of a run, and decomposes weights where channels are chosen by estimates.
    ///
    /// - Parameters:
    ///   - model: what the adapters belong to.
    ///   - configuration: the settings.
    ///   - pool: the threads of all calls.
    /// - Throws: `.invalidArgument` and `.invalidShape` for settings that are out of range or do not fit the model.
    public init(
        _ model: FrozenModel, _ configuration: FineTuningConfiguration, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let c = model.configuration
        try configuration.check(for: model)
        (self.model, self.configuration, self.pool) = (model, configuration, pool)
        adapters = try TrainedAdapters(configuration, c)
        let rows = configuration.batch * configuration.length
        var tapes: [BlockTape] = []
        for _ in 0..<c.layers { tapes.append(try BlockTape(c, rows: rows)) }
        self.tapes = tapes
        workspace = try TrainingWorkspace(c, rows: rows, scored: configuration.batch * configuration.scored)
        optimizer = try AdamW(weightDecay: configuration.weightDecay)
        schedule = .cosine(
            peak: configuration.learningRate, warmupSteps: configuration.warmup, totalSteps: configuration.steps)
        loss = try CrossEntropy(vocabulary: c.vocabularySize)
        let shape = try AttentionShape(
            queryLength: configuration.length, keyLength: configuration.length, queryHeads: c.queryHeads, kvHeads: c.kvHeads,
            headDim: c.headDim)
        var attention: [DenseAttention] = []
        var attentionGradient: [AttentionGradient] = []
        for block in model.blocks {
            attention.append(
                try DenseAttention(shape, mask: block.mask, modifiers: ScoreModifiers(softmaxScale: c.softmaxScale)))
            attentionGradient.append(try AttentionGradient(shape, mask: block.mask, softmaxScale: c.softmaxScale))
        }
        (self.attention, self.attentionGradient) = (attention, attentionGradient)
        guard let rotary = c.rotary else {
            throw SparseKernelsError(.invalidArgument, "model", expected: "with a rotary encoding", actual: "one without")
        }
        rotation = try rotary.table(positions: Array(0..<configuration.length), on: pool)
        estimators = try configuration.sparsity.map { sparsity throws(SparseKernelsError) in
            try ChannelEstimators(model, sparsity, on: pool)
        }
    }

    /// What a step did.
    public struct StepReport: Hashable, Sendable {
        /// The number of the step, from 0 on.
        public let step: Int
        /// The mean of −ln p over the targets that count, before the step.
        public let loss: Double
        /// The norm of all gradients, before clipping.
        public let gradientNorm: Double
        public let learningRate: Double
        /// Whether the context left channels out.
        public let isSparse: Bool
        public let seconds: TrainingSeconds
    }

    /// One step: loss, gradients, clipping, AdamW.
    ///
    /// - Parameter batch: as many windows as the settings say, or fewer.
    /// - Throws: `.invalidShape` for more windows or others than the settings have, `.invalidArgument` for tokens outside the vocabulary
    ///   for a batch without a target that counts, and for a loss or gradients that are not finite. Then the adapters are as they were.
    public func step(_ batch: TrainingBatch) throws(SparseKernelsError) -> StepReport {
        clock = TrainingClock()
        let isSparse = estimators?.configuration.isSparse(step: completedSteps, of: configuration.steps) ?? false
        let loss = try computeGradients(batch, sparse: isSparse)
        let norm = try adapters.clip(to: configuration.maximumNorm, on: pool)
        guard loss.nats.isFinite, norm.isFinite else {
            throw SparseKernelsError(
                .invalidArgument, "learningRate", expected: "one with which losses and gradients stay finite",
                actual:
                    "\(configuration.learningRate): a loss of \(loss.mean), gradients of norm \(norm) in step \(completedSteps)"
            )
        }
        let rate = schedule.rate(step: completedSteps)
        try adapters.step(optimizer, rate: rate, on: pool)
        clock.lap(\.optimizer)
        completedSteps += 1
        return StepReport(
            step: completedSteps - 1, loss: loss.mean, gradientNorm: norm, learningRate: rate, isSparse: isSparse,
            seconds: clock.seconds)
    }

    /// The loss of batches, with all channels, as the model is used after the training.
    ///
    /// - Parameters:
    ///   - batches: windows of the settings' length.
    ///   - choosingChannels: leaves channels of the context out, as a sparse step does.
    /// - Throws: as `step`.
    public func validate(
        _ batches: [TrainingBatch], choosingChannels: Bool = false
    ) throws(SparseKernelsError) -> CrossEntropy.Loss {
        var sum = CrossEntropy.Loss()
        for batch in batches {
            let rows = try check(batch)
            try runForward(batch, split: try split(of: batch, sparse: choosingChannels), sparse: choosingChannels)
            let loss = try runHead(batch, rows, backward: false)
            sum.nats += loss.nats
            sum.tokens += loss.tokens
        }
        return sum
    }

    /// Numbers that are trained.
    public var parameterCount: Int { adapters.count }

    /// Bytes that the trainer holds beside the model.
    public var byteCount: Int {
        // Projections keep x · aᵀ of their adapters.
        let projected = adapters.factors.count * configuration.rank * configuration.batch * configuration.length * 4
        let tapes = tapes.reduce(projected) { $0 + $1.byteCount }
        return tapes + workspace.byteCount + 16 * adapters.count
    }

    // MARK: - Gradients

    /// The loss of a batch and the gradients of all factors.
    func computeGradients(_ batch: TrainingBatch, sparse: Bool) throws(SparseKernelsError) -> CrossEntropy.Loss {
        let rows = try check(batch)
        let split = try split(of: batch, sparse: sparse)
        adapters.clearGradients()
        clock.lap(\.optimizer)
        try runForward(batch, split: split, sparse: sparse)
        let loss = try runHead(batch, rows, backward: true)
        try runBackward(batch)
        return loss
    }

    /// The tokens that keep all channels; nil where all tokens are alike.
    private func split(of batch: TrainingBatch, sparse: Bool) throws(SparseKernelsError) -> TokenSplit? {
        guard sparse, let estimators, estimators.configuration.outputTokensAreDense else { return nil }
        return try TokenSplit(labels: batch.labels, ignored: TrainingBatch.ignored)
    }

    /// The rows that count. Throws for a batch that does not fit.
    private func check(_ batch: TrainingBatch) throws(SparseKernelsError) -> [Int] {
        guard batch.length == configuration.length, batch.sequences <= configuration.batch else {
            throw SparseKernelsError(
                .invalidShape, "batch", expected: "up to \(configuration.batch) windows of \(configuration.length) tokens",
                actual: "\(batch.sequences) of \(batch.length)")
        }
        let vocabulary = model.configuration.vocabularySize
        for token in batch.tokens where token < 0 || token >= vocabulary {
            throw SparseKernelsError(
                .invalidArgument, "tokens", expected: "ids from 0 to \(vocabulary - 1)", actual: "\(token)")
        }
        let rows = batch.scoredRows
        guard !rows.isEmpty else {
            throw SparseKernelsError(
                .invalidArgument, "targets", expected: "one or more that count", actual: "none of \(batch.targets.count)")
        }
        for row in rows where batch.targets[row] < 0 || batch.targets[row] >= vocabulary {
            throw SparseKernelsError(
                .invalidArgument, "targets", expected: "ids from 0 to \(vocabulary - 1), or \(TrainingBatch.ignored)",
                actual: "\(batch.targets[row])")
        }
        return rows
    }
}
