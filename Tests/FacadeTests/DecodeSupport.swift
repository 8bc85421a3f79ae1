import Foundation
import SparseKernels
import SparseKernelsReference
import Testing

// Helpers of the suites of decoding façades.

extension Tensor where Element: AttentionElement {
    /// Some tokens of every head, `[heads, tokens, channels]`.
    func tokens(_ range: Range<Int>) throws -> Tensor<Element> {
        let (length, channels) = (shape[1], shape[2])
        return try Tensor([shape[0], range.count, channels]) { index in
            let (row, channel) = (index / channels, index % channels)
            let token = range.lowerBound + row % range.count
            return self[flat: (row / range.count * length + token) * channels + channel]
        }
    }
}

/// Compares one row of a state with the oracle over some positions, with the bound derived from its data.
func expectRow(
    _ state: AttentionState, head: Int, token: Int, query: [Double], keys: [[Double]], values: [[Double]], positions: [Int],
    _ label: @autoclosure () -> String, sourceLocation: SourceLocation = #_sourceLocation
) {
    let row = ReferencePagedAttention().row(query: query, keys: keys, values: values, positions: positions)
    let bound = AttentionErrorBound(row, headDim: query.count)
    let index = head * state.output.shape[1] + token
    let lse = Double(state.logSumExp[flat: index])
    #expect(abs(lse - row.logSumExp) <= bound.logSumExp, "\(label()): LSE", sourceLocation: sourceLocation)
    let worst = row.output.enumerated().map { abs(Double(state.output[flat: index * row.output.count + $0]) - $1) }.max() ?? 0
    #expect(worst <= bound.output, "\(label()): output", sourceLocation: sourceLocation)
}

/// Recorded decoding steps.
enum RecordedSteps {
    /// `in.q`, `[heads, headDim]`, as queries of one token.
    static func query(_ file: SafetensorsFile) throws -> Tensor<Float16> {
        let query = try file.tensor("in.q", as: Float16.self)
        return try Tensor([query.shape[0], 1, query.shape[1]], query.elements)
    }
}
