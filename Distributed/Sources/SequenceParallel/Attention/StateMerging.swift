internal import Foundation

/// Adds the state over more keys to a state, as ``AttentionState/merge(_:)`` does: rows of one slice, in place.
///
/// Outputs are `[rows, heads, channels]`, and LSE are `[heads, rows]`. Weights are computed in `Double`. A row of either side
/// without keys, whose LSE is −∞, contributes nothing.
struct StateMerging: @unchecked Sendable {
    let output: UnsafeMutablePointer<Float>
    let logSumExp: UnsafeMutablePointer<Float>
    let otherOutput: UnsafePointer<Float>
    let otherLogSumExp: UnsafePointer<Float>
    let rows: Int
    let heads: Int
    let channels: Int

    func run(on pool: WorkerPool) {
        let merging = self
        // Two exponentials and a logarithm take as long as some hundred products.
        pool.forEachRange(of: rows, workPerItem: heads * (channels * 3 + 200)) { range in
            for row in range {
                for head in 0..<merging.heads { merging.merge(row: row, head: head) }
            }
        }
    }

    private func merge(row: Int, head: Int) {
        let place = head * rows + row
        let (sums, others) = (output + (row * heads + head) * channels, otherOutput + (row * heads + head) * channels)
        let (a, b) = (Double(logSumExp[place]), Double(otherLogSumExp[place]))
        if b == -.infinity { return }
        if a == -.infinity {
            logSumExp[place] = otherLogSumExp[place]
            sums.update(from: others, count: channels)
            return
        }
        let largest = max(a, b)
        let (weight, otherWeight) = (exp(a - largest), exp(b - largest))
        let total = weight + otherWeight
        logSumExp[place] = Float(largest + log(total))
        let (factor, otherFactor) = (Float(weight / total), Float(otherWeight / total))
        for channel in 0..<channels { sums[channel] = factor * sums[channel] + otherFactor * others[channel] }
    }
}
