import SparseKernels
import SparseKernelsReference

/// Compares the attention of sampled heads with the `Double` oracle for the contents of the cache: dequantised keys and values.
final class DecodeChecker {
    /// One query head of one sequence: operands of one head for the oracle.
    private struct Sample {
        var sequence: Int
        var queryHead: Int
        var query: Tensor<Float>
        var key: Tensor<Float>
        var value: Tensor<Float>
    }

    /// The exact attention of a sample and its tolerance.
    private struct Expectation {
        var output: [Double]
        var bound: Double
    }

    private let scale: Float?
    private let queryHeads: Int
    private let samples: [Sample]
    private let codes: CodeErrorBound
    /// The expectations of the operator without a selection, which several variants share.
    private var dense: [Expectation]?

    /// Samples the first and the last head of the last sequence.
    init(_ cache: DecodeCache, query: Tensor<Float>, softmaxScale: Float? = nil) throws {
        scale = softmaxScale
        queryHeads = query.shape[0]
        let configuration = cache.cache.configuration
        codes = CodeErrorBound(
            keyFormat: configuration.keyFormat, valueFormat: configuration.valueFormat,
            scale: softmaxScale.map(Double.init) ?? 1 / Double(configuration.headDim).squareRoot())
        let sequence = cache.sequences.count - 1
        let perKVHead = query.shape[0] / configuration.kvHeads
        samples = try [0, query.shape[0] - 1].map { head in
            let (key, value) = try cache.head(head / perKVHead, of: cache.sequences[sequence])
            let start = (head * query.shape[1] + sequence) * query.shape[2]
            return Sample(
                sequence: sequence, queryHead: head, query: try Tensor([1, 1, query.shape[2]]) { query[flat: start + $0] },
                key: key, value: value)
        }
    }

    /// - Parameter output: `[queryHeads, sequences, valueDim]`.
    func check(_ output: Tensor<Float>, selection: KVSelection?) throws -> Verification {
        var verification = Verification.none
        for (sample, expected) in zip(samples, try expectations(selection)) {
            let start = (sample.queryHead * output.shape[1] + sample.sequence) * output.shape[2]
            for channel in expected.output.indices {
                verification.add(
                    error: abs(Double(output[flat: start + channel]) - expected.output[channel]), bound: expected.bound)
            }
        }
        return verification
    }

    private func expectations(_ selection: KVSelection?) throws -> [Expectation] {
        guard let selection else {
            let all = try dense ?? samples.map { try expectation($0, tokens: Array(0..<$0.key.shape[1])) }
            dense = all
            return all
        }
        return try samples.map { sample in
            let runs = selection.tokens(
                sequence: sample.sequence, head: sample.queryHead * selection.heads / queryHeads,
                length: sample.key.shape[1])
            return try expectation(sample, tokens: runs.flatMap(Array.init))
        }
    }

    private func expectation(_ sample: Sample, tokens: [Int]) throws -> Expectation {
        let shape = try AttentionShape(
            queryLength: 1, keyLength: sample.key.shape[1], queryHeads: 1, kvHeads: 1, headDim: sample.key.shape[2],
            valueDim: sample.value.shape[2])
        var isSeen = [Bool](repeating: false, count: shape.keyLength)
        for token in tokens { isSeen[token] = true }
        let row = try ReferenceAttention(shape, modifiers: ScoreModifiers(softmaxScale: scale)).row(
            head: 0, token: 0, query: sample.query.view(), key: sample.key.view(), value: sample.value.view(),
            hides: { !isSeen[$0] })
        let bound = AttentionErrorBound(row, headDim: shape.headDim).output
        let coded = codes.output(
            query: (0..<shape.headDim).map { Double(sample.query[flat: $0]) }, key: sample.key, value: sample.value,
            tokens: tokens, row: row)
        return Expectation(output: row.output, bound: bound + coded)
    }
}

extension DecodeCache {
    /// Keys and values of one head as attention reads them, `[1, length, channels]` each.
    fileprivate func head(_ head: Int, of sequence: PagedKVCache.SequenceID) throws -> (Tensor<Float>, Tensor<Float>) {
        let configuration = cache.configuration
        let length = try cache.length(of: sequence)
        var key = try Tensor<Float>(zeros: [1, length, configuration.headDim])
        var value = try Tensor<Float>(zeros: [1, length, configuration.valueDim])
        // Tokens are read in parts, because the cache returns all heads at once.
        for first in stride(from: 0, to: length, by: 8192) {
            let tokens = first..<min(length, first + 8192)
            key.copyRows(of: try cache.keys(of: sequence, tokens: tokens), head: head, to: first)
            value.copyRows(of: try cache.values(of: sequence, tokens: tokens), head: head, to: first)
        }
        return (key, value)
    }
}

extension Tensor<Float> {
    /// Copies the rows of one head of `[heads, tokens, channels]` to the rows from `first` on of the only head of this tensor.
    fileprivate mutating func copyRows(of other: Tensor<Float>, head: Int, to first: Int) {
        let (channels, count) = (shape[2], other.shape[1] * other.shape[2])
        var target = mutableSpan
        target.withUnsafeMutableBufferPointer { target in
            other.span.withUnsafeBufferPointer { source in
                (target.baseAddress! + first * channels).update(from: source.baseAddress! + head * count, count: count)
            }
        }
    }
}
