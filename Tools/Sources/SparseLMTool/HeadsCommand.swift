import ArgumentParser
import Foundation
import LanguageMeasuring
import ModelQuantization
import SparseKernels
import SparseKernelsModels
import Terminal

struct HeadsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "heads", abstract: "Measures which KV heads need the whole context, for --retrieval-heads.",
        discussion: """
            The number of a head is the part of its output that changes when its queries see the first --sink and the last --local tokens \
            only. The file has a line per layer, as full_attention_heads.tsv of DuoAttention.
            """)

    @OptionGroup var model: ModelOptions
    @OptionGroup var texts: TextOptions

    @Option(name: [.short, .long], help: "The file to make.")
    var output: String

    @Option(help: "The first tokens that streaming heads see.")
    var sink = 128

    @Option(help: "The tokens up to the query that streaming heads see.")
    var local = 256

    @Option(help: "Tokens of a window.")
    var context = 4096

    @Option(help: "Windows, spread evenly over the text.")
    var windows = 8

    func validate() throws {
        for (name, value, least) in [("sink", sink, 0), ("local", local, 1), ("context", context, 1), ("windows", windows, 1)]
        where value < least {
            throw ValidationError("--\(name) takes \(least) or more, got \(value)")
        }
    }

    func run() throws {
        try RankOptions.requireOneProcess("heads")
        let folder = try model.folder
        try OutputFile.check(output, others: [(folder + "/model.safetensors", "the model")], replaces: true)
        let tokenizer = try model.tokenizer
        let corpus = try texts.corpus(for: tokenizer)
        let ranges = try corpus.windows(windows, length: context)
        let language = try model.load(linear: nil)
        var profile = try RetrievalHeadProfile(sink: sink, local: local)
        let progress = ProgressLine(total: ranges.count)
        for (index, range) in ranges.enumerated() {
            progress.begin("window \(index + 1)")
            try profile.add(Array(corpus.tokens[range]), to: language, on: model.pool)
            progress.finishCase()
        }
        progress.clear()
        let losses = profile.losses
        do {
            try RetrievalHeads.text(losses).write(toFile: output, atomically: true, encoding: .utf8)
        } catch {
            throw SparseKernelsError(.inputOutput, output, expected: "a file that can be written", actual: "\(error)")
        }
        for (layer, heads) in losses.enumerated() {
            printNow("layer \(layer): " + heads.map { Format.percent($0) }.joined(separator: " ") + " % lost")
        }
    }
}
