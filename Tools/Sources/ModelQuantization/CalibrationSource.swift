public import SparseKernels
internal import SparseKernelsReference

/// The source of the inputs of the layers, on which smoothing factors are chosen and errors are measured.
public enum CalibrationSource: Sendable {
    /// A file with a floating-point tensor `[tokens, inFeatures]` for each layer, under the layer's name.
    case file(SafetensorsFile)
    /// Independent normal values, without outlier channels or other properties of the model, for trying things out.
    case gaussian(tokens: Int, seed: UInt64 = 0)

    /// A description for tables and metadata.
    public var summary: String {
        switch self {
        case .file(let file): file.metadata["source"] ?? "recorded activations"
        case .gaussian(let tokens, let seed):
            "SYNTHETIC: \(tokens) Gaussian tokens, seed \(seed); the errors hold for Gaussian input only, not for the model's activations"
        }
    }

    /// Checks that the source is complete, before other layers take hours.
    /// - Throws: `.notFound`, `.invalidShape` or `.invalidElementType` naming the tensor, `.invalidArgument` for no tokens.
    func check(_ layers: [ModelPlan.Layer]) throws(SparseKernelsError) {
        switch self {
        case .gaussian(let tokens, _):
            guard (1...1 << 20).contains(tokens) else {
                throw SparseKernelsError(.invalidArgument, "calibration tokens", expected: "1 to 2²⁰", actual: "\(tokens)")
            }
        case .file(let file):
            for layer in layers {
                let entry = try file.entry(named: layer.name)
                guard entry.shape.count == 2, entry.shape[0] >= 1, entry.shape[1] == layer.inFeatures else {
                    throw SparseKernelsError(
                        .invalidShape, "\(file.name), tensor \"\(printable(layer.name))\"",
                        expected: "[tokens, \(layer.inFeatures)], as the layer has input features",
                        actual: shapeText(entry.shape))
                }
                guard LayerSelection.isFloat(entry.elementType) else {
                    throw SparseKernelsError(
                        .invalidElementType, "\(file.name), tensor \"\(printable(layer.name))\"", expected: "F32, F16 or BF16",
                        actual: entry.elementType.rawValue)
                }
            }
        }
    }

    /// The input of a layer, `[tokens, inFeatures]`.
    func tokens(for layer: ModelPlan.Layer) throws(SparseKernelsError) -> Tensor<Float> {
        switch self {
        case .file(let file): try file.floatTensor(layer.name)
        case .gaussian(let tokens, let seed): try .normal([tokens, layer.inFeatures], seed: seed)
        }
    }

    func add(_ layer: ModelPlan.Layer, to digest: inout ContentDigest) throws(SparseKernelsError) {
        switch self {
        case .file(let file): try digest.add(layer.name, of: file)
        case .gaussian: digest.add(summary)
        }
    }
}
