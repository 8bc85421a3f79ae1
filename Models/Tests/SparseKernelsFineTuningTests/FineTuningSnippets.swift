import Foundation
import SparseKernels
import SparseKernelsFineTuning
import SparseLoRA
import Testing

/// The snippets of Docs/Operators/FineTuning.md.
@Suite("Snippets: fine-tuning")
struct FineTuningSnippets {
    @Test("train, go on, and use the adapter")
    func train() throws {
        let tiny = try TinyTrainee()
        let (folder, files) = (tiny.folder, RunFolder())
        let output = files.path
        let corpus = TextCorpus(tokens: (0..<20_000).map { $0 * $0 % 37 }, byteCount: 20_000)

        var configuration = FineTuningConfiguration()
        configuration.rank = 8
        configuration.batch = 4
        configuration.length = 64
        configuration.scored = 16
        configuration.steps = 3
        configuration.sparsity = SparseLoRAConfiguration(layers: [.init(), .init(mlp: 0.9, attention: 0.5)])

        let windows = try TrainingWindows(corpus, length: 64, scored: 16, validation: 8)
        let model = try FrozenModel(folder: folder, rank: 8)
        configuration.validation = windows.validation.count
        let trainer = try LoRATrainer(model, configuration)
        let run = try FineTuningRun(trainer, on: windows, folder: output, checkpointInterval: 10)
        try run.resume()
        try run.run { update in
            print(update.step, update.loss ?? 0, update.validation ?? 0)
            return true  // false ends it, with a checkpoint
        }
        let trained = try LanguageModel(folder: folder, adapter: output)

        #expect(trained.configuration.layers == 2 && run.curve.steps.count == 3)
        #expect(run.curve.steps.map(\.isSparse) == [false, true, true])
    }

    @Test("propose sparsities")
    func propose() throws {
        let tiny = try TinyTrainee()
        let model = try FrozenModel(folder: tiny.folder, rank: 8)
        let corpus = TextCorpus(tokens: (0..<5000).map { $0 * $0 % 37 }, byteCount: 5000)
        let windows = try TrainingWindows(corpus, length: 32, scored: 8, validation: 4)

        let proposal = try SparsityProposal(model, on: windows, budget: 0.5)
        if let proposal { print(proposal.loss, try proposal.configuration.json()) }

        #expect(proposal?.configuration.layers.count == 2)
    }
}
