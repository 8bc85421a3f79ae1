import ArgumentParser
import LanguageMeasuring
import ModelQuantization
import SparseKernels
import SparseKernelsModels
import Terminal

struct CalibrateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "calibrate", abstract: "Records the inputs of the linear layers for sparsekernels quantize --calibration.",
        discussion: "It runs windows that are spread evenly over the texts.")

    @OptionGroup var model: ModelOptions
    @OptionGroup var texts: TextOptions

    @Option(name: [.short, .long], help: "The file to make.")
    var output: String

    @Option(help: "Tokens to keep of each layer, drawn evenly from all that were run.")
    var tokens = 4096

    @Option(help: "Tokens of a window.")
    var context = 2048

    @Option(help: "Windows.")
    var windows = 32

    @Option(help: "Seed of the sample.")
    var seed: UInt64 = 0

    func validate() throws {
        for (name, value) in [("tokens", tokens), ("context", context), ("windows", windows)] where value < 1 {
            throw ValidationError("--\(name) takes 1 or more, got \(value)")
        }
    }

    func run() throws {
        try RankOptions.requireOneProcess("calibrate")
        let folder = try model.folder
        try OutputFile.check(output, others: [(folder + "/model.safetensors", "the model")], replaces: true)
        let tokenizer = try model.tokenizer
        let corpus = try texts.corpus(for: tokenizer)
        let ranges = try corpus.windows(windows, length: context)
        let language = try model.load(linear: LinearChoice.exact(for: folder))
        var recorder = try CalibrationRecorder(capacity: tokens, seed: seed)
        let progress = ProgressLine(total: ranges.count)
        var bits = 0.0
        for (index, range) in ranges.enumerated() {
            progress.begin("window \(index + 1)")
            let window = Array(corpus.tokens[range])
            let logits = try recorder.record(window, through: language, on: model.pool)
            bits += try LanguageModel.codeLength(logits, window, on: model.pool)
            progress.finishCase()
        }
        progress.clear()
        try recorder.write(
            to: output, source: "\(ranges.count) windows of \(context) tokens, \(tokens) tokens of them, seed \(seed)")
        let bytes = ranges.reduce(0) { sum, range in
            sum + corpus.tokens[range].dropFirst().reduce(0) { $0 + max(1, tokenizer.bytes(of: $1).count) }
        }
        printNow(
            "\(output): \(recorder.layers.count) layers, \(min(tokens, recorder.tokens)) of \(recorder.tokens) tokens; the model codes "
                + "the text in \(Format.number(bits / Double(max(1, bytes)))) bits per byte")
    }
}
