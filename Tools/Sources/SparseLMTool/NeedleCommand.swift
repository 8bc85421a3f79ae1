import ArgumentParser
import Foundation
import LanguageMeasuring
import SparseKernels
import SparseKernelsModels
import Terminal

struct NeedleCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "needle", abstract: "Hides numbers in long texts and asks a model for them.",
        discussion: """
            Lines such as `// KEY red-1234 = 567890` are put at random places of a text. The model must continue `// KEY red-1234 = ` with \
            exactly these digits. Each haystack is run once, and all of its keys are asked for.
            """)

    @OptionGroup var model: ModelOptions

    @OptionGroup var session: SessionFlags
    @OptionGroup var texts: TextOptions
    @OptionGroup var ranks: RankOptions

    @Option(help: "Tokens of a haystack with question and answer, such as 8192 or 2K,8K.")
    var context = NumberList([8192])

    @Option(help: "Haystacks.")
    var trials = 40

    @Option(help: "Keys in a haystack.")
    var keys = 6

    @Option(help: "Seed of haystacks, keys and places.")
    var seed: UInt64 = 1

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        try ranks.withRanks { ranks in
            let tokenizer = try model.tokenizer
            let corpus = try texts.corpus(for: tokenizer)
            let tasks = try context.numbers.map { try NeedleTask(context: $0, keys: keys, trials: trials, seed: seed) }
            let language = try model.load(linear: session.linear, mlp: session.mlp, for: session.method)
            try ranks.run(on: model.pool) { try ask(tasks, language, in: corpus, tokenizer, $0) }
        }
    }

    private func ask(
        _ tasks: [NeedleTask], _ language: LanguageModel, in corpus: TextCorpus, _ tokenizer: any Tokenizing, _ rank: Rank
    ) throws {
        let shows = rank.speaks && !json
        let table = TextTable([
            .init("Context", width: 7), .init("Right", width: 6), .init("Questions", width: 9),
            .init("Accuracy", "%", width: 8),
            .init("Density", "%", width: 7), .init("KV read", "%", width: 7),
        ])
        if shows {
            printNow("\(session.method), \(LinearSpec(language)) linear layers, \(session.cache) cache\n")
            table.header.forEach { printNow($0) }
        }
        var reports: [NeedleReport] = []
        let work = Double(tasks.reduce(0) { $0 + $1.context * trials })
        let progress = rank.speaks ? ProgressLine(total: tasks.count, work: work) : nil
        for task in tasks {
            let session = try LanguageSession(
                language, try session.spec.options(context: task.context, sequences: keys + 1, extra: 128 * keys),
                communicator: rank.communicator, on: rank.pool)
            progress?.begin("\(task.context) tokens")
            let score = try task(session, in: corpus, tokenizer: tokenizer) { _, score throws(SparseKernelsError) in
                progress?.advance(work: Double(task.context))
                progress?.begin("\(task.context) tokens, \(score.correct) of \(score.questions)")
                return true
            }
            progress?.finishCase(work: 0)
            progress?.clear()
            let statistics = session.statistics
            reports.append(
                NeedleReport(
                    context: task.context, score: score, density: statistics.prefillDensity,
                    readFraction: statistics.decodingReadFraction))
            if !shows { continue }
            printNow(
                table.line([
                    "\(task.context)", "\(score.correct)", "\(score.questions)", Format.percent(score.accuracy),
                    Format.percent(statistics.prefillDensity), Format.percent(statistics.decodingReadFraction),
                ]))
        }
        if json, rank.speaks { FileHandle.standardOutput.write(try RowFile<LanguageRow>.encode(reports)) }
    }
}
