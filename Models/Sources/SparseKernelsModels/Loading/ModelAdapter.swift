import Foundation
public import SVDQuant
public import SparseKernels

/// A LoRA adapter of a whole model, as PEFT saves it: a folder with `adapter_model.safetensors` and `adapter_config.json`, which have
/// a pair of factors for some linear layers of every block.
///
/// `LanguageModel(folder:adapter:)` adds it when weights are read: to weights in floating point by W + strength · scale · B · A, before
/// they are rounded or quantised, and to 4-bit weights of a file as a branch in higher precision.
public struct ModelAdapter: Sendable {
    /// The folder, for messages.
    public let name: String
    /// A factor on all of it; 1 is the adapter as it was trained.
    public let strength: Float
    private let adapters: [String: LoRAAdapter]

    /// Reads an adapter and checks that it belongs to a model.
    ///
    /// - Parameters:
    ///   - folder: with the two files of PEFT.
    ///   - model: the model's configuration.
    ///   - strength: a factor on all of it.
    /// - Throws: `.inputOutput` and `.malformedFile` for files that cannot be read or are damaged; `.notFound` for an adapter of a
    ///   layer that the model lacks, or without factors for a block that the model has; `.invalidShape` for factors of a
    ///   layer of another size; `.invalidArgument` for a strength that is not finite, or a hybrid model.
    public init(
        folder: String, for model: LanguageModelConfiguration, strength: Float = 1
    ) throws(SparseKernelsError) {
        guard strength.isFinite else {
            throw SparseKernelsError(.invalidArgument, "strength", expected: "finite", actual: "\(strength)")
        }
        guard model.pattern == nil else {
            throw SparseKernelsError(
                .invalidArgument, "adapter", expected: "for a model of blocks of attention and an MLP", actual: "a hybrid model"
            )
        }
        (name, self.strength) = (folder, strength)
        let settings = try ConfigurationFile(path: folder + "/adapter_config.json")
        let file = try SafetensorsFile(path: folder + "/adapter_model.safetensors")
        var adapters: [String: LoRAAdapter] = [:]
        var modules = Set<String>()
        for layer in LoRAAdapter.layers(in: file) {
            let bare = layer.hasPrefix(Self.prefix) ? String(layer.dropFirst(Self.prefix.count)) : layer
            guard let module = Self.module(of: bare, in: model), let shape = model.linearShapes[module] else {
                throw SparseKernelsError(
                    .notFound, "\(file.name), layer \"\(layer)\"",
                    expected: "a linear layer of the model, which has blocks 0 to \(model.layers - 1)",
                    actual: "an adapter of another model")
            }
            let adapter = try LoRAAdapter(file: file, layer: layer)
            guard [adapter.outFeatures, adapter.inFeatures] == shape else {
                throw SparseKernelsError(
                    .invalidShape, "\(file.name), layer \"\(layer)\"",
                    expected: "factors of the model's \(shape[0]) × \(shape[1]) weight",
                    actual: "\(adapter.outFeatures) × \(adapter.inFeatures), an adapter of another model")
            }
            guard adapter.bias == nil else {
                throw SparseKernelsError(
                    .malformedFile, "\(file.name), layer \"\(layer)\"", expected: "without a trained bias",
                    actual: "one with a bias")
            }
            adapters[bare] = adapter
            modules.insert(module)
        }
        guard !modules.isEmpty else {
            throw SparseKernelsError(
                .notFound, file.name, expected: "factors lora_A and lora_B of linear layers", actual: "none")
        }
        let blocks =
            settings.has("layers_to_transform")
            ? try settings.integers("layers_to_transform", in: 0...model.layers - 1) : Array(0..<model.layers)
        for block in blocks {
            for module in modules.sorted() where adapters["model.layers.\(block).\(module)"] == nil {
                throw SparseKernelsError(
                    .notFound, "\(file.name), layer \"\(Self.prefix)model.layers.\(block).\(module)\"",
                    expected: "there, as the model has \(model.layers) blocks", actual: "no factors of that name")
            }
        }
        self.adapters = adapters
    }

    /// The names of the layers that it changes, sorted.
    public var layers: [String] { adapters.keys.sorted() }

    /// The adapter of a layer, such as `model.layers.0.self_attn.q_proj`; nil for layers that it leaves alone.
    public subscript(layer: String) -> LoRAAdapter? { adapters[layer] }

    /// What PEFT puts in front of the names of a model.
    package static let prefix = "base_model.model."

    /// `self_attn.q_proj` for `model.layers.3.self_attn.q_proj`; nil for a name that no block of the model has.
    private static func module(of layer: String, in model: LanguageModelConfiguration) -> String? {
        let parts = layer.split(separator: ".", maxSplits: 3, omittingEmptySubsequences: false)
        guard parts.count == 4, parts[0] == "model", parts[1] == "layers", let block = Int(parts[2]),
            "\(block)" == parts[2], (0..<model.layers).contains(block)
        else { return nil }
        return String(parts[3])
    }

    /// The weight of a layer with its adapter added.
    /// - Parameter weight: `[outFeatures, inFeatures]`.
    func adding(_ adapter: LoRAAdapter, to weight: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
        let plan = try GEMM(m: adapter.outFeatures, n: adapter.inFeatures, k: adapter.rank)
        var sum = try Tensor<Float>(zeros: weight.shape)
        try plan.run(a: adapter.factors.up, b: adapter.factors.down, into: &sum)
        let (factor, base) = (strength * adapter.scale, weight.span)
        var elements = sum.mutableSpan
        for i in 0..<elements.count { elements[i] = base[i] + factor * elements[i] }
        return sum
    }
}

extension LanguageModelConfiguration {
    /// `[outFeatures, inFeatures]` of the linear layers of a block, by their names in it.
    package var linearShapes: [String: [Int]] {
        let (queries, keys) = (queryHeads * headDim, kvHeads * headDim)
        var shapes = [
            "self_attn.q_proj": [queries, hiddenSize], "self_attn.k_proj": [keys, hiddenSize],
            "self_attn.v_proj": [keys, hiddenSize], "self_attn.o_proj": [hiddenSize, queries],
            "mlp.up_proj": [intermediateSize, hiddenSize], "mlp.down_proj": [hiddenSize, intermediateSize],
        ]
        if gatesMLP { shapes["mlp.gate_proj"] = [intermediateSize, hiddenSize] }
        return shapes
    }
}
