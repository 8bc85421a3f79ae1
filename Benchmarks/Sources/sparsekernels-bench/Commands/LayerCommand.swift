public import ArgumentParser
import SparseKernels
public import SparseKernelsModels
import Terminal

extension LinearFormat: @retroactive ExpressibleByArgument {}

struct LayerCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "layer",
        abstract: "Compares a layer of the size of Llama 3 8B inside a model with its kernels on their own.",
        discussion: """
            Weights are random. Shown are a step of one token behind --context tokens, and a prompt of --prompt tokens; the cache has \
            half precision. "Kernels" are the same linear layers and the same attention, called one after the other with ready \
            operands. "Model" includes what a pass adds to them: stores into the cache, and work between the calls.
            """)

    @OptionGroup var machine: MachineOptions

    @Option(help: "How linear layers are computed: float32, float16, bfloat16, fp8, w4a16 or w4a8.")
    var linear = LinearFormat.w4a8

    @Option(help: "Tokens before a step.")
    var context = 8192

    @Option(help: "Tokens of a prompt.")
    var prompt = 2048

    @Option(help: "Repetitions, of which the median counts.")
    var repetitions = 15

    func validate() throws {
        if linear == .w4a4 { throw ValidationError("--linear w4a4 needs weights that were quantised with a calibration") }
        for (name, value) in [("--context", context), ("--prompt", prompt), ("--repetitions", repetitions)] where value < 1 {
            throw ValidationError("\(name) takes 1 or more, got \(value)")
        }
    }

    func run() throws {
        let pool = try machine.pools().last!
        let progress = ProgressLine.onTerminal(total: 5)
        progress?.begin("making the weights")
        let files = try LayerModel(context: context + 4 * repetitions)
        progress?.finishCase()
        progress?.begin("loading the model")
        let model = try LanguageModel(folder: files.folder, linear: linear, on: pool)
        progress?.finishCase()
        progress?.begin("the model")
        let (step, prompt) = (try steps(model, pool), try prompts(model, pool))
        progress?.finishCase()
        progress?.begin("making the kernels' operands")
        let parts = try LayerParts(linear, on: pool)
        progress?.finishCase()
        progress?.begin("the kernels")
        let stepParts = try parts.step(context: context, repetitions: repetitions)
        let promptParts = try parts.prompt(
            tokens: self.prompt, chunk: SessionOptions().chunk, repetitions: max(1, repetitions / 5))
        progress?.finishCase()
        progress?.clear()

        let table = TextTable([
            .init("Pass", width: 28, alignment: .left), .init("Stage", width: 12, alignment: .left),
            .init("Model", "ms", width: 8),
            .init("Kernels", "ms", width: 8), .init("Ratio", "×", width: 6),
        ])
        table.header.forEach { print($0) }
        func show(_ pass: String, _ model: StageSeconds, _ kernels: LayerParts.Seconds) {
            func line(_ stage: String, _ a: Double, _ b: Double?) {
                print(
                    table.line([
                        pass, stage, Format.number(1e3 * a), b.map { Format.number(1e3 * $0) } ?? "",
                        b.map { Format.number(a / $0) } ?? "",
                    ]))
            }
            line("linear", model.linear, kernels.linear)
            line("attention", model.attention, kernels.attention)
            line("other", model.other, nil)
            line("all", model.total, kernels.linear + kernels.attention)
        }
        show("step @ \(context)", step, stepParts)
        show("prompt of \(self.prompt)", prompt, promptParts)
    }

    /// The stages of a step behind `context` tokens: those of the repetition whose total is the median.
    private func steps(_ model: LanguageModel, _ pool: WorkerPool) throws -> StageSeconds {
        let session = try LanguageSession(model, SessionOptions(tokenCapacity: context + 4 * repetitions), on: pool)
        let sequence = session.makeSequence()
        _ = try session.append([Self.tokens(context)], to: [sequence])
        return try median {
            session.resetStatistics()
            _ = try session.append([[7]], to: [sequence])
            return session.statistics.decoding
        }
    }

    private func prompts(_ model: LanguageModel, _ pool: WorkerPool) throws -> StageSeconds {
        let session = try LanguageSession(model, SessionOptions(tokenCapacity: prompt + 64), on: pool)
        return try median {
            let sequence = session.makeSequence()
            session.resetStatistics()
            // The only layer is the last one, where rows without logits end after attention.
            _ = try session.append([Self.tokens(prompt)], to: [sequence], logits: .all)
            try session.free(sequence)
            return session.statistics.prefill
        }
    }

    private func median(_ pass: () throws -> StageSeconds) throws -> StageSeconds {
        var all: [StageSeconds] = []
        for round in 0...repetitions {
            let seconds = try pass()
            if round > 0 { all.append(seconds) }
        }
        return all.sorted { $0.total < $1.total }[all.count / 2]
    }

    private static func tokens(_ count: Int) -> [Int] { (0..<count).map { $0 * 131 % LayerModel.vocabulary } }
}
