import ArgumentParser
import ModelQuantization
import SparseKernels
import SparseKernelsModels
import Terminal

struct CalibrateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "calibrate",
        abstract:
            "Records the inputs of the linear layers for sparsekernels quantize --calibration, over prompts, seeds and times.")

    @Argument(help: "A folder with config.json and model.safetensors.")
    var model: String

    @Option(name: [.short, .long], help: "The file to make.")
    var output: String

    @Option(help: "Tokens to keep of each layer, drawn evenly from all that were run.")
    var tokens = 1024

    @Option(help: "The number of videos, each with its own prompt and noise.")
    var videos = 4

    @Option(help: "The first seed of prompts and noise. Those of table and generate begin at 1.")
    var seed: UInt64 = 1000

    @OptionGroup var running: RunOptions

    func validate() throws {
        for (name, value) in [("tokens", tokens), ("videos", videos)] where value < 1 {
            throw ValidationError("--\(name) takes 1 or more, got \(value)")
        }
    }

    func run() throws {
        try OutputFile.check(output, others: [(model + "/model.safetensors", "the model")], replaces: true)
        let transformer = try VideoTransformer(folder: model, on: running.pool)
        let sampler = try running.sampler
        var recorder = try CalibrationRecorder(capacity: tokens, seed: seed)
        let progress = ProgressLine(total: videos, work: Double(videos * sampler.steps * transformer.layers))
        for video in 0..<videos {
            let prompt = try prompt(sprites: [], background: nil, seed: seed + UInt64(video), for: transformer)
            progress.begin("video \(video + 1)")
            try recorder.record(
                prompt: prompt.tokens, seed: seed + UInt64(video), through: transformer, sampler: sampler, on: running.pool
            ) { event throws(SparseKernelsError) in
                if case .layer = event { progress.advance(work: 1) }
            }
            progress.finishCase(work: 0)
        }
        progress.clear()
        try recorder.write(
            to: output, source: "\(videos) videos of \(sampler.steps) steps, \(tokens) tokens of them, seed \(seed)")
        printNow(
            "\(output): \(recorder.layers.count) layers, \(min(tokens, recorder.tokens)) of \(recorder.tokens) tokens, from \(videos) "
                + "videos of \(sampler.steps) steps")
    }
}
