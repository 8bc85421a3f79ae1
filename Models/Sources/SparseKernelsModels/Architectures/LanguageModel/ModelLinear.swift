internal import QServe
internal import SVDQuant
internal import SparseKernels
internal import SparseKernelsReference

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
    ///   - rank: of a low-rank branch that is made for 4-bit weights of a file of floats; nil means none.
    /// - Throws: `.notFound`, `.invalidElementType` and `.invalidShape` naming the tensor, `.invalidArgument` for a format that
    ///   the file cannot have, `.malformedFile` for a damaged layer.
    init(
        _ layers: [Layer], inFeatures: Int, hasBias: Bool, in files: ModelFiles, format: LinearFormat, rank: Int? = nil,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        self.inFeatures = inFeatures
        outFeatures = layers.reduce(0) { $0 + $1.outFeatures }
        if let rank, files.isQuantized || !format.isQuantized || rank < 0 {
            throw SparseKernelsError(
                .invalidArgument, "rank", expected: "none, or 0 or more for w4a16, w4a8 and w4a4 of weights of 16 or 32 bits",
                actual:
                    "\(rank) for \(format.rawValue) of \(files.name)\(files.isQuantized ? ", whose weights have 4 bits" : "")")
        }
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
        if let rank {
            parts = [
                .quantized(try Self.lowRank(files.stacked(weights), bias: bias, format: format, rank: rank, on: pool))
            ]
            return
        }
        switch format {
        case .float32, .float16, .bfloat16:
            parts = [.float(try Self.float(weights, bias: bias, in: files, format: format, on: pool))]
        case .fp8:
            var codes: [Float8Tensor<E4M3>] = []
            for weight in weights { codes.append(try Float8Tensor(files.stacked([weight], as: Float.self), on: pool)) }
            parts = [.float(try FloatLinear(weights: codes, bias: bias, on: pool))]
        case .w4a16:
            let packed = try PackedWeight(WeightQuantizer(.svdQuantInt4)(files.stacked(weights), on: pool))
            parts = [.quantized(try QuantizedLinear(packed, activation: .float, bias: bias))]
        case .w4a8:
            let packed = try PackedWeight(ProgressiveQuantizer()(files.stacked(weights), on: pool))
            parts = [.quantized(try QuantizedLinear(packed, activation: .int8PerToken, bias: bias))]
        case .w4a4:
            throw SparseKernelsError(
                .invalidArgument, "linear", expected: "another format for \(files.name), whose weights have 16 bits",
                actual: "w4a4, for which a model must be quantised with a calibration first, or a rank be given")
        }
    }

    /// A quantised layer beside a low-rank branch, made from the weight alone.
    ///
    /// Without inputs of the layer no direction is more important than another. White noise in their place makes the error of the
    /// output that of the weight.
    private static func lowRank(
        _ weight: Tensor<Float>, bias: Tensor<Float>?, format: LinearFormat, rank: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> QuantizedLinear {
        var configuration = LowRankQuantizer.Configuration()
        configuration.rank = rank
        configuration.activation = format == .w4a4 ? .int4 : format == .w4a8 ? .int8PerGroup : .float
        // Offsets per group halve what rounding loses. Products of two nibbles have none, as in SVDQuant's files.
        if format != .w4a4 { configuration.weightFormat = try WeightFormat(.uint4, groupSize: 64) }
        configuration.smoothing = .none
        let result = try LowRankQuantizer(configuration)(
            weight: weight, bias: bias, calibration: .normal([configuration.sampleTokens, weight.shape[1]], seed: 1), on: pool)
        return try QuantizedLinear(
            PackedWeight(result.weight), activation: configuration.activation, lowRank: result.lowRank, bias: result.bias)
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
        if format.isQuantized || format == .fp8 {
            format = try files.file(with: weight)[weight]?.elementType == .bfloat16 ? .bfloat16 : .float16
        }
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
        if let adapter = files.adapter, let factors = adapter[layer.name] {
            quantized = try quantized.adding([(factors, adapter.strength)])
        }
        switch format {
        case .w4a4: break
        case .w4a8: quantized = try quantized.with(activation: .int8PerGroup, on: pool)
        case .w4a16: quantized = try quantized.with(activation: .float, on: pool)
        case .float32, .float16, .bfloat16, .fp8:
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
