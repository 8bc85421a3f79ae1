import ArgumentParser
import Foundation
import LanguageMeasuring
import SparseKernels
import SparseKernelsModels
import Terminal

struct PerplexityCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "perplexity", abstract: "Measures in how many bits per byte a model codes texts.",
        discussion: """
            Windows of --context tokens are spread evenly over the text. The last --scored tokens of each count, and see all of their \
            window before them. They go through the model as the end of the prompt, or one by one with --path decoding.
            """)

    @OptionGroup var model: ModelOptions
    @OptionGroup var adapter: AdapterOptions

    @OptionGroup var session: SessionFlags
    @OptionGroup var texts: TextOptions
    @OptionGroup var ranks: RankOptions

    @Option(help: "Tokens of a window, such as 2048 or 2K.")
    var context = NumberList([2048])

    @Option(help: "Tokens at the end of a window that count.")
    var scored = 256

    @Option(help: "Windows.")
    var windows = 16

    @Option(help: "How the tokens that count go through the model: prefill or decoding.")
    var path = Perplexity.Path.prefill

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        try ranks.withRanks { ranks in
            let tokenizer = try model.tokenizer
            let corpus = try texts.corpus(for: tokenizer)
            let measures = try context.numbers.map {
                try Perplexity(context: $0, scored: scored, windows: windows, path: path)
            }
            let language = try model.load(
                linear: session.linear, mlp: session.mlp, for: session.method, adapter: adapter.adapter)
            try ranks.run(on: model.pool) { try measure(measures, language, on: corpus, tokenizer, $0) }
        }
    }

    private func measure(
        _ measures: [Perplexity], _ language: LanguageModel, on corpus: TextCorpus, _ tokenizer: any Tokenizing,
        _ rank: Rank
    ) throws {
        let shows = rank.speaks && !json
        let table = TextTable([
            .init("Context", width: 7), .init("Windows", width: 7), .init("Scored", "bytes", width: 7),
            .init("Bits/", "byte", width: 7), .init("Bits/", "token", width: 7), .init("Perplexity", width: 10),
            .init("Prefill", "tokens/s", width: 8),
        ])
        if shows {
            printNow(
                "\(corpus.byteCount) bytes of \(corpus.files.count) texts; \(session.method), \(LinearSpec(language)) linear "
                    + "layers, \(session.cache) cache\n")
            table.header.forEach { printNow($0) }
        }
        var reports: [PerplexityReport] = []
        let work = Double(measures.reduce(0) { $0 + $1.context * windows })
        let progress = rank.speaks ? ProgressLine(total: measures.count, work: work) : nil
        for measure in measures {
            let session = try LanguageSession(
                language, try session.spec.options(context: measure.context), communicator: rank.communicator, on: rank.pool)
            progress?.begin("\(measure.context) tokens")
            let score = try measure(session, on: corpus, tokenizer: tokenizer) { _, _, score throws(SparseKernelsError) in
                progress?.advance(work: Double(measure.context))
                return true
            }
            progress?.finishCase(work: 0)
            progress?.clear()
            let rate = Double(session.statistics.prefillTokens) / session.statistics.prefill.total
            reports.append(PerplexityReport(context: measure.context, score: score, path: path.rawValue))
            if !shows { continue }
            printNow(
                table.line([
                    "\(measure.context)", "\(score.tokens / scored)", "\(score.bytes)", Format.number(score.bitsPerByte),
                    Format.number(score.bitsPerToken), Format.number(score.perplexity), Format.number(rate),
                ]))
        }
        if json, rank.speaks { FileHandle.standardOutput.write(try RowFile<LanguageRow>.encode(reports)) }
    }
}
