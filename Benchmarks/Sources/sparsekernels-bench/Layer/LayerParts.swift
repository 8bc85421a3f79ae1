import Foundation
import QServe
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference

/// The kernels of the layer, each called on its own with operands of the same sizes: what their benchmarks promise for a pass.
///
/// The linear layers are called one after the other, so that each finds its weights where a pass finds them.
struct LayerParts {
    private let linears: [any LinearCall]
    private let pool: WorkerPool

    /// Seconds of the parts of a pass: all linear layers, and attention.
    struct Seconds {
        var linear = 0.0
        var attention = 0.0
    }

    init(_ format: LinearFormat, on pool: WorkerPool) throws {
        self.pool = pool
        linears = try LayerModel.linears.enumerated().map { index, layer in
            let weight = try LayerModel.random([layer.outFeatures, layer.inFeatures], seed: UInt64(100 + index))
            return try Self.call(format, weight, on: pool)
        }
    }

    /// The seconds of a step of one token behind `context` tokens: medians of `repetitions`.
    func step(context: Int, repetitions: Int) throws -> Seconds {
        let configuration = try KVCacheConfiguration(
            kvHeads: LayerModel.kvHeads, headDim: LayerModel.headDim, pageCapacity: context / 64 + 2)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        let rows = try Tensor<Float>.normal([LayerModel.kvHeads, context, LayerModel.headDim], seed: 7)
        try cache.append(key: rows, value: rows, to: sequence)
        let attention = try PagedAttention(queryHeads: LayerModel.queryHeads, configuration: configuration)
        let query = try Tensor<Float>.normal([LayerModel.queryHeads, 1, LayerModel.headDim], seed: 8)
        var output = try Tensor<Float>(zeros: query.shape)
        var logSumExp = try Tensor<Float>(zeros: [LayerModel.queryHeads, 1])
        return try medians(rows: 1, repetitions: repetitions) {
            try attention.run(
                query: query.view(), cache: cache, sequences: [sequence], queryLengths: [1], output: output.mutableView(),
                logSumExp: logSumExp.mutableSpan, on: pool)
        }
    }

    /// The seconds of a prompt of `tokens` tokens in passes of `chunk` tokens: medians of `repetitions`.
    func prompt(tokens: Int, chunk: Int, repetitions: Int) throws -> Seconds {
        var total = Seconds()
        for first in stride(from: 0, to: tokens, by: chunk) {
            let count = min(chunk, tokens - first)
            let shape = try AttentionShape(
                queryLength: count, keyLength: first + count, queryHeads: LayerModel.queryHeads, kvHeads: LayerModel.kvHeads,
                headDim: LayerModel.headDim)
            let attention = try DenseAttention(shape, mask: .causal)
            let query = try Tensor<Float>.normal([LayerModel.queryHeads, count, LayerModel.headDim], seed: 8)
            let seen = try Tensor<Float>.normal([LayerModel.kvHeads, first + count, LayerModel.headDim], seed: 7)
                .converted(to: Float16.self)
            var output = try Tensor<Float>(zeros: query.shape)
            let seconds = try medians(rows: count, repetitions: repetitions) {
                try attention.run(query: query, key: seen, value: seen, into: &output, on: pool)
            }
            total.linear += seconds.linear
            total.attention += seconds.attention
        }
        return total
    }

    private func medians(rows: Int, repetitions: Int, attend: () throws -> Void) throws -> Seconds {
        let inputs = try LayerModel.linears.map { try Tensor<Float>.normal([rows, $0.inFeatures], seed: 9) }
        var outputs = try LayerModel.linears.map { try Tensor<Float>(zeros: [rows, $0.outFeatures]) }
        var (linear, attention): ([Double], [Double]) = ([], [])
        let clock = ContinuousClock()
        // The first round is not counted: it allocates scratch.
        for round in 0...repetitions {
            let start = clock.now
            for (index, call) in linears.enumerated() { try call.run(inputs[index], into: &outputs[index], on: pool) }
            let middle = clock.now
            try attend()
            let end = clock.now
            if round == 0 { continue }
            linear.append((middle - start) / .seconds(1))
            attention.append((end - middle) / .seconds(1))
        }
        return Seconds(linear: linear.sorted()[linear.count / 2], attention: attention.sorted()[attention.count / 2])
    }

    /// The layer that a model of this format runs.
    private static func call(
        _ format: LinearFormat, _ weight: Tensor<Float16>, on pool: WorkerPool
    ) throws -> any LinearCall {
        switch format {
        case .float32: try FloatLinear(weight: weight.converted(to: Float.self), on: pool)
        case .float16: try FloatLinear(weight: weight, on: pool)
        case .bfloat16: try FloatLinear(weight: weight.converted(to: BFloat16.self), on: pool)
        case .fp8: try FloatLinear(weight: Float8Tensor<E4M3>(weight, on: pool), on: pool)
        case .w4a16:
            try QuantizedLinear(
                PackedWeight(WeightQuantizer(.svdQuantInt4)(weight.converted(to: Float.self), on: pool)), activation: .float)
        case .w4a8, .w4a4:
            try QuantizedLinear(
                PackedWeight(ProgressiveQuantizer()(weight.converted(to: Float.self), on: pool)), activation: .int8PerToken)
        }
    }
}

/// Any linear layer of floats.
private protocol LinearCall {
    func run(_ x: Tensor<Float>, into y: inout Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError)
}

extension FloatLinear: LinearCall {}
extension QuantizedLinear: LinearCall {}
