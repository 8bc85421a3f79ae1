import ArgumentParser
import Foundation
import LanguageMeasuring
import SparseKernels
import SparseKernelsModels
import Terminal

struct BenchCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench", abstract: "Times prompts and steps behind texts of several lengths, in the rows of llama-bench.",
        discussion: """
            pp512 is a prompt of 512 tokens, tg128 are 128 steps of one sequence, and `@ d8192` says that 8192 tokens are before them. The \
            last line of a method says by how much a step is slower for each 1024 tokens of context.
            """)

    @OptionGroup var model: ModelOptions

    @Option(help: ArgumentHelp("Forms of linear layers, with commas between. Default: that of generate.", valueName: "formats"))
    var linear: String?

    @Option(
        help: ArgumentHelp("How MLPs are computed, with commas between.", discussion: MLPSpec.help, valueName: "forms"))
    var mlp = "dense"

    @Option(help: ArgumentHelp("Methods, with commas between.", discussion: MethodSpec.help, valueName: "methods"))
    var methods = "dense"

    @Option(help: "How keys and values are cached, as for generate.", transform: { try CacheSpec($0) })
    var cache = CacheSpec.float16

    @OptionGroup var passes: PassOptions
    @OptionGroup var texts: TextOptions
    @OptionGroup var ranks: RankOptions

    @Option(name: .customLong("pp"), help: "Tokens of a prompt; 0 leaves it out.")
    var prompt = LanguageBench().prompt

    @Option(name: .customLong("tg"), help: "Steps; 0 leaves them out.")
    var steps = LanguageBench().steps

    @Option(help: ArgumentHelp("Tokens before them, with commas between.", valueName: "depths"))
    var depths = NumberList(LanguageBench().depths)

    @Option(help: "Repetitions of each test, after one that is not timed.")
    var repetitions = LanguageBench().repetitions

    @Flag(help: "Two repetitions at depths up to 4096.")
    var quick = false

    @Option(help: "Write the rows to this file as well, while they are measured.")
    var json: String?

    func validate() throws {
        _ = try MethodSpec.list(methods)
        _ = try LinearChoice.list(linear)
        _ = try MLPSpec.list(mlp)
        guard (1...1000).contains(repetitions), (0...1 << 20).contains(prompt), (0...1 << 20).contains(steps) else {
            throw ValidationError("--repetitions takes 1 to 1000, --pp and --tg 0 to \(1 << 20)")
        }
    }

    func run() throws {
        try ranks.withRanks { ranks in
            var bench = LanguageBench.quick
            if !quick {
                (bench.prompt, bench.steps, bench.depths, bench.repetitions) = (prompt, steps, depths.numbers, repetitions)
            }
            let specs = try MethodSpec.list(methods)
            let tokenizer = try model.tokenizer
            let corpus = try texts.corpus(for: tokenizer)
            var file = ranks.speaks ? try json.map { try RowFile<LanguageBench.Row>(path: $0, continues: false) } : nil
            let table = LanguageBench.Row.table(methodWidth: specs.map(\.description.count).max() ?? 0)
            if ranks.speaks { table.header.forEach { printNow($0) } }
            let formats = try LinearChoice.list(linear)
            let forms = try MLPSpec.list(mlp)
            let message = InterruptMessage(json.map { "stopped; finished rows are in \($0)" } ?? "stopped")
            defer { withExtendedLifetime(message) {} }
            var total: Int { bench.tests.count * specs.count * formats.count * forms.count }
            let progress = ranks.speaks ? ProgressLine.onTerminal(total: total) : nil
            for (format, form) in formats.flatMap({ format in forms.map { (format, $0) } }) {
                let language = try model.load(linear: format, mlp: form)
                for method in specs {
                    let language = try model.prepare(language, for: method)
                    let spec = try passes.spec(method, cache)
                    try ranks.run(on: model.pool) { rank in
                        var rows: [LanguageBench.Row] = []
                        try bench.run(
                            language, spec, text: corpus.tokens, communicator: rank.communicator, pool: rank.pool,
                            began: { if rank.speaks { progress?.begin("\(method), \($0)") } }
                        ) { row throws(SparseKernelsError) in
                            guard rank.speaks else { return }
                            progress?.finishCase()
                            progress?.clear()
                            rows.append(row)
                            printNow(row.line(in: table))
                            try file?.append(row)
                        }
                        if let slope = LanguageBench.slope(rows) {
                            printNow("  \(method): a step takes \(Format.number(slope)) ms more for each 1K tokens of context")
                        }
                    }
                }
            }
        }
    }
}
