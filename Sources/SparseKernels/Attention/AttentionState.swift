internal import Foundation

/// The result of attention over a set of keys: the output and the log-sum-exp (LSE) of the scores of each row.
///
/// States over disjoint sets of keys merge into the state over their union, exactly up to rounding and in any order. A long
/// sequence can thus be attended in parts, and a shared prefix once.
public struct AttentionState: Sendable, Equatable {
    /// `[heads, tokens, valueDim]`. Zero in rows without a visible key.
    public private(set) var output: Tensor<Float>
    /// `[heads, tokens]`, natural log. −∞ in rows without a visible key.
    public private(set) var logSumExp: Tensor<Float>

    /// The state over no keys: output 0, LSE −∞. Merging it changes nothing.
    /// - Throws: `.invalidShape` for a negative extent or a size that overflows.
    public init(heads: Int, tokens: Int, valueDim: Int) throws(SparseKernelsError) {
        output = try Tensor(zeros: [heads, tokens, valueDim])
        logSumExp = try Tensor([heads, tokens]) { _ in -.infinity }
    }

    /// Allocates a state, lets `compute` write it, and returns it with the result of `compute`.
    package static func computing<Other>(
        _ shape: AttentionShape,
        _ compute: (
            _ output: consuming MutableTensorView<Float>, _ logSumExp: consuming MutableSpan<Float>
        ) throws(SparseKernelsError) -> Other
    ) throws(SparseKernelsError) -> (state: AttentionState, other: Other) {
        var output = try Tensor<Float>(zeros: [shape.queryHeads, shape.queryLength, shape.valueDim])
        var logSumExp = try Tensor<Float>(zeros: [shape.queryHeads, shape.queryLength])
        let other = try compute(output.mutableView(named: "output"), logSumExp.mutableSpan)
        return (try AttentionState(output: output, logSumExp: logSumExp), other)
    }

    /// - Throws: `.invalidShape` unless the output is `[heads, tokens, valueDim]` and the LSE `[heads, tokens]`.
    public init(output: Tensor<Float>, logSumExp: Tensor<Float>) throws(SparseKernelsError) {
        try require(
            output.shape.count == 3, .invalidShape, "output", expected: "[heads, tokens, valueDim]",
            actual: "\(output.shape)")
        try require(
            logSumExp.shape == Array(output.shape.prefix(2)), .invalidShape, "logSumExp",
            expected: "\(output.shape.prefix(2)), as the output", actual: "\(logSumExp.shape)")
        self.output = output
        self.logSumExp = logSumExp
    }

    /// Adds the keys of `other`, which must be disjoint from the keys of this state.
    ///
    /// With m = max(a, b) of the two LSE values: w = e^(a−m), w' = e^(b−m), output ← (w·o + w'·o') / (w + w') and LSE ← m +
    /// ln(w + w'). Weights are computed in `Double`. A side without keys contributes nothing.
    ///
    /// - Throws: `.invalidShape` when the shapes differ; the state is unchanged then.
    /// - Source: Ye et al., "Recursive attention" (FlashInfer), which keeps base-2 LSE; ours is natural.
    public mutating func merge(_ other: AttentionState) throws(SparseKernelsError) {
        try require(
            output.shape == other.output.shape, .invalidShape, "other.output", expected: "\(output.shape)",
            actual: "\(other.output.shape)")
        Self.mergeRows(&output, &logSumExp, with: other)
    }

    private static func mergeRows(
        _ output: inout Tensor<Float>, _ logSumExp: inout Tensor<Float>, with other: AttentionState
    ) {
        let channels = output.shape[2]
        var sums = output.mutableSpan
        var logs = logSumExp.mutableSpan
        let otherSums = other.output.span
        let otherLogs = other.logSumExp.span
        for row in 0..<logs.count {
            let (a, b) = (Double(logs[row]), Double(otherLogs[row]))
            if b == -.infinity { continue }
            if a == -.infinity {
                logs[row] = otherLogs[row]
                for x in row * channels..<(row + 1) * channels { sums[x] = otherSums[x] }
                continue
            }
            let m = Swift.max(a, b)
            let (wa, wb) = (exp(a - m), exp(b - m))
            let total = wa + wb
            logs[row] = Float(m + log(total))
            let (fa, fb) = (Float(wa / total), Float(wb / total))
            for x in row * channels..<(row + 1) * channels { sums[x] = fa * sums[x] + fb * otherSums[x] }
        }
    }

    /// This state with the keys of `other` added. See ``merge(_:)``.
    public func merging(_ other: AttentionState) throws(SparseKernelsError) -> AttentionState {
        var state = self
        try state.merge(other)
        return state
    }
}
