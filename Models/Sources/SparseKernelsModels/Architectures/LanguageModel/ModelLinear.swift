internal import QServe
internal import SVDQuant
internal import SparseKernels

/// One or more linear layers over the same input, whose outputs lie side by side: query, key and value; gate and up.
struct ModelLinear: Sendable {
    private enum Part: Sendable {
        case float(FloatLinear)
        case quantized(QuantizedLinear)
        case group(QuantizedLinearGroup)

        var outFeatures: Int {
            switch self {
            case .float(let layer): layer.outFeatures
            case .quantized(let layer): layer.outFeatures
            case .group(let layers): layers.outFeatures
            }
        }
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
            var quantized: [QuantizedLinear] = []
            for layer in layers {
                quantized.append(try Self.quantizedLayer(layer, inFeatures: inFeatures, in: files, format: format, on: pool))
            }
            parts = Self.grouped(quantized)
            return
        }
        let weights = layers.map { ($0.name + ".weight", [$0.outFeatures, inFeatures]) }
        let bias: Tensor<Float>? = hasBias ? try files.stacked(layers.map { ($0.name + ".bias", [$0.outFeatures]) }) : nil
        switch format {
        case .float32, .float16, .bfloat16:
            parts = [.float(try Self.float(weights, bias: bias, in: files, format: format, on: pool))]
        case .w4a16:
            let packed = try PackedWeight(WeightQuantizer(.svdQuantInt4)(files.stacked(weights), on: pool))
            parts = [.quantized(try QuantizedLinear(packed, activation: .float, bias: bias))]
        case .w4a8:
            let packed = try PackedWeight(ProgressiveQuantizer()(files.stacked(weights), on: pool))
            parts = [.quantized(try QuantizedLinear(packed, activation: .int8PerToken, bias: bias))]
        case .w4a4:
            throw SparseKernelsError(
                .invalidArgument, "linear", expected: "another format for \(files.name), whose weights have 16 bits",
                actual: "w4a4, for which a model must be quantised with a calibration first")
        }
    }

    /// One product for all layers where they quantise their input alike, which smoothing factors of their own prevent.
    private static func grouped(_ layers: [QuantizedLinear]) -> [Part] {
        if layers.count > 1, let group = try? QuantizedLinearGroup(layers) { return [.group(group)] }
        return layers.map { .quantized($0) }
    }

    /// Weights in floating point, kept in the type of the format.
    private static func float(
        _ weights: [(String, [Int])], bias: Tensor<Float>?, in files: ModelFiles, format: LinearFormat, on pool: WorkerPool
    ) throws(SparseKernelsError) -> FloatLinear {
        switch format {
        case .float32: try FloatLinear(weight: files.stacked(weights, as: Float.self), bias: bias, on: pool)
        case .bfloat16: try FloatLinear(weight: files.stacked(weights, as: BFloat16.self), bias: bias, on: pool)
        default: try FloatLinear(weight: files.stacked(weights, as: Float16.self), bias: bias, on: pool)
        }
    }

    /// Reads a weight that stays in floating point: the output projection. It has 32 bits if the format has, and otherwise the
    /// 16 bits of the format or of the file.
    init(
        weight: String, shape: [Int], in files: ModelFiles, format: LinearFormat, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        var format = format
        if format.isQuantized { format = try files.file(with: weight)[weight]?.elementType == .bfloat16 ? .bfloat16 : .float16 }
        parts = [.float(try Self.float([(weight, shape)], bias: nil, in: files, format: format, on: pool))]
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
            case .group(let layers): sum + layers.byteCount
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
            let count = part.outFeatures
            var elements = y.mutableSpan
            let output = try MutableMatrixView(
                elements._mutatingExtracting(column...), rows: rows, columns: count, rowStride: outFeatures, named: "y")
            switch part {
            case .float(let layer): try layer.run(x: input, y: output, on: pool)
            case .quantized(let layer): try layer.run(x: input, y: output, on: pool)
            case .group(let layers): try layers.run(x: input, y: output, on: pool)
            }
            column += count
        }
    }
}
