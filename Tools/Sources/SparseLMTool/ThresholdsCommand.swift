import ArgumentParser
import CATS
import Foundation
import LanguageMeasuring
import SparseKernels
import SparseKernelsModels
import Terminal

struct ThresholdsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "thresholds", abstract: "Finds the thresholds at which CATS skips a part of the activations of every MLP.",
        discussion: """
            Windows of --context tokens are spread evenly over the text and run through the dense model. The file is JSON, or safetensors if \
            its name ends so; --mlp cats:FILE of generate, perplexity and bench takes it.
            """)

    @OptionGroup var model: ModelOptions
    @OptionGroup var texts: TextOptions

    @Option(name: [.short, .long], help: "The file to make.")
    var output: String

    @Option(help: "The part of the activations to skip, at least 0 and below 1.")
    var sparsity = 0.5

    @Option(help: "Tokens of a window.")
    var context = CATSPlan().context

    @Option(help: "Windows.")
    var windows = CATSPlan().windows

    @Option(help: "How the model's linear layers are computed.", transform: { try LinearSpec($0) })
    var linear: LinearSpec?

    func validate() throws {
        guard sparsity >= 0, sparsity < 1 else { throw ValidationError("--sparsity takes 0 to below 1, got \(sparsity)") }
        for (name, value) in [("context", context), ("windows", windows)] where value < 1 {
            throw ValidationError("--\(name) takes 1 or more, got \(value)")
        }
    }

    func run() throws {
        try RankOptions.requireOneProcess("thresholds")
        let corpus = try texts.corpus(for: model.tokenizer)
        let language = try model.load(linear: linear, thresholds: LanguageModel.zeroThresholds(folder: model.folder))
        var plan = CATSPlan()
        (plan.windows, plan.context) = (windows, context)
        let progress = ProgressLine(total: windows)
        let thresholds = try plan.thresholds(language, sparsity: sparsity, text: corpus, on: model.pool) { _ in
            progress.finishCase()
        }
        progress.clear()
        try thresholds.write(to: output)
        let values = thresholds.values.map { Format.number(Double($0)) }.joined(separator: ", ")
        printNow("\(output): \(thresholds.values.count) layers, sparsity \(sparsity): \(values)")
    }
}
