public import SparseKernels

/// The arithmetic of linear layers.
public enum NVILALinearFormat: Hashable, Sendable {
    /// Weights and activations in single precision.
    case float32
    /// Weights in half precision, widened in registers.
    case float16
    /// Weights in bfloat16, widened in registers.
    case bfloat16
    /// Weights of 8 bits with a scale per output channel, activations of 8 bits with a scale per token: the vision tower's format.
    case w8a8
    /// Weights of 4 bits with a scale and an offset per group of channels, activations in single precision: the language model's format.
    /// The group has 16, 32, 64 or 128 channels.
    case w4a16(groupSize: Int = 128)

    /// Bits per weight, without scales.
    public var weightBits: Int {
        switch self {
        case .float32: 32
        case .float16, .bfloat16: 16
        case .w8a8: 8
        case .w4a16: 4
        }
    }
}

/// A linear layer in one of the formats of NVILA: y = epilogue(x · Wᵀ + bias).
///
/// It quantises the weight when it is made, by rounding to nearest. Weights that were quantised with a calibration, such as AWQ's, are read
/// through `AWQLayout` and run in a `QuantizedLinear`.
///
/// - Exactness: that of ``FloatLinear`` or ``QuantizedLinear``.
/// - Scratch: of these.
/// - Source: NVILA (arXiv 2412.04468), section 2.4.
public struct NVILALinear: Sendable {
    public let format: NVILALinearFormat
    private let layer: Layer

    private enum Layer: Sendable {
        case float(FloatLinear)
        case quantized(QuantizedLinear)
    }

    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`.
    ///   - bias: `[outFeatures]`.
    ///   - epilogue: the function that is applied last.
    ///   - format: the arithmetic.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that quantise and reorder the weight.
    /// - Throws: `.invalidShape` and `.invalidArgument` naming "weight", "bias" or "groupSize", `.unsupportedInstructionSet`.
    public init(
        weight: Tensor<Float>, bias: Tensor<Float>? = nil, epilogue: Epilogue = .none, format: NVILALinearFormat = .float32,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        self.format = format
        func float<W: AttentionElement>(_ weight: Tensor<W>) throws(SparseKernelsError) -> Layer {
            .float(
                try FloatLinear(weight: weight, bias: bias, epilogue: epilogue, instructionSet: instructionSet, on: pool))
        }
        func quantized(_ format: WeightFormat, _ activation: ActivationFormat) throws(SparseKernelsError) -> Layer {
            let codes = try WeightQuantizer(format, scaleType: .float32)(weight, on: pool)
            let packed = try PackedWeight(codes, instructionSet: instructionSet, on: pool)
            return .quantized(try QuantizedLinear(packed, activation: activation, bias: bias, epilogue: epilogue))
        }
        switch format {
        case .float32: layer = try float(weight)
        case .float16: layer = try float(weight.converted(to: Float16.self))
        case .bfloat16: layer = try float(weight.converted(to: BFloat16.self))
        case .w8a8: layer = try quantized(.int8PerChannel, .int8PerToken)
        case .w4a16(let groupSize): layer = try quantized(WeightFormat(.uint4, groupSize: groupSize), .float)
        }
    }

    public var outFeatures: Int {
        switch layer {
        case .float(let layer): layer.outFeatures
        case .quantized(let layer): layer.weight.outFeatures
        }
    }

    public var inFeatures: Int {
        switch layer {
        case .float(let layer): layer.inFeatures
        case .quantized(let layer): layer.weight.inFeatures
        }
    }

    /// Bytes of weights and what goes with them.
    public var byteCount: Int {
        switch layer {
        case .float(let layer): layer.byteCount
        case .quantized(let layer): layer.byteCount
        }
    }

    /// Computes y for the rows of x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`.
    ///   - y: `[tokens, outFeatures]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the layer; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        switch layer {
        case .float(let layer): try layer.run(x: x, y: y, on: pool)
        case .quantized(let layer): try layer.run(x: x, y: y, on: pool)
        }
    }

    /// Computes y for the rows of x into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(x.matrixView(named: "x"), into: y.mutableMatrixView(named: "y"), on: pool)
    }
}
