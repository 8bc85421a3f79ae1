internal import QServe
internal import SVDQuant
internal import SparseKernels

/// The arithmetic of the linear layers in the blocks: query, key and value together, output, and both of the MLP. Embeddings,
/// the MLP of the time and the last layer are in single precision.
public enum VideoLinearFormat: String, Hashable, Sendable, CaseIterable {
    /// Activations in single precision. A file of 16-bit weights then has its own weights, one that was quantised its 4-bit ones.
    case float
    /// Weights of 4 bits, activations of 8: QServe's progressive codes in groups of 128 of a file of 16-bit weights, and the
    /// codes and low-rank branch of a file that was quantised.
    case w4a8
    /// Weights and activations of 4 bits beside a low-rank branch, as SVDQuant has them. Only files that were quantised with a
    /// calibration have this form.
    case w4a4
}

/// A linear layer of a block.
enum VideoLinear: Sendable {
    /// x·Wᵀ, without the bias, which the next pass adds.
    case float(weight: Tensor<Float>, bias: [Float])
    /// Everything, with GELU too where the layer was made so.
    case quantized(QuantizedLinear)

    /// Reads a layer.
    ///
    /// - Parameters:
    ///   - name: such as "blocks.0.qkv".
    ///   - shape: [outFeatures, inFeatures].
    ///   - appliesGELU: whether the layer is to apply GELU if it can.
    /// - Throws: `.notFound` and `.invalidShape` naming the tensor, `.invalidArgument` for a format that the file cannot have,
    ///   `.malformedFile` for a damaged layer.
    init(
        _ name: String, shape: [Int], in file: SafetensorsFile, format: VideoLinearFormat, appliesGELU: Bool,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        if Self.isQuantized(file) {
            var layer = try SVDQuantLinear(file: file, prefix: name)
            guard [layer.outFeatures, layer.inFeatures] == shape else {
                throw SparseKernelsError(
                    .invalidShape, "\(file.name), layer \"\(name)\"", expected: "\(shape)",
                    actual: "[\(layer.outFeatures), \(layer.inFeatures)]")
            }
            switch format {
            case .float: layer = try layer.with(activation: .float, on: pool)
            case .w4a8: layer = try layer.with(activation: .int8PerGroup, on: pool)
            case .w4a4: break
            }
            self = .quantized(try (appliesGELU ? layer.with(epilogue: .gelu) : layer).linear)
            return
        }
        let weight = try file.checkedTensor(name + ".weight", shape)
        let bias = try file.checkedTensor(name + ".bias", [shape[0]])
        switch format {
        case .float: self = .float(weight: weight, bias: bias.elements)
        case .w4a8:
            let packed = try PackedWeight(ProgressiveQuantizer()(weight, on: pool))
            self = .quantized(
                try QuantizedLinear(packed, activation: .int8PerToken, bias: bias, epilogue: appliesGELU ? .gelu : .none))
        case .w4a4:
            throw SparseKernelsError(
                .invalidArgument, "linear layers", expected: "float or w4a8 for \(file.name), whose weights have 16 bits",
                actual: "w4a4, for which a model must be quantised first")
        }
    }

    /// Whether `sparsekernels quantize` made the file.
    static func isQuantized(_ file: SafetensorsFile) -> Bool { file.metadata["format"] == "sparsekernels.svdquant" }

    /// The bias that the next pass must add; nil when `run` has done so.
    var pendingBias: [Float]? {
        if case .float(_, let bias) = self { bias } else { nil }
    }

    /// Bytes of weights and what goes with them.
    var byteCount: Int {
        switch self {
        case .float(let weight, let bias): (weight.count + bias.count) * 4
        case .quantized(let layer): layer.byteCount
        }
    }

    /// y = x·Wᵀ, with bias and GELU if the layer applies them. `y` is `[rows of x, outFeatures]`.
    func run(_ x: Tensor<Float>, into y: inout Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError) {
        switch self {
        case .float(let weight, _):
            try GEMM(m: x.shape[0], n: weight.shape[0], k: x.shape[1], transposesB: true).run(
                a: x, b: weight, into: &y, on: pool)
        case .quantized(let layer): try layer.run(x, into: &y, on: pool)
        }
    }
}

extension SafetensorsFile {
    /// A floating-point tensor of the shape that the configuration gives it.
    /// - Throws: `.notFound`, `.invalidElementType`, and `.invalidShape` naming file and tensor.
    func checkedTensor(_ tensor: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
        let actual = try entry(named: tensor).shape
        guard actual == shape else {
            throw SparseKernelsError(
                .invalidShape, "\(name), tensor \"\(tensor)\"", expected: "\(shape), as the configuration says",
                actual: "\(actual)")
        }
        return try floatTensor(tensor)
    }
}
