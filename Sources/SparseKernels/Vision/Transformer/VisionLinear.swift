/// A linear layer of a vision layer in one of the formats.
enum VisionLinear: Sendable {
    case float(FloatLinear)
    case quantized(QuantizedLinear)

    /// - Parameters:
    ///   - name: of the argument, for messages.
    ///   - shape: what the weight must be, [outFeatures, inFeatures].
    init(
        _ weights: VisionLayerWeights.Affine, named name: String, shape: [Int], format: VisionLinearFormat,
        epilogue: Epilogue = .none, instructionSet: InstructionSet, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try require(
            weights.weight.shape == shape, .invalidShape, name + ".weight", expected: "\(shape)",
            actual: "\(weights.weight.shape)")
        if let bias = weights.bias {
            try require(
                bias.shape == [shape[0]], .invalidShape, name + ".bias", expected: "\([shape[0]])", actual: "\(bias.shape)")
            try bias.requireFinite(named: name + ".bias")
        }
        try weights.weight.requireFinite(named: name + ".weight")
        func layer<W: AttentionElement>(_ weight: Tensor<W>) throws(SparseKernelsError) -> VisionLinear {
            .float(
                try FloatLinear(
                    weight: weight, bias: weights.bias, epilogue: epilogue, instructionSet: instructionSet, on: pool))
        }
        switch format {
        case .float32: self = try layer(weights.weight)
        case .float16: self = try layer(weights.weight.converted(to: Float16.self))
        case .bfloat16: self = try layer(weights.weight.converted(to: BFloat16.self))
        case .w8a8:
            let codes = try WeightQuantizer(.int8PerChannel, scaleType: .float32)(weights.weight, on: pool)
            let packed = try PackedWeight(codes, instructionSet: instructionSet, on: pool)
            self = .quantized(
                try QuantizedLinear(packed, activation: .int8PerToken, bias: weights.bias, epilogue: epilogue))
        }
    }

    /// Bytes of weights and what goes with them.
    var byteCount: Int {
        switch self {
        case .float(let layer): layer.byteCount
        case .quantized(let layer): layer.byteCount
        }
    }

    /// Bytes of scratch that each thread of the pool needs.
    var scratchByteCount: Int {
        switch self {
        case .float(let layer): layer.scratchByteCount
        case .quantized(let layer): layer.scratchByteCount
        }
    }

    func run(
        _ x: MatrixView<Float>, into y: consuming MutableMatrixView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        switch self {
        case .float(let layer): try layer.run(x: x, y: y, on: pool)
        case .quantized(let layer): try layer.run(x: x, y: y, on: pool)
        }
    }
}
