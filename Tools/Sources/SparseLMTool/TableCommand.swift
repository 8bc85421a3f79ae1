import ArgumentParser
import Foundation
import LanguageMeasuring
import ModelQuantization
import SparseKernels
import SparseKernelsModels
import Terminal

struct TableCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "table",
        abstract: "Compares methods of attention at several contexts, and linear layers and caches at one.",
        discussion: """
            The first table has a row for each context and method: bits per byte, needle accuracy, density, and speed against dense \
            attention. The second one has forms of linear layers and of caches with dense attention. With --json FILE the rows are \
            written while they are measured, and --resume goes on where an interrupted run was. --quick takes minutes.
            """)

    @OptionGroup var model: ModelOptions
    @OptionGroup var passes: PassOptions
    @OptionGroup var texts: TextOptions

    @Option(help: ArgumentHelp("Contexts of the first table, with commas between.", valueName: "contexts"))
    var contexts = NumberList([2048, 4096, 8192, 16384, 32768])

    @Option(
        help: ArgumentHelp(
            "Methods of the first table, with commas between; dense comes first in any case.", valueName: "methods"))
    var methods = TableCase.methods

    @Option(
        help: "The form of linear layers in the first table. Default: w4a8 for a quantised model, float16 for another.",
        transform: { try LinearSpec($0) })
    var linear: LinearSpec?

    @Option(
        help: ArgumentHelp(
            "Linear layers of the second table, with commas between. Default: all that the models have.", valueName: "formats"))
    var linears: String?

    @Option(help: ArgumentHelp("Caches of the second table, with commas between.", valueName: "caches"))
    var caches = TableCase.caches

    @Option(help: "The context of the second table.")
    var formatContext = 8192

    @Option(
        help:
            "The folder of the model that w4a4 without a rank is run with. Default: the model if it is quantised, or the repository's."
    )
    var quantized: String?

    @Option(help: "Only this table: methods or formats.")
    var only: TableCase.Kind?

    // MARK: How much

    @Option(help: "Windows of the text, for bits per byte.")
    var windows = MeasurementPlan().windows

    @Option(help: "Tokens at the end of a window that count.")
    var scored = MeasurementPlan().scored

    @Option(help: "Haystacks of each row; 0 leaves the needle task out.")
    var trials = MeasurementPlan().trials

    @Option(help: "Keys in a haystack.")
    var keys = MeasurementPlan().keys

    @Option(help: "Seed of haystacks, keys and places.")
    var seed: UInt64 = 1

    @Flag(help: "Two windows and two haystacks at 4K, and the second table at 2K.")
    var quick = false

    @Option(help: "Write the rows to this file as well, while they are measured.")
    var json: String?

    @Flag(help: "Take over the rows that the file of --json has.")
    var resume = false

    func validate() throws {
        _ = try MethodSpec.list(methods)
        _ = try CacheSpec.list(caches)
        _ = try LinearChoice.list(linears)
        if resume && json == nil { throw ValidationError("--resume needs --json FILE") }
        guard windows >= 1, scored >= 1, trials >= 0, keys >= 1 else {
            throw ValidationError("--windows, --scored and --keys take 1 or more, --trials 0 or more")
        }
    }

    private var plan: MeasurementPlan {
        var plan = quick ? MeasurementPlan.quick : MeasurementPlan()
        if !quick { (plan.windows, plan.scored, plan.trials) = (windows, scored, trials) }
        (plan.keys, plan.seed) = (keys, seed)
        return plan
    }

    func run() throws {
        try RankOptions.requireOneProcess("table")
        if let json { try OutputFile.check(json, replaces: true) }
        let folder = try model.folder
        let tokenizer = try model.tokenizer
        let corpus = try texts.corpus(for: tokenizer)
        let plan = plan
        let cases = TableCase.all(
            only: only, contexts: quick ? [4096] : contexts.numbers, methods: try MethodSpec.list(methods),
            linear: linear ?? LinearChoice.standard(for: folder),
            linears: linears == nil
                ? LinearChoice.all(for: folder, quantized: quantized) : try LinearChoice.list(linears).compactMap { $0 },
            caches: try CacheSpec.list(caches), formatContext: quick ? 2048 : formatContext)
        var file = try json.map { try RowFile<LanguageRow>(path: $0, continues: resume) }
        let message = InterruptMessage(json.map { "stopped; finished rows are in \($0), and --resume goes on" } ?? "stopped")
        defer { withExtendedLifetime(message) {} }
        printNow(
            "\(folder): \(corpus.byteCount) bytes of \(corpus.files.count) texts, \(model.pool.threads) threads, float16 caches if "
                + "nothing else is said\n")

        var printer = TablePrinter(cases: cases)
        let progress = ProgressLine(total: cases.count, work: cases.reduce(0) { $0 + $1.work(plan) })
        var loaded: (linear: LinearSpec, model: LanguageModel)?
        for item in cases {
            let reused = file?.rows.first { $0.isSameCase(as: item.row(plan)) }
            if let reused {
                progress.clear()
                printer.add(reused, of: item).forEach { printNow($0) }
                progress.finishCase(work: item.work(plan), isSkipped: true)
                continue
            }
            progress.begin(item.title)
            if loaded?.linear != item.linear {
                loaded = nil
                let own = LinearChoice.folder(for: item.linear, model: folder, quantized: quantized)
                loaded = (item.linear, try model.load(own, item.linear))
            }
            let measurer = LanguageMeasurer(
                model: loaded!.model, tokenizer: tokenizer, corpus: corpus, plan: plan, pool: model.pool)
            var done = 0.0
            let row = try measurer.row(passes.spec(item.method, item.cache), context: item.context) {
                what, part throws(SparseKernelsError) in
                progress.advance(work: (part - done) * item.work(plan))
                done = part
                progress.begin("\(item.title), \(what)")
                return true
            }
            guard let row else { return }
            progress.clear()
            try file?.append(row)
            printer.add(row, of: item).forEach { printNow($0) }
            progress.finishCase(work: item.work(plan) * (1 - done))
        }
        progress.clear()
        printNow("")
        LanguageRow.legend(plan).forEach { printNow($0) }
    }
}
