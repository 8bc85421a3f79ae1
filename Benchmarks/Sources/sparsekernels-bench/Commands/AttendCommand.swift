import ArgumentParser
import BenchmarkReport
import Foundation
import SparseKernels
import Terminal

struct AttendCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "attend",
        abstract: "Runs an estimator and sparse attention on captured Q, K and V: density, recall, errors and times.",
        discussion: """
            The capture is a safetensors file with tensors query, key and value, [heads, tokens, headDim], in F32, F16 or BF16. Its \
            metadata may hold softmaxScale and causal ("true" or "false").

            Recall is the part of the softmax mass that is kept, on average over the query rows. The oracle density is the least one at \
            which the best blocks of a head, of 128 × 128 tokens, have the same recall. The output error is ‖output − dense output‖ / ‖dense output‖.
            """)

    @OptionGroup var machine: MachineOptions

    @Option(help: "The capture.")
    var capture: String?

    @Option(help: "Instead of a capture: so many tokens of structured synthetic operands, one causal head.")
    var structured: Int?

    @Option(help: "With --structured: channels of the head.")
    var headDim = 128

    @Option(help: "How keys are chosen: \(MaskMethod.allCases.map(\.rawValue).joined(separator: ", ")).")
    var mask: MaskMethod = .dense

    @OptionGroup var options: MaskOptions

    @Flag(inversion: .prefixedNo, help: "Hide keys after the query. Default: what the capture says.")
    var causal: Bool?

    @Flag(help: "Print the mask of one head.")
    var picture = false

    @Option(help: "Write the mask of one head to this SVG file.")
    var maskSVG: String?

    @Option(help: "The head of the pictures.")
    var head = 0

    func run() throws {
        let (sets, pools) = (try machine.instructionSets(), try machine.pools())
        let progress = ProgressLine(total: sets.count * pools.count)
        let problem = try problem(set: sets[0], pool: pools.last!, announce: progress.begin)
        let (shape, grid) = (problem.shape, problem.grid)
        progress.clear()
        print(
            "\(problem.name): \(shape.queryHeads) query heads, \(shape.kvHeads) KV heads, \(shape.queryLength) × \(shape.keyLength) "
                + "tokens, headDim \(shape.headDim), \(grid.isCausal ? "causal" : "full")")
        var exact: AttentionState?
        for set in sets {
            let attend = Attend(problem: problem, method: mask, options: options, set: set, progress: progress)
            for pool in pools {
                progress.begin("\(mask.rawValue), \(set), \(pool.threads) threads")
                let dense =
                    try exact
                    ?? problem.densePlan(set)(
                        query: problem.query, key: problem.key, value: problem.value, on: pool)
                exact = dense
                let result = try attend.run(dense, on: pool)
                progress.finishCase()
                progress.clear()
                result.lines.forEach { print($0) }
                if !result.verification.passed { throw ExitCode.failure }
                if set == sets[sets.count - 1] && pool === pools.last! { try draw(result.estimate, grid: grid) }
            }
        }
    }

    private func problem(set: InstructionSet, pool: WorkerPool, announce: (String) -> Void) throws -> PrefillProblem {
        let problem: PrefillProblem
        switch (capture, structured) {
        case (let path?, nil):
            problem = try PrefillProblem(
                Capture(path: path), isCausal: causal, set: set, pool: pool, announce: announce)
        case (nil, let tokens?):
            announce("making the operands")
            let input = try StructuredInput(tokens: tokens, headDim: headDim, seed: 1)
            problem = try PrefillProblem(input, set: set, pool: pool, announce: announce)
        default:
            throw ValidationError("give either --capture or --structured")
        }
        guard (0..<problem.shape.queryHeads).contains(head) else {
            throw ValidationError("--head takes 0...\(problem.shape.queryHeads - 1), got \(head)")
        }
        return problem
    }

    private func draw(_ estimate: Estimate, grid: BlockGrid) throws {
        if !picture && maskSVG == nil { return }
        let (mask, maskHead) = try estimate.pattern(ofHead: head).mask(over: grid)
        if picture { print("\nHead \(head): " + mask.description(head: maskHead)) }
        if let maskSVG { try mask.svg(head: maskHead).write(toFile: maskSVG, atomically: true, encoding: .utf8) }
    }
}

/// One estimator on one instruction set, which is run, checked and timed.
struct Attend {
    let problem: PrefillProblem
    let method: MaskMethod
    let options: MaskOptions
    let set: InstructionSet
    let progress: ProgressLine

    struct Result {
        var lines: [String]
        var estimate: Estimate
        var verification: Verification
    }

    func run(_ dense: AttentionState, on pool: WorkerPool) throws -> Result {
        let estimate = try method.estimate(problem, options, set, pool, StageClock())
        let state = try estimate.plan(query: problem.query, key: problem.key, value: problem.value, on: pool)
        let quality = try AttentionQuality(dense: dense, sparse: state, masses: problem.masses) { head in
            try estimate.density(ofHead: head, problem)
        }
        let offset = problem.grid.queryOffset
        let checker = AttentionChecker(
            reference: problem.reference, query: problem.query, key: problem.key, value: problem.value
        ) { head, token, key in
            !estimate.pattern(ofHead: head).keeps(query: token, position: token + offset, key: key)
        }
        let verification = try checker.check(state.output)
        let clock = try time(pool)

        var lines = ["\n\(method.rawValue), \(set), \(pool.threads) thread\(pool.threads == 1 ? "" : "s")"]
        let table = TextTable(["head", "density %", "oracle %", "recall %", "output error %"].map { .init($0) })
        lines.append(table.header[0])
        for (name, head) in zip(quality.heads.indices.map(String.init) + ["all"], quality.heads + [quality.all]) {
            let cells = [head.density, head.oracleDensity, head.recall, head.outputError].map { Format.percent($0) }
            lines.append(table.line([name] + cells))
        }
        let total = clock.medians.filter { $0.name != StageClock.dense }.map(\.seconds).reduce(0, +)
        let denseSeconds = clock.medians.first { $0.name == StageClock.dense }!.seconds
        let stages = clock.medians.map { "\($0.name) \(Format.number($0.seconds * 1e3)) ms" }
        lines.append(stages.joined(separator: ", "))
        let rate =
            Double(estimate.plan.visiblePairs) * problem.flopPerPair / clock.medians.first { $0.name == "attend" }!.seconds
        lines.append(
            "in all \(Format.number(total * 1e3)) ms, \(Format.number(denseSeconds / total))× dense; "
                + "attention at \(Format.number(rate / 1e9)) GFLOP/s")
        lines.append(
            "rows of the oracle: error \(Format.scientific(verification.error)), bound \(Format.scientific(verification.bound)), "
                + (verification.passed ? "ok" : "FAILED"))
        return Result(lines: lines, estimate: estimate, verification: verification)
    }

    /// Times the estimate, sparse and dense attention in turn, for at least three rounds and half a second.
    private func time(_ pool: WorkerPool) throws -> StageClock {
        let plan = try problem.densePlan(set)
        let clock = StageClock()
        let start = ContinuousClock.now
        repeat {
            clock.nextRound()
            let estimate = try method.estimate(problem, options, set, pool, clock)
            clock.time("attend") { problem.attend(estimate.plan, on: pool) }
            clock.time(StageClock.dense) { problem.attend(plan, on: pool) }
            progress.tick()
        } while clock.rounds < 3 || ContinuousClock.now - start < .milliseconds(500)
        return clock
    }
}

/// The times of the stages of a computation, by round.
final class StageClock {
    static let dense = "dense"

    private(set) var rounds = 0
    private var stages: [(name: String, seconds: [Double])] = []

    func nextRound() { rounds += 1 }

    func time<Value>(_ name: String, _ body: () throws -> Value) rethrows -> Value {
        let clock = ContinuousClock()
        let start = clock.now
        let value = try body()
        let seconds = (clock.now - start) / .seconds(1)
        if let index = stages.firstIndex(where: { $0.name == name }) {
            stages[index].seconds.append(seconds)
        } else {
            stages.append((name, [seconds]))
        }
        return value
    }

    /// The medians in the order of the stages.
    var medians: [(name: String, seconds: Double)] { stages.map { ($0.name, Summary($0.seconds).median) } }
}
