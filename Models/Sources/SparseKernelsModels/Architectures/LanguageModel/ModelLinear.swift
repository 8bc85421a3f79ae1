internal import QServe
internal import SVDQuant
internal import SparseKernels

/// One or more linear layers over the same input, whose outputs lie side by side: query, key and value; gate and up.
struct ModelLinear: Sendable {
    private enum Part: Sendable {
        case float(FloatLinear)
        case quantized(QuantizedLinear)
    }

    private let parts: [Part]
    let outFeatures: Int
    let inFeatures: Int

    /// A layer by name and its output features.
    struct Layer {
        let name: String
        let outFeatures: Int
    }

    /// Reads layers.
    ///
    /// - Parameters:
    ///   - layers: such as `model.layers.0.self_attn.q_proj`.
    ///   - hasBias: whether the layers have biases.
    /// - Throws: `.notFound`, `.invalidElementType` and `.invalidShape` naming the tensor, `.invalidArgument` for a format that
    ///   the file cannot have, `.malformedFile` for a damaged layer.
    init(
        _ layers: [Layer], inFeatures: Int, hasBias: Bool, in files: ModelFiles, format: LinearFormat, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        self.inFeatures = inFeatures
        outFeatures = layers.reduce(0) { $0 + $1.outFeatures }
        if files.isQuantized {
            var parts: [Part] = []
            for layer in layers {
                parts.append(
                    .quantized(try Self.quantizedLayer(layer, inFeatures: inFeatures, in: files, format: format, on: pool)))
            }
            self.parts = parts
            return
        }
        let weight: Tensor<Float> = try files.stacked(layers.map { ($0.name + ".weight", [$0.outFeatures, inFeatures]) })
        let bias: Tensor<Float>? = hasBias ? try files.stacked(layers.map { ($0.name + ".bias", [$0.outFeatures]) }) : nil
        switch format {
        case .float32, .float16, .bfloat16:
            parts = [.float(FloatLinear(weight: weight, bias: bias))]
        case .w4a16:
            let packed = try PackedWeight(WeightQuantizer(.svdQuantInt4)(weight, on: pool))
            parts = [.quantized(try QuantizedLinear(packed, activation: .float, bias: bias))]
        case .w4a8:
            let packed = try PackedWeight(ProgressiveQuantizer()(weight, on: pool))
            parts = [.quantized(try QuantizedLinear(packed, activation: .int8PerToken, bias: bias))]
        case .w4a4:
            throw SparseKernelsError(
                .invalidArgument, "linear", expected: "another format for \(files.name), whose weights have 16 bits",
                actual: "w4a4, for which a model must be quantised with a calibration first")
        }
    }

    /// Reads a weight that stays in floating point: the output projection.
    init(
        weight: String, shape: [Int], in files: ModelFiles, format: LinearFormat
    ) throws(SparseKernelsError) {
        parts = [.float(FloatLinear(weight: try files.stacked([(weight, shape)]), bias: nil))]
        (outFeatures, inFeatures) = (shape[0], shape[1])
    }

    private static func quantizedLayer(
        _ layer: Layer, inFeatures: Int, in files: ModelFiles, format: LinearFormat, on pool: WorkerPool
    ) throws(SparseKernelsError) -> QuantizedLinear {
        let file = try files.file(withLayer: layer.name)
        var quantized = try SVDQuantLinear(file: file, prefix: layer.name)
        guard [quantized.outFeatures, quantized.inFeatures] == [layer.outFeatures, inFeatures] else {
            throw SparseKernelsError(
                .invalidShape, "\(file.name), layer \"\(layer.name)\"", expected: "[\(layer.outFeatures), \(inFeatures)]",
                actual: "[\(quantized.outFeatures), \(quantized.inFeatures)]")
        }
        switch format {
        case .w4a4: break
        case .w4a8: quantized = try quantized.with(activation: .int8PerGroup, on: pool)
        case .w4a16: quantized = try quantized.with(activation: .float, on: pool)
        case .float32, .float16, .bfloat16:
            throw SparseKernelsError(
                .invalidArgument, "linear", expected: "w4a16, w4a8 or w4a4 for \(file.name), whose weights have 4 bits",
                actual: format.rawValue)
        }
        return quantized.linear
    }

    /// Bytes of weights and what goes with them.
    var byteCount: Int {
        parts.reduce(0) { sum, part in
            switch part {
            case .float(let layer): sum + layer.byteCount
            case .quantized(let layer): sum + layer.byteCount
            }
        }
    }

    /// Computes the first `rows` rows of `x`, `[capacity, inFeatures]`, into the first rows of `y`, `[capacity, outFeatures]`.
    func run(
        _ x: Tensor<Float>, rows: Int, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        var column = 0
        for part in parts {
            let input = try MatrixView(x.span, rows: rows, columns: inFeatures, named: "x")
            var elements = y.mutableSpan
            switch part {
            case .float(let layer):
                try layer.run(
                    input,
                    into: MutableMatrixView(
                        elements._mutatingExtracting(column...), rows: rows, columns: layer.outFeatures, rowStride: outFeatures,
                        named: "y"),
                    on: pool)
                if let bias = layer.bias {
                    let bias = bias.span
                    var sums = y.mutableSpan
                    for row in 0..<rows {
                        for i in 0..<bias.count { sums[row * outFeatures + column + i] += bias[i] }
                    }
                }
                column += layer.outFeatures
            case .quantized(let layer):
                try layer.run(
                    x: input,
                    y: MutableMatrixView(
                        elements._mutatingExtracting(column...), rows: rows, columns: layer.outFeatures, rowStride: outFeatures,
                        named: "y"),
                    on: pool)
                column += layer.outFeatures
            }
        }
    }
}
