import BenchmarkReport
import Foundation
import SparseKernels
import SparseKernelsReference

extension BlockAttentionCases {
    /// One pass over the logits of some rows, in cold caches, as after the output projection of a large model.
    func logits(rows: Int, vocabulary: Int, _ set: InstructionSet) -> CaseGroup {
        CaseGroup(
            op: "blocks.logits", name: "\(rows) × \(vocabulary) logits", amounts: .uncounted,
            labels: ["f32 top 1", "f16 top 1", "f32 top 40"]
        ) { announce in
            announce("making logits")
            let logits = try Tensor<Float>.normal([rows, vocabulary], seed: 4, scale: 3)
            let halves = logits.converted(to: Float16.self)
            let problem = BlockLogitProblem(set, pool)
            return [
                try problem.variant(0, "f32 top 1", logits, topK: 1), try problem.variant(1, "f16 top 1", halves, topK: 1),
                try problem.variant(2, "f32 top 40", logits, topK: 40),
            ]
        }
    }
}

/// Statistics of logits whose roof is the memory bandwidth, measured before each call.
private final class BlockLogitProblem {
    private let set: InstructionSet
    private let pool: WorkerPool
    private let caches: ColdCaches
    private var bandwidths: [Double] = []

    init(_ set: InstructionSet, _ pool: WorkerPool) {
        (self.set, self.pool) = (set, pool)
        caches = ColdCaches(set, pool)
    }

    /// - Parameter index: the position of the row in its group.
    func variant<Element: AttentionElement>(
        _ index: Int, _ label: String, _ logits: Tensor<Element>, topK: Int
    ) throws -> Variant {
        let statistics = try LogitStatistics(vocabulary: logits.shape[1], topK: topK, instructionSet: set)
        let output = BlockLogitOutput(try statistics.makeSummary(rows: logits.shape[0]))
        let pool = pool
        let body = { try! statistics.run(logits, into: &output.summary, on: pool) }
        var variant = Variant(
            isa: set.name, threads: pool.threads, body: body,
            verify: {
                body()
                return output.check(logits)
            },
            preparation: {
                self.caches.empty()
                self.bandwidths.append(self.caches.bytesPerSecond)
            }, label: label)
        let bytes = Double(logits.count * MemoryLayout<Element>.stride)
        variant.metrics[.bytesRead] = bytes
        variant.sampled[.roofFraction] = { samples in
            guard let time = samples.summary(of: "\(index)") else { return .nan }
            return bytes / time.median / Summary(self.bandwidths).median
        }
        return variant
    }
}

/// A reusable summary of logits.
private final class BlockLogitOutput {
    var summary: LogitSummary

    init(_ summary: LogitSummary) { self.summary = summary }

    /// Compares argmax and maximum with a loop, and ln Σ eˣ with a sum in `Double`.
    func check<Element: AttentionElement>(_ logits: Tensor<Element>) -> Verification {
        var verification = Verification.none
        let vocabulary = logits.shape[1]
        for row in 0..<logits.shape[0] {
            let line = logits.elements[row * vocabulary..<(row + 1) * vocabulary].map { Double($0.floatValue) }
            var (argmax, sum) = (0, 0.0)
            for index in 1..<vocabulary where line[index] > line[argmax] { argmax = index }
            for x in line { sum += exp(x - line[argmax]) }
            verification.add(error: summary.argmax(row) == argmax ? 0 : 1, bound: 0)
            verification.add(error: abs(Double(summary.maximum(row)) - line[argmax]), bound: 0)
            // The bound of `LogitStatistics`, with a mean distance of 20 from the maximum.
            verification.add(
                error: abs(Double(summary.logSumExp[row]) - line[argmax] - log(sum)), bound: 90 * 0x1p-24 + 0x1p-20 + 8e-7)
        }
        return verification
    }
}
