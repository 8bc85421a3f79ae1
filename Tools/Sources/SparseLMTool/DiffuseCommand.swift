public import ArgumentParser
public import FastDLLM
import Foundation
import LanguageMeasuring
public import SparseKernels
public import SparseKernelsModels
import Terminal

extension FastDLLMConfiguration.Cache: @retroactive ExpressibleByArgument {}
extension DiffusionTask: @retroactive ExpressibleByArgument {}
extension KVFormat: @retroactive ExpressibleByArgument {}

struct DiffuseCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "diffuse", abstract: "Fills masks with a masked-diffusion model, several per pass.",
        discussion: """
            Continues a text or answers a question with an exact answer (--task). Each pass shows the block that it fills: · is a \
            mask. With --table, ways to decode are compared on questions and on continuations of the sources.
            """)

    @Option(help: "The folder of a bidirectional model over bytes. Default: models/diffusion-lm in SPARSEKERNELS_DATA.")
    var model: String?

    @Argument(help: "The text to continue. Default: a question.")
    var prompt: String?

    @Option(help: "A kind of question: rev, sort, up, add, get, rle.")
    var task: DiffusionTask?

    @Option(help: "The number of the question.")
    var question = 0

    @Option(name: [.customShort("n"), .long], help: "Positions to fill, a multiple of the block.")
    var length = 64

    @Option(help: "Positions of a block.")
    var block = 32

    @Option(
        help: ArgumentHelp("Which positions a pass fills.", discussion: CommitRuleSpec.help),
        transform: { try CommitRuleSpec($0) })
    var rule = try! CommitRuleSpec("threshold:0.9")

    @Option(help: "What is kept between the passes of a block: none, prefix, dual.")
    var cache = FastDLLMConfiguration.Cache.dual

    @Option(
        help: "The format of keys and values: float32, float16, bfloat16, int8, int4. Default: single precision without pages.")
    var cacheFormat: KVFormat?

    @Option(help: "Run the whole sequence in every so many passes of a block.")
    var refreshEvery: Int?

    @Option(
        help: "How linear layers are computed: float32, float16, bfloat16, w4a16, w4a8; w4a8:32 makes branches of rank 32.",
        transform: { try LinearSpec($0) })
    var linear = LinearSpec(.float16)

    @Option(help: "0 takes the most probable token; above, tokens are drawn.")
    var temperature = 0.0

    @Option(help: "Seed of what is drawn, and of questions.")
    var seed: UInt64 = 1

    @Option(help: "Threads. Default: as many as the process may use.")
    var threads: Int?

    @Flag(help: "Print a line for each pass, also where it cannot be replaced.")
    var steps = false

    @Flag(help: "Print JSON.")
    var json = false

    // MARK: Table

    @Flag(help: "Compare ways to decode.")
    var table = false

    @Option(help: "Questions of the table.")
    var questions = 200

    @Option(help: "Continuations of the table, of a text of 256 bytes each.")
    var samples = 2

    @Option(help: "Lengths of continuations, with commas between.")
    var lengths = NumberList([128, 256, 512, 1024])

    func validate() throws {
        if let threads, threads < 1 { throw ValidationError("--threads takes 1 or more, got \(threads)") }
        if questions < 0 || samples < 0 { throw ValidationError("--questions and --samples take 0 or more") }
        if prompt != nil && task != nil { throw ValidationError("give a text or --task, not both") }
        if question < 0 { throw ValidationError("--question takes 0 or more, got \(question)") }
        _ = try FastDLLMDecoder(decoding)
    }

    var decoding: FastDLLMConfiguration {
        FastDLLMConfiguration(
            blockLength: block, rule: rule.rule, cache: cache, refreshEvery: refreshEvery, temperature: temperature, seed: seed)
    }

    var pool: WorkerPool { threads.map { WorkerPool(threads: $0) } ?? .shared }

    func load() throws -> LanguageModel {
        let data = ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"]
        guard let folder = model ?? data.map({ $0 + "/models/diffusion-lm" }) else {
            throw ValidationError("give --model FOLDER, or set SPARSEKERNELS_DATA")
        }
        return try LanguageModel(folder: folder, linear: linear.format, rank: linear.rank, on: pool)
    }

    func run() throws {
        try RankOptions.requireOneProcess("diffuse")
        if table { return try runTable() }
        let question = prompt == nil ? (task ?? .sort).question(self.question, seed: seed) : nil
        let text = question?.prompt ?? prompt ?? ""
        let bytes = ByteTokenizer()
        let tokens = bytes.encode(text)
        let pool = pool
        var session = try DiffusionSession(
            load(), capacity: max(1, tokens.count + max(0, length)), cacheFormat: cacheFormat)
        let decoder = try FastDLLMDecoder(decoding)
        var picture = BlockPicture(
            tokens + Array(repeating: session.maskToken, count: max(0, length)), maskToken: session.maskToken)
        let progress = json ? nil : ProgressLine.onTerminal(total: max(0, length))
        let clock = ContinuousClock()
        let start = clock.now
        let result = try decoder.generate(tokens, length: length, with: &session, on: pool) { step in
            if json { return }
            let block = picture.draw(step)
            if steps {
                printNow("\(step.forward + 1)\t+\(step.commits.count)\t\(block)")
            } else {
                for _ in step.commits { progress?.finishCase() }
                progress?.begin(block)
            }
        }
        let seconds = (clock.now - start) / .seconds(1)
        progress?.clear()
        let report = DiffusionReport(
            prompt: text, question: question, result, decoding, rule: rule.description, seconds: seconds,
            stages: session.seconds
        ) { bytes.text($0) }
        if json {
            FileHandle.standardOutput.write(try RowFile<DiffusionRow>.encode(report))
            return
        }
        FileHandle.standardOutput.write(Data(text.utf8) + Data(bytes.decode(result.tokens)))
        printNow("")
        printError("\n" + report.summary)
    }
}
