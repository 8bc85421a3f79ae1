import ArgumentParser
import ModelQuantization
import SparseKernels
import SparseKernelsModels
import Terminal

struct CalibrateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "calibrate",
        abstract:
            "Runs a byte-level Llama model over text and records the inputs of its linear layers for quantize --calibration.",
        discussion: """
            Token ids are bytes, so the vocabulary must be the 256 byte values; each file ends with a zero byte. For models with other \
            vocabularies, record the inputs where the model runs: one tensor [tokens, inFeatures] per layer, under the layer's name.
            """)

    @Argument(help: "A folder with config.json and model.safetensors.")
    var model: String

    @Argument(help: "Text files.")
    var texts: [String]

    @Option(name: [.short, .long], help: "The file to make.")
    var output: String

    @Option(help: "Tokens to keep of each layer, drawn evenly from all that were run.")
    var tokens = 512

    @Option(help: "Tokens of a sequence; longer texts are cut.")
    var context = 2048

    @Option(help: "Seed of the sample.")
    var seed: UInt64 = 0

    @Option(help: "Threads. Default: as many as the process may use.")
    var threads: Int?

    func validate() throws {
        for (name, value) in [("tokens", tokens), ("context", context), ("threads", threads ?? 1)] where value < 1 {
            throw ValidationError("--\(name) takes 1 or more, got \(value)")
        }
    }

    func run() throws {
        let files = [(path: model + "/model.safetensors", role: "the model")] + texts.map { (path: $0, role: "a text to run") }
        try OutputFile.check(output, others: files, replaces: true)
        var bytes: [Int] = []
        for path in texts { bytes += try contents(ofFile: path).map(Int.init) + [0] }
        let llama = try LanguageModel(folder: model)
        guard llama.configuration.vocabularySize == 256 else {
            throw ValidationError(
                "the vocabulary must be the 256 byte values, got \(llama.configuration.vocabularySize) tokens")
        }
        let sequences = stride(from: 0, to: bytes.count, by: context).map { Array(bytes[$0..<min($0 + context, bytes.count)]) }
        let pool = threads.map { WorkerPool(threads: $0) } ?? .shared
        let progress = ProgressLine.onTerminal(total: sequences.count, work: Double(bytes.count))
        var recorder = try CalibrationRecorder(capacity: tokens, seed: seed)
        var bits = 0.0
        for (index, sequence) in sequences.enumerated() {
            progress?.begin("sequence \(index + 1)")
            bits += try LanguageModel.codeLength(recorder.record(sequence, through: llama, on: pool), sequence, on: pool)
            progress?.finishCase(work: Double(sequence.count))
        }
        progress?.clear()
        try recorder.write(to: output, source: "\(bytes.count) bytes of text, \(tokens) tokens of them, seed \(seed)")
        let predicted = bytes.count - sequences.count
        printNow(
            "\(output): \(recorder.layers.count) layers, \(min(tokens, bytes.count)) of \(bytes.count) tokens; the model codes the text in "
                + "\(Format.number(bits / Double(max(1, predicted)))) bits per byte")
    }
}
