import BenchmarkReport
import Foundation
import SparseKernels

/// The last tokens of a capture as steps of decoding, with the exact attention of each and the mass of every key before it.
final class DecodeQualityProblem {
    let capture: Capture
    let key: Tensor<Float>
    let value: Tensor<Float>
    /// `[queryHeads, steps, headDim]`.
    let query: Tensor<Float>
    /// The masses, one row per query head and step, head by head.
    let masses: SelectionRecall
    let curve: MassCurve
    /// `[queryHeads, steps, valueDim]`, from the captured keys and values.
    private let exact: [Double]

    let steps: Int
    var context: Int { capture.shape.keyLength }

    init(_ capture: Capture, steps: Int) throws {
        (self.capture, self.steps) = (capture, steps)
        let (key, value) = (try capture.file.floatTensor("key"), try capture.file.floatTensor("value"))
        let all = try capture.file.floatTensor("query")
        let (shape, tokens) = (capture.shape, capture.shape.queryLength)
        let query = try Tensor<Float>([shape.queryHeads, steps, shape.headDim]) { flat in
            let (row, channel) = flat.quotientAndRemainder(dividingBy: shape.headDim)
            let (head, step) = row.quotientAndRemainder(dividingBy: steps)
            return all[flat: (head * tokens + tokens - steps + step) * shape.headDim + channel]
        }
        var masses: [[Double]] = []
        var exact: [Double] = []
        let scale = Double(capture.modifiers.softmaxScale ?? 1 / Float(shape.headDim).squareRoot())
        for head in 0..<shape.queryHeads {
            let kvHead = head / shape.queryHeadsPerKVHead
            for step in 0..<steps {
                let start = (head * steps + step) * shape.headDim
                let q = (0..<shape.headDim).map { Double(query[flat: start + $0]) * scale }
                let row = Self.attention(of: q, key, value, kvHead: kvHead, length: shape.keyLength - steps + step + 1)
                masses.append(row.masses)
                exact += row.output
            }
        }
        (self.query, self.key, self.value) = (query, key, value)
        self.masses = SelectionRecall(masses)
        self.exact = exact
        curve = self.masses.curve
    }

    /// Softmax weights and output of one query over the first `length` keys of a head, in double precision.
    private static func attention(
        of query: [Double], _ key: Tensor<Float>, _ value: Tensor<Float>, kvHead: Int, length: Int
    ) -> (masses: [Double], output: [Double]) {
        let (headDim, valueDim) = (key.shape[2], value.shape[2])
        let (keys, values) = (key.span, value.span)
        var weights = [Double](repeating: 0, count: length)
        for token in 0..<length {
            let row = (kvHead * key.shape[1] + token) * headDim
            for channel in 0..<headDim { weights[token] += query[channel] * Double(keys[row + channel]) }
        }
        let maximum = weights.max()!
        for token in 0..<length { weights[token] = exp(weights[token] - maximum) }
        let sum = weights.reduce(0, +)
        var output = [Double](repeating: 0, count: valueDim)
        for token in 0..<length {
            weights[token] /= sum
            let row = (kvHead * value.shape[1] + token) * valueDim
            for channel in 0..<valueDim { output[channel] += weights[token] * Double(values[row + channel]) }
        }
        return (weights, output)
    }

    /// Makes a cache with a sequence for every step.
    func cache(_ layout: CacheLayout, _ set: InstructionSet, on pool: WorkerPool) throws -> DecodeCache {
        try DecodeCache(layout, key: key, value: value, steps: steps, set, on: pool)
    }

    /// The mass that a selection keeps, on average over query heads and steps.
    func recall(of selection: KVSelection?) -> Double {
        guard let selection else { return 1 }
        let heads = query.shape[0]
        return masses.recall { row in
            let (head, step) = row.quotientAndRemainder(dividingBy: steps)
            return selection.tokens(
                sequence: step, head: head * selection.heads / heads, length: masses.masses[row].count)
        }
    }

    /// ‖output − exact output‖ / ‖exact output‖ over all query heads and steps.
    func outputError(of output: Tensor<Float>) -> Double {
        var (difference, norm) = (0.0, 0.0)
        for (index, expected) in exact.enumerated() {
            let deviation = Double(output[flat: index]) - expected
            difference += deviation * deviation
            norm += expected * expected
        }
        return (difference / norm).squareRoot()
    }
}
