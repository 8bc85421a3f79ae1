import ArgumentParser
import Foundation
import LanguageMeasuring
import SparseKernels
import SparseKernelsModels
import Terminal

struct GenerateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "generate", abstract: "Continues a text.",
        discussion: """
            The text appears as it is made, behind the prompt; a summary follows on standard error. The same seed gives the same text on \
            any number of threads. mpirun -n R, or --ranks R, spreads prompts and cache over ranks. Docs/Operators/LanguageTool.md has examples.
            """)

    @OptionGroup var model: ModelOptions
    @OptionGroup var adapter: AdapterOptions

    @OptionGroup var prompt: PromptOptions
    @OptionGroup var session: SessionFlags
    @OptionGroup var ranks: RankOptions

    // MARK: Sampling

    @Option(name: [.customShort("n"), .long], help: "Tokens to make, at most.")
    var maxTokens = 400

    @Option(help: "0 takes the most probable token; above, tokens are drawn.")
    var temperature = 0.0

    @Option(help: "Draw from so many of the most probable tokens.")
    var topK: Int?

    @Option(help: "Draw from the fewest tokens that have this probability together.")
    var topP = 1.0

    @Option(help: "Draw from tokens that are at least this part as probable as the most probable one.")
    var minP = 0.0

    @Option(help: "Divides the logits of tokens that were there before.")
    var repetitionPenalty = 1.0

    @Option(help: "Seed of what is drawn.")
    var seed: UInt64 = 1

    @Option(help: "A text that ends generation. May be repeated.")
    var stop: [String] = []

    @Option(help: "Continuations to make at once, each with its own random numbers.")
    var samples = 1

    @Flag(help: "Print one JSON object, and no text while it is made.")
    var json = false

    func validate() throws {
        guard (1...64).contains(samples) else { throw ValidationError("--samples takes 1 to 64, got \(samples)") }
        guard (0...1 << 20).contains(maxTokens) else {
            throw ValidationError("--max-tokens takes 0 to \(1 << 20), got \(maxTokens)")
        }
        try sampling.check()
    }

    private var sampling: Sampling {
        Sampling(
            temperature: temperature, topK: topK, topP: topP, minP: minP, repetitionPenalty: repetitionPenalty, seed: seed)
    }

    static let standardPrompt = """
        /// A point in the plane.
        struct Point {
            var x: Double
            var y: Double

            /// The distance to another point.
            func distance(
        """

    func run() throws {
        try ranks.withRanks { ranks in
            let text = try prompt.text(else: Self.standardPrompt)
            let tokenizer = try model.tokenizer
            let tokens = tokenizer.startTokens + tokenizer.encode(bytes: text)
            let language = try model.load(
                linear: session.linear, mlp: session.mlp, for: session.method, adapter: adapter.adapter)
            let context = tokens.count + maxTokens
            let options = try session.spec.options(
                context: context, sequences: samples, extra: (samples - 1) * context)
            try ranks.run(on: model.pool) { rank in
                let session = try LanguageSession(language, options, communicator: rank.communicator, on: rank.pool)
                try generate(after: text, tokens, tokenizer, session, rank)
            }
        }
    }

    private func generate(
        after text: [UInt8], _ tokens: [Int], _ tokenizer: any Tokenizing, _ session: LanguageSession, _ rank: Rank
    ) throws {
        let requests = (0..<samples).map { index in
            GenerationRequest(
                prompt: tokens, sampling: sampling, maximumTokens: maxTokens, stopStrings: stop, stream: UInt64(index))
        }
        let shows = samples == 1 && !json && rank.speaks
        if shows { Self.write(text) }
        let progress = shows || !rank.speaks ? nil : ProgressLine(total: samples * maxTokens)
        let results = try Generator(session, tokenizer: tokenizer).run(requests) { event throws(SparseKernelsError) in
            switch event {
            case .token(_, _, let bytes):
                if shows { Self.write(bytes) }
                progress?.finishCase()
            case .finished(_, _, let bytes): if shows { Self.write(bytes) }
            case .prompts: break
            }
            return true
        }
        progress?.clear()
        guard rank.speaks else { return }
        let report = GenerationReport(
            results: results, promptTokens: tokens.count, statistics: session.statistics,
            byteCount: session.model.byteCount + session.byteCount, method: self.session.method.description,
            linear: LinearSpec(session.model).description, cache: self.session.cache.description)
        if json { return Self.write(Array(try RowFile<LanguageRow>.encode(report))) }
        if !shows {
            for (index, result) in results.enumerated() {
                printNow("\(index == 0 ? "" : "\n")── \(index + 1) of \(samples), \(report.samples[index].end)")
                Self.write(text + result.bytes)
                printNow("")
            }
        } else {
            printNow("")
        }
        printError("\n" + report.summary)
    }

    /// Bytes need not be whole characters, which `print` would replace.
    private static func write(_ bytes: [UInt8]) { FileHandle.standardOutput.write(Data(bytes)) }
}
