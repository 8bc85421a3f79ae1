public import ArgumentParser
import Foundation
import LanguageMeasuring
import ReasoningBranches
import SparseKernels
public import SparseKernelsModels
import Terminal

struct BranchCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "branch",
        abstract: "Continues a text in branches that share their pages: samples, beams, or children to join.",
        discussion: """
            best: samples of one prompt, the most probable first. beam: the most probable texts that a search of that width meets. \
            spawn: a child for each --child text, behind the prompt; they are decoded together, the parent is given what they wrote in \
            the order of the spawn, and goes on. A tree of the pages at their most follows on standard error, or in --svg FILE. \
            Docs/Papers/ReasoningBranches.md says what branches are.
            """)

    enum Mode: String, CaseIterable, ExpressibleByArgument { case best, beam, spawn }

    @OptionGroup var model: ModelOptions

    @OptionGroup var prompt: PromptOptions
    @OptionGroup var session: SessionFlags

    @Option(help: "What the branches are for.")
    var mode = Mode.best

    @Option(name: .customLong("branches"), help: "Samples, or the width of the beam.")
    var count = 8

    @Option(help: ArgumentHelp("What a child of spawn begins with. May be repeated.", valueName: "text"))
    var child: [String] = []

    @Option(name: [.customShort("n"), .long], help: "Tokens that a branch makes, at most.")
    var maxTokens = 64

    @Option(help: "0 takes the most probable token; above, tokens are drawn.")
    var temperature = 0.7

    @Option(help: "Draw from the fewest tokens that have this probability together.")
    var topP = 1.0

    @Option(help: "Seed of what is drawn.")
    var seed: UInt64 = 1

    @Option(help: "A text that ends a branch. May be repeated.")
    var stop: [String] = []

    @Option(help: "How samples are ranked: by logProbability or meanLogProbability.")
    var score = BranchScore.meanLogProbability

    @Option(help: "Beams are ranked by log-probability / tokens to this power.")
    var lengthPenalty = 0.0

    @Option(help: "Tokens of a page: 16, 32, 64 or 128. Small pages share more.")
    var pageSize = 16

    @Option(help: "Write a picture of the tree and its pages to this file.")
    var svg: String?

    @Flag(help: "Print one JSON object.")
    var json = false

    func validate() throws {
        guard (1...256).contains(count) else { throw ValidationError("--branches takes 1 to 256, got \(count)") }
        guard child.count <= 256 else { throw ValidationError("--child may be given 256 times, got \(child.count)") }
        guard (1...1 << 16).contains(maxTokens) else {
            throw ValidationError("--max-tokens takes 1 to \(1 << 16), got \(maxTokens)")
        }
        guard [16, 32, 64, 128].contains(pageSize) else {
            throw ValidationError("--page-size takes 16, 32, 64 or 128, got \(pageSize)")
        }
        if mode != .spawn && !child.isEmpty { throw ValidationError("--child is for --mode spawn") }
        guard lengthPenalty >= 0, lengthPenalty.isFinite else {
            throw ValidationError("--length-penalty takes 0 or more, got \(lengthPenalty)")
        }
        try request.sampling.check()
    }

    private var request: BranchRequest {
        BranchRequest(
            sampling: Sampling(temperature: temperature, topP: topP), maximumTokens: maxTokens, stopStrings: stops)
    }

    private static let standardChildren = [
        "    /// The sum of two points.\n    static func + (", "    /// The difference of two points.\n    static func - (",
        "    /// The distance to another point.\n    func distance(",
    ]
    private static let standardSpawnPrompt = """
        /// A point in the plane.
        struct Point {
            var x: Double
            var y: Double


        """

    private var children: [String] { child.isEmpty ? Self.standardChildren : child }
    private var stops: [String] { stop.isEmpty && mode == .spawn ? ["\n\n"] : stop }

    func run() throws {
        try RankOptions.requireOneProcess("branch")
        let standard = mode == .spawn ? Self.standardSpawnPrompt : GenerateCommand.standardPrompt
        let text = try prompt.text(else: standard)
        let tokenizer = try model.tokenizer
        let tokens = tokenizer.startTokens + tokenizer.encode(bytes: text)
        let language = try model.load(linear: session.linear, mlp: session.mlp, for: session.method)
        let starts = mode == .spawn ? children.map { tokenizer.encode($0).count } : []
        let branches = mode == .spawn ? starts.count : count
        let longest = maxTokens + (starts.max() ?? 0)
        let context = tokens.count + (mode == .spawn ? branches * (longest + 1) : 0) + maxTokens
        // Each branch may copy a page; a beam divides before others end.
        var options = try self.session.spec.options(
            context: context, sequences: 2 * branches + 2, extra: branches * longest * (mode == .beam ? 2 : 1))
        options.pageSize = pageSize
        let session = try LanguageSession(language, options, on: model.pool)
        var request = request
        request.endTokens = tokenizer.endTokens
        let branching = try BranchingSession(session, reusesPrefixes: false, seed: seed)
        var run = BranchRun(branching, tokenizer: tokenizer, request: request)
        let samples: [BranchSample]
        switch mode {
        case .best: samples = try run.bestOf(count, after: tokens, by: score)
        case .beam: samples = try run.beams(count, after: tokens, lengthPenalty: lengthPenalty)
        case .spawn: samples = try run.spawn(children, after: tokens, separator: stops[0])
        }
        let report = BranchReport(
            mode: mode.rawValue, promptTokens: tokens.count, samples: samples,
            joined: run.joined.map { String(decoding: text + $0, as: UTF8.self) }, memory: run.memory,
            statistics: session.statistics)
        if let svg {
            let title = "\(mode.rawValue): \(branches) branches behind \(tokens.count) tokens"
            try Data(report.memory.chart(title: title).svg().utf8).write(to: URL(fileURLWithPath: svg))
        }
        if json { return Self.write(Array(try RowFile<BranchReport>.encode(report))) }
        show(report)
    }

    private func show(_ report: BranchReport) {
        for (index, sample) in report.samples.enumerated() {
            let isParent = mode == .spawn && index == report.samples.count - 1
            printNow(
                "── \(isParent ? "the parent after the join" : "\(index + 1)"): "
                    + "log p \(Format.number(sample.logProbability)), \(Format.number(sample.meanLogProbability)) a token, "
                    + "\(sample.tokens.count) tokens, \(sample.end)")
            let start = mode == .spawn && !isParent ? children[index] : ""
            printNow(start + (isParent ? report.joined ?? "" : sample.text))
        }
        printError("")
        for line in report.memory.lines() { printError(line) }
        printError("▓ shared with rows below, ░ of a row above, █ own")
        printError(report.summary)
    }

    private static func write(_ bytes: [UInt8]) { FileHandle.standardOutput.write(Data(bytes)) }
}

extension BranchScore: @retroactive ExpressibleByArgument {}
