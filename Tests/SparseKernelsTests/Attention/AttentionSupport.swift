import Foundation
import SparseKernels
import SparseKernelsReference
import Testing

// Shared by the suites: plans that run into memory of any element type, and comparisons with the oracle and of bits.

extension AttentionElement {
    /// Half the distance between neighbouring values, relative to the value: the relative error of rounding to the type.
    static var unitRoundoff: Double {
        switch elementType {
        case .float16: 0x1p-11
        case .bfloat16: 0x1p-8
        default: 0x1p-24
        }
    }

    /// Half the distance between neighbouring subnormal values: the smallest absolute rounding error.
    static var subnormalRoundoff: Double {
        switch elementType {
        case .float16: 0x1p-25
        case .bfloat16: 0x1p-134
        default: 0x1p-150
        }
    }
}

/// Runs attention into new memory of element type `O`.
func attend<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
    _ attention: some AttentionOperator, query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>,
    as outputType: O.Type = Float.self, on pool: WorkerPool = .shared
) throws -> (output: Tensor<O>, logSumExp: Tensor<Float>) {
    let shape = attention.shape
    var output = try Tensor<O>(zeros: [shape.queryHeads, shape.queryLength, shape.valueDim])
    var logSumExp = try Tensor<Float>(zeros: [shape.queryHeads, shape.queryLength])
    try attention.run(
        query: query.view(), key: key.view(), value: value.view(), output: output.mutableView(),
        logSumExp: logSumExp.mutableSpan, on: pool)
    return (output, logSumExp)
}

/// The oracle's rows, head by head.
func referenceRows<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
    _ reference: ReferenceAttention, query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, bias: Tensor<Float>? = nil,
    hides: (_ query: Int, _ key: Int) -> Bool = { _, _ in false }
) throws -> [ReferenceAttention.Row] {
    let shape = reference.shape
    var rows: [ReferenceAttention.Row] = []
    for head in 0..<shape.queryHeads {
        let kvHead = head / shape.queryHeadsPerKVHead
        let (queries, keys, values) = try (
            query.view().rows(head: head), key.view().rows(head: kvHead), value.view().rows(head: kvHead)
        )
        for token in 0..<shape.queryLength {
            let line = (bias.map { $0.shape[0] == 1 ? 0 : head } ?? 0) * shape.queryLength + token
            rows.append(
                reference.row(
                    head: head, token: token, query: queries[token], keys: keys, values: values,
                    bias: { j in bias.map { Double($0[flat: line * shape.keyLength + j]) } ?? 0 },
                    hides: { hides(token, $0) }))
        }
    }
    return rows
}

/// Compares every row with the oracle under the bound for its data, and reports the worst element.
///
/// Storing as `O` rounds the computed value o + δ once more: by |δo| + u_O·(|o| + |δo|), or half a subnormal step of `O`.
func expectMatches<O: AttentionElement>(
    _ output: Tensor<O>, _ logSumExp: Tensor<Float>, _ rows: [ReferenceAttention.Row], headDim: Int,
    logitsSoftCap: Float? = nil, _ label: String, sourceLocation: SourceLocation = #_sourceLocation
) {
    var worst = (excess: 0.0, text: "")
    var actual = output.elements.makeIterator()
    for (index, row) in rows.enumerated() {
        let bound = AttentionErrorBound(row, headDim: headDim, logitsSoftCap: logitsSoftCap)
        let lse = Double(logSumExp[flat: index])
        if row.logSumExp == -.infinity ? lse != -.infinity : !(abs(lse - row.logSumExp) <= bound.logSumExp) {
            worst = (.infinity, "LSE (\(row.head), \(row.token)) \(lse), expected \(row.logSumExp) ± \(bound.logSumExp)")
        }
        for (channel, expected) in row.output.enumerated() {
            let value = Double(actual.next()?.floatValue ?? .nan)
            // A row without keys is exactly zero in every type.
            let rounding =
                O.self == Float.self || row.logSumExp == -.infinity
                ? 0 : max(O.unitRoundoff * (abs(expected) + bound.output), O.subnormalRoundoff)
            let tolerance = bound.output + rounding
            let excess = abs(value - expected) - tolerance
            if !(excess <= worst.excess) {
                worst = (excess, "output (\(row.head), \(row.token), \(channel)) \(value), expected \(expected) ± \(tolerance)")
            }
        }
    }
    #expect(worst.text.isEmpty, "\(label): \(worst.text)", sourceLocation: sourceLocation)
}

/// The same, with the oracle computed from the operands.
func expectMatchesReference<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
    _ state: AttentionState, _ reference: ReferenceAttention, query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>,
    bias: Tensor<Float>? = nil, _ label: String, sourceLocation: SourceLocation = #_sourceLocation
) throws {
    let rows = try referenceRows(reference, query: query, key: key, value: value, bias: bias)
    expectMatches(
        state.output, state.logSumExp, rows, headDim: reference.shape.headDim,
        logitsSoftCap: reference.modifiers.logitsSoftCap, label, sourceLocation: sourceLocation)
}
