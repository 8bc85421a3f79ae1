import SparseKernelsReference
import SparseKernelsTraining
import Testing

@testable import SequenceParallel

/// Operands of a backward pass over all tokens, with the output and LSE of the oracle, which ranks get their rows of.
struct GradientScene: Sendable {
    let shape: AttentionShape
    let mask: AttentionMask
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>
    var outputGradient: Tensor<Float>
    let expected: ReferenceAttentionGradient.Result
    var state: AttentionState

    init(
        length: Int, heads: (Int, Int), channels: (Int, Int), mask: AttentionMask = .causal, seed: UInt64 = 1
    ) throws {
        let shape = try AttentionShape(
            queryLength: length, keyLength: length, queryHeads: heads.0, kvHeads: heads.1, headDim: channels.0,
            valueDim: channels.1)
        let query = try Tensor<Float>.normal([heads.0, length, channels.0], seed: seed)
        let key = try Tensor<Float>.normal([heads.1, length, channels.0], seed: seed + 1)
        let value = try Tensor<Float>.normal([heads.1, length, channels.1], seed: seed + 2)
        let outputGradient = try Tensor<Float>.normal([heads.0, length, channels.1], seed: seed + 3)
        let result = try ReferenceAttentionGradient(shape, mask: mask)(
            query: query.view(), key: key.view(), value: value.view(), outputGradient: outputGradient.view())
        (self.shape, self.mask, expected) = (shape, mask, result)
        (self.query, self.key, self.value, self.outputGradient) = (query, key, value, outputGradient)
        let (output, logs) = (result.output, result.logSumExp)
        let rounded = try AttentionState(
            output: Tensor([heads.0, length, channels.1]) { Float(output[$0]) },
            logSumExp: Tensor([heads.0, length]) { Float(logs[$0]) })
        state = rounded
    }

    /// The rows of some tokens of `[heads, tokens, channels]`.
    static func rows(_ tensor: Tensor<Float>, _ tokens: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
        let (heads, length) = (tensor.shape[0], tensor.shape[1])
        let channels = tensor.shape.count == 3 ? tensor.shape[2] : 1
        var elements: [Float] = []
        for head in 0..<heads {
            for token in tokens {
                for channel in 0..<channels { elements.append(tensor[flat: (head * length + token) * channels + channel]) }
            }
        }
        return try Tensor(tensor.shape.count == 3 ? [heads, tokens.count, channels] : [heads, tokens.count], elements)
    }

    /// The gradients of all tokens, put together from those of the ranks.
    func gradients(
        _ shards: TokenShards, ulysses: Int, overlaps: Bool = true, threads: Int = 1, calls: Int = 1,
        instructionSet: InstructionSet? = nil, delays: [Int] = []
    ) throws -> (gradients: SequenceParallelGradient.Gradients, sent: [(counted: Int, expected: Int)]) {
        let results = try LocalCommunicator.run(ranks: shards.ranks, timeLimit: 60) { (ranks) throws(SparseKernelsError) in
            let plan = try SequenceParallelGradient(
                shards, queryHeads: shape.queryHeads, kvHeads: shape.kvHeads, headDim: shape.headDim, valueDim: shape.valueDim,
                mask: mask, ulysses: ulysses, overlaps: overlaps, instructionSet: instructionSet, on: ranks)
            let tokens = shards.positions(of: ranks.rank)
            let (q, k, v) = (try Self.rows(query, tokens), try Self.rows(key, tokens), try Self.rows(value, tokens))
            let own = try AttentionState(
                output: Self.rows(state.output, tokens), logSumExp: Self.rows(state.logSumExp, tokens))
            let gradient = try Self.rows(outputGradient, tokens)
            let pool = threads == 1 ? WorkerPool.serial : WorkerPool(threads: threads)
            var result: SequenceParallelGradient.Gradients?
            for _ in 0..<calls {
                if !delays.isEmpty { GradientScene.delay(delays[ranks.rank % delays.count]) }
                result = try plan(query: q, key: k, value: v, state: own, outputGradient: gradient, on: pool)
            }
            return (result!, plan.traffic.sentBytes / calls, plan.expectedSentBytes)
        }
        func gather(_ path: KeyPath<SequenceParallelGradient.Gradients, Tensor<Float>>, _ heads: Int) throws -> Tensor<Float> {
            let channels = results[0].0[keyPath: path].shape[2]
            var elements = Array(repeating: Float(0), count: heads * shards.length * channels)
            for rank in 0..<shards.ranks {
                let (tokens, part) = (shards.positions(of: rank), results[rank].0[keyPath: path].elements)
                for head in 0..<heads {
                    for (row, token) in tokens.enumerated() {
                        for channel in 0..<channels {
                            elements[(head * shards.length + token) * channels + channel] =
                                part[(head * tokens.count + row) * channels + channel]
                        }
                    }
                }
            }
            return try Tensor([heads, shards.length, channels], elements)
        }
        let gradients = SequenceParallelGradient.Gradients(
            query: try gather(\.query, shape.queryHeads), key: try gather(\.key, shape.kvHeads),
            value: try gather(\.value, shape.kvHeads))
        return (gradients, results.map { ($0.1, $0.2) })
    }

    /// Milliseconds of other work.
    private static func delay(_ milliseconds: Int) {
        let end = ContinuousClock.now + .milliseconds(milliseconds)
        while ContinuousClock.now < end {}
    }

    /// Compares gradients with the oracle's under its bounds, and reports the worst element.
    func expect(
        _ actual: SequenceParallelGradient.Gradients, _ label: String, sourceLocation: SourceLocation = #_sourceLocation
    ) {
        for (name, tensor, gradient) in [
            ("query", actual.query, expected.query), ("key", actual.key, expected.key), ("value", actual.value, expected.value),
        ] {
            let elements = tensor.elements
            #expect(elements.count == gradient.values.count, sourceLocation: sourceLocation)
            var worst = (excess: 0.0, index: -1)
            for (index, element) in elements.enumerated() {
                let excess = abs(Double(element) - gradient.values[index]) - gradient.bounds[index]
                if !(excess <= worst.excess) { worst = (excess, index) }
            }
            if worst.index >= 0 {
                let (value, bound) = (gradient.values[worst.index], gradient.bounds[worst.index])
                Issue.record(
                    "\(label): gradient of the \(name), \(worst.index): \(elements[worst.index]), expected \(value) ± \(bound)",
                    sourceLocation: sourceLocation)
            }
        }
    }
}

extension SequenceParallelGradient.Gradients {
    /// The bits of all gradients.
    var bits: [UInt32] { [query, key, value].flatMap { $0.elements.map(\.bitPattern) } }
}
