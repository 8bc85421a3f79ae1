import ArgumentParser
import BenchmarkReport
import Foundation
import SparseKernels
import SparseKernelsReference

struct AttendCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "attend", abstract: "Runs attention on captured Q, K and V: density, recall, error and times.",
        discussion: """
            The capture is a safetensors file with tensors query, key and value, [heads, tokens, headDim], in F32, F16 or BF16. Its \
            metadata may hold softmaxScale and causal ("true" or "false").
            """)

    enum Method: String, ExpressibleByArgument, CaseIterable {
        case dense
    }

    @OptionGroup var machine: MachineOptions

    @Option(help: "The capture.")
    var capture: String

    @Option(help: "How keys are chosen: \(Method.allCases.map(\.rawValue).joined(separator: ", ")).")
    var mask: Method = .dense

    @Flag(inversion: .prefixedNo, help: "Hide keys after the query. Default: what the capture says.")
    var causal: Bool?

    func run() throws {
        let capture = try Capture(path: capture)
        let isCausal = causal ?? capture.isCausal
        let shape = capture.shape
        print(
            "\(capture.name): \(shape.queryHeads) query heads, \(shape.kvHeads) KV heads, \(shape.queryLength) × \(shape.keyLength) "
                + "tokens, headDim \(shape.headDim), \(isCausal ? "causal" : "full")")
        let query = try capture.file.floatTensor("query")
        let key = try capture.file.floatTensor("key")
        let value = try capture.file.floatTensor("value")
        let attentionMask: AttentionMask = isCausal ? .causal : .full
        let checker = AttentionChecker(
            reference: ReferenceAttention(shape, mask: attentionMask, scoring: capture.scoring), query: query, key: key,
            value: value)
        for set in try machine.instructionSets() {
            let plan = try DenseAttention(shape, mask: attentionMask, scoring: capture.scoring, instructionSet: set)
            let pairs = Double(plan.visiblePairs)
            for pool in try machine.pools() {
                let output = AttentionOutput(shape)
                output.compute(plan, query, key, value, on: pool)
                let check = try checker.check(output.tensor)
                let timing = Summary(
                    Sampler(warmUpRounds: 0, minimumRounds: 3, budget: .milliseconds(500)).sample {
                        output.compute(plan, query, key, value, on: pool)
                    })
                let rate = pairs * 2 * Double(shape.headDim + shape.valueDim) / timing.median / 1e9
                print(
                    String(
                        format: "%@, %d threads: density 100%% of %.1f M pairs, recall 1, error %.1e (bound %.1e)%@, "
                            + "median %.1f ms, %.1f GFLOP/s", set.name, pool.threads, pairs / 1e6, check.error, check.bound,
                        check.passed ? "" : " FAILED", timing.median * 1e3, rate))
                if !check.passed { throw ExitCode.failure }
            }
        }
    }
}
