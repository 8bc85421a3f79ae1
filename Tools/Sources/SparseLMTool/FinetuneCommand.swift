import ArgumentParser
import Foundation
import LanguageFineTuning
import LanguageMeasuring
import ModelQuantization
import SparseKernels
import SparseKernelsFineTuning
import SparseLoRA
import Terminal

struct FinetuneCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "finetune", abstract: "Trains LoRA adapters of a model on texts.",
        discussion: """
            The text is cut into windows of --length tokens, of which the last --scored count. --sparsity FILE lets the context leave out \
            channels, as SparseLoRA does; --propose FILE finds such a file. The folder of -o gets the adapter in PEFT's format, a \
            checkpoint, and the losses as a table and a picture. After an interruption, the same command with --resume goes on \
            to the same bits. Docs/Operators/FineTuning.md has examples.
            """)

    @OptionGroup var model: ModelOptions
    @OptionGroup var texts: TextOptions

    @Option(
        name: [.customShort("o"), .long],
        help: ArgumentHelp("Where everything is written. Needed to train.", valueName: "folder"))
    var output: String?

    // MARK: What is trained

    @Option(help: "The layers with adapters, with commas between.")
    var targets = "q,k,v,o"

    @Option(help: "Rank of the adapters.")
    var rank = FineTuningConfiguration().rank

    @Option(help: "Adapters are scaled by alpha / rank.")
    var alpha = FineTuningConfiguration().alpha

    // MARK: How

    @Option(help: "Steps.")
    var steps = FineTuningConfiguration().steps

    @Option(help: "Windows of a step.")
    var batch = FineTuningConfiguration().batch

    @Option(help: "Tokens of a window.")
    var length = FineTuningConfiguration().length

    @Option(help: "Tokens at the end of a window that count.")
    var scored = FineTuningConfiguration().scored

    @Option(help: "The largest learning rate. It falls to 0 along half a cosine.")
    var learningRate = FineTuningConfiguration().learningRate

    @Option(help: "Steps over which the learning rate rises.")
    var warmup = FineTuningConfiguration().warmup

    @Option(help: "Gradients are scaled down to this norm; 0 leaves them.")
    var clip = FineTuningConfiguration().maximumNorm ?? 0

    @Option(help: "Decay of AdamW.")
    var weightDecay = FineTuningConfiguration().weightDecay

    @Option(help: "Seed of the factors and of the order of the windows.")
    var seed = FineTuningConfiguration().seed

    @Option(
        help: ArgumentHelp("Sparsities of the layers, as SparseLoRA has them. Default: all channels run.", valueName: "file"))
    var sparsity: String?

    @Option(
        help: ArgumentHelp(
            "Measure how well each layer does without channels, write sparsities to this file, and train nothing.",
            valueName: "file"))
    var propose: String?

    @Option(help: "With --propose: the part of the multiply-adds of projections and MLPs that the context may keep.")
    var budget = 0.4

    // MARK: What is measured and kept

    @Option(help: "Windows that are held out.")
    var validation = FineTuningConfiguration().validation

    @Option(help: "Steps from one measurement of them to the next.")
    var validateEvery = 50

    @Option(help: "Steps from one checkpoint to the next.")
    var checkpointEvery = 50

    @Flag(help: "Go on from the checkpoint of the folder.")
    var resume = false

    @Flag(help: "Print one JSON object at the end, and no rows.")
    var json = false

    func validate() throws {
        _ = try AdapterTargets.read(targets)
        guard (output == nil) != (propose == nil) else { throw ValidationError("give -o FOLDER to train, or --propose FILE") }
        guard budget > 0, budget <= 1 else {
            throw ValidationError("--budget takes a number above 0 and up to 1, got \(budget)")
        }
        guard steps >= 1, batch >= 1, length >= 2, (1...max(1, length)).contains(scored), rank >= 1, validation >= 0 else {
            throw ValidationError(
                "--steps, --batch and --rank take 1 or more, --length 2 or more, --scored 1 to --length, --validation 0 or more"
            )
        }
        guard validateEvery >= 1, checkpointEvery >= 1 else {
            throw ValidationError("--validate-every and --checkpoint-every take 1 or more")
        }
        guard learningRate > 0, alpha > 0, clip >= 0, weightDecay >= 0, (0...steps).contains(warmup) else {
            throw ValidationError(
                "--learning-rate and --alpha take numbers above 0, --clip and --weight-decay 0 or more, --warmup 0 to --steps")
        }
    }

    private var settings: FineTuningConfiguration {
        get throws {
            var c = FineTuningConfiguration()
            c.targets = try AdapterTargets.read(targets)
            (c.rank, c.alpha, c.steps, c.batch, c.length, c.scored) = (rank, alpha, steps, batch, length, scored)
            (c.learningRate, c.warmup, c.weightDecay, c.seed) = (learningRate, warmup, weightDecay, seed)
            (c.maximumNorm, c.validation) = (clip == 0 ? nil : clip, validation)
            c.sparsity = try sparsity.map { try SparseLoRAConfiguration(path: $0) }
            return c
        }
    }

    func run() throws {
        try RankOptions.requireOneProcess("finetune")
        let settings = try settings
        let tokenizer = try model.tokenizer
        let corpus = try texts.corpus(for: tokenizer)
        let windows = try TrainingWindows(
            corpus, length: length, scored: scored, validation: validation, seed: seed)
        let frozen = try FrozenModel(folder: model.folder, rank: rank, on: model.pool)
        guard let output else { return try measureSensitivity(frozen, windows) }
        let trainer = try LoRATrainer(frozen, settings, on: model.pool)
        let run = try FineTuningRun(
            trainer, on: windows, folder: output, checkpointInterval: checkpointEvery, validationInterval: validateEvery)
        let goesOn = resume ? try run.resume() : false
        if !json {
            printNow(
                "\(corpus.byteCount) bytes of \(corpus.files.count) texts: \(windows.training.count) windows, "
                    + "\(windows.validation.count) held out; \(trainer.parameterCount) numbers to train, \(model.pool.threads) threads"
                    + (goesOn ? "; on from step \(trainer.completedSteps)" : "") + "\n")
        }
        try train(run)
        let report = FineTuningReport(run)
        if json { return FileHandle.standardOutput.write(try RowFile<LanguageRow>.encode(report)) }
        printNow("\n" + report.summary)
        printNow("the adapter is in \(output): sparse-lm perplexity --model \(try model.folder) --adapter \(output)")
    }

    /// Measures blocks, and writes what follows.
    private func measureSensitivity(_ model: FrozenModel, _ windows: TrainingWindows) throws {
        guard let path = propose else { return }
        try OutputFile.check(path, replaces: true)
        var progress: ProgressLine?
        let result = try SparsityProposal(model, on: windows, budget: budget, batch: batch, pool: self.model.pool) {
            block, part, sparsity, count in
            if progress == nil { progress = ProgressLine(total: count) } else { progress?.finishCase() }
            progress?.begin(block.map { "block \($0), \(part.rawValue) at \(Format.number(100 * sparsity)) %" } ?? "all blocks")
            return true
        }
        progress?.clear()
        guard let result else { return }
        try result.configuration.write(to: path)
        SensitivityTable(result).lines.forEach { printNow($0) }
        printNow("\nwritten to \(path)")
    }

    /// Runs the steps, with a row for each measurement.
    private func train(_ run: FineTuningRun) throws {
        let message = InterruptMessage("stopped; the last checkpoint is in \(run.folder), and --resume goes on")
        defer { withExtendedLifetime(message) {} }
        let table = TextTable([
            .init("Step", width: 6), .init("Training", "nats", width: 8), .init("Held out", "nats", width: 8),
            .init("Held out", "bits", width: 8), .init("Step", "ms", width: 7), .init("Training", "s", width: 8),
        ])
        if !json { table.header.forEach { printNow($0) } }
        let progress = ProgressLine(total: steps)
        for _ in 0..<run.trainer.completedSteps { progress.finishCase(isSkipped: true) }
        let bitsPerNat = 1 / log(2.0)
        try run.run { update throws(SparseKernelsError) in
            if update.seconds != nil {
                progress.finishCase()
                progress.begin(
                    "loss \(Format.number(update.loss))" + (update.validation.map { ", held out \(Format.number($0))" } ?? ""))
                return true
            }
            try writeCurve(run)
            if json { return true }
            progress.clear()
            let recent = run.curve.steps.suffix(validateEvery)
            let seconds = recent.reduce(0) { $0 + $1.seconds.total } / Double(max(1, recent.count))
            let loss = recent.reduce(0) { $0 + $1.loss } / Double(max(1, recent.count))
            printNow(
                table.line([
                    "\(update.step)", recent.isEmpty ? "" : Format.fixed(loss, 4),
                    update.validation.map { Format.fixed($0, 4) } ?? "",
                    update.validation.map { Format.fixed($0 * bitsPerNat, 4) } ?? "",
                    recent.isEmpty ? "" : Format.number(1000 * seconds),
                    Format.number(run.curve.seconds(ofSteps: update.step)),
                ]))
            return true
        }
        progress.clear()
        try writeCurve(run)
    }

    /// The losses so far, as a table and a picture.
    private func writeCurve(_ run: FineTuningRun) throws(SparseKernelsError) {
        let sparsity = run.trainer.configuration.sparsity == nil ? "all channels" : "chosen channels"
        let picture = LossChart.svg(
            run.curve, title: "Fine-tuning", subtitle: "\(batch) × \(length) tokens a step, rank \(rank), \(sparsity)")
        for (name, text) in [("losses.csv", run.curve.csv), ("losses.svg", picture)] {
            let path = "\(run.folder)/\(name)"
            do { try Data(text.utf8).write(to: URL(fileURLWithPath: path), options: .atomic) } catch {
                throw SparseKernelsError(
                    .inputOutput, path, expected: "a file that can be written", actual: error.localizedDescription)
            }
        }
    }
}
