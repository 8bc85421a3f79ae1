public import SparseKernels
import SparseKernelsModels
import SparseKernelsTraining
public import SparseLoRA

/// Sparsities for a model, from the losses that it has when one part of one block leaves channels of the context out.
///
/// ```swift
/// let proposal = try SparsityProposal(model, on: windows, budget: 0.4)
/// try proposal.configuration.write(to: "sparsity.json")
/// ```
///
/// Losses are those of the windows that are held out, before any training; tokens that count keep all channels, as in a sparse step.
/// `SensitivityAnalysis` chooses by them.
public struct SparsityProposal: Sendable {
    /// A part of a block with a sparsity, and the loss with it.
    public struct Measurement: Hashable, Sendable {
        public let block: Int
        public let part: SensitivityAnalysis.Part
        public let sparsity: Double
        /// Nats per token that counts.
        public let loss: Double
    }

    public let analysis: SensitivityAnalysis
    public let curves: SensitivityAnalysis.Curves
    /// What is proposed.
    public let configuration: SparseLoRAConfiguration
    /// Nats per token with everything that is proposed.
    public let loss: Double

    /// The sparsities that are tried unless others are given.
    public static let sparsities = [0.25, 0.5, 0.75, 0.9, 0.95, 0.99]

    /// Measures all parts of all blocks, and chooses.
    ///
    /// - Parameters:
    ///   - model: the model.
    ///   - windows: a text, of which windows are held out.
    ///   - budget: the share of the multiply-adds of projections and MLPs that the context may keep.
    ///   - sparsities: what is tried, ascending.
    ///   - batch: windows that go through the model together.
    ///   - pool: the threads to use.
    ///   - progress: called before each measurement with what is measured and how many there are, nil for the one with all channels.
    ///     When it returns false, the result is nil.
    /// - Throws: `.invalidArgument` for a text without windows that are held out, sparsities out of range or order, and a budget that
    ///   they do not reach.
    public init?(
        _ model: FrozenModel, on windows: TrainingWindows, budget: Double = 0.4, sparsities: [Double] = Self.sparsities,
        batch: Int = 8, pool: WorkerPool = .shared,
        progress: (_ block: Int?, _ part: SensitivityAnalysis.Part, _ sparsity: Double, _ count: Int) -> Bool = { _, _, _, _ in
            true
        }
    ) throws(SparseKernelsError) {
        let c = model.configuration
        guard !windows.validation.isEmpty else {
            throw SparseKernelsError(.invalidArgument, "windows", expected: "some that are held out", actual: "none")
        }
        let attention = 2 * c.hiddenSize * (c.queryHeads + c.kvHeads) * c.headDim
        let cost = SensitivityAnalysis.Cost(mlp: Double(3 * c.hiddenSize * c.intermediateSize), attention: Double(attention))
        let analysis = try SensitivityAnalysis(costs: Array(repeating: cost, count: c.layers), sparsities: sparsities)
        // Refused before anything is measured.
        let none = Array(repeating: Array(repeating: Array(repeating: 0.0, count: sparsities.count), count: 2), count: c.layers)
        _ = try analysis.proposal(.init(denseLoss: 0, losses: none), budget: budget)
        var settings = FineTuningConfiguration()
        (settings.rank, settings.batch, settings.length, settings.scored) = (model.rank, batch, windows.length, windows.scored)
        settings.targets = [.query]
        // Estimators for all parts.
        settings.sparsity = SparseLoRAConfiguration(
            layers: Array(repeating: .init(mlp: 0.5, attention: 0.5), count: c.layers), start: 0)
        let trainer = try LoRATrainer(model, settings, on: pool)
        let batches = windows.validationBatches(size: batch)
        let count = c.layers * 2 * sparsities.count + 2
        guard progress(nil, .mlp, 0, count) else { return nil }
        let dense = try trainer.validate(batches).mean
        func loss(_ layers: [SparseLoRAConfiguration.Layer]) throws(SparseKernelsError) -> Double {
            trainer.estimators?.configuration.layers = layers
            return try trainer.validate(batches, choosingChannels: true).mean
        }
        var goesOn = true
        let curves = try analysis.measure(denseLoss: dense) {
            block, part, sparsity throws(SparseKernelsError) in
            goesOn = goesOn && progress(block, part, sparsity, count)
            guard goesOn else { return 0 }
            var layers = Array(repeating: SparseLoRAConfiguration.Layer(), count: c.layers)
            if part == .mlp { layers[block].mlp = sparsity } else { layers[block].attention = sparsity }
            return try loss(layers)
        }
        guard goesOn, progress(nil, .mlp, 0, count) else { return nil }
        let configuration = try analysis.proposal(curves, budget: budget)
        self.loss = try loss(configuration.layers)
        (self.analysis, self.curves, self.configuration) = (analysis, curves, configuration)
    }

    /// All measurements, block by block.
    public var measurements: [Measurement] {
        var list: [Measurement] = []
        for (block, parts) in curves.losses.enumerated() {
            for (part, losses) in zip(SensitivityAnalysis.Part.allCases, parts) {
                for (sparsity, loss) in zip(analysis.sparsities, losses) {
                    list.append(Measurement(block: block, part: part, sparsity: sparsity, loss: loss))
                }
            }
        }
        return list
    }

    /// The share of the multiply-adds of projections and MLPs that the context keeps.
    public var remainingShare: Double {
        // It was made for as many layers.
        (try? analysis.remainingShare(of: configuration)) ?? 1
    }
}
