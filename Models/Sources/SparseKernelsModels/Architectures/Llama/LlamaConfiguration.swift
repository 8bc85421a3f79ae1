public import SparseKernels

/// The sizes of a Llama model, from the `config.json` of a Hugging Face checkpoint.
///
/// Keys that a checkpoint may omit have the defaults of that library's Llama. Keys that request arithmetic which `LlamaModel`
/// does not do are errors, because the result would be that of another model.
public struct LlamaConfiguration: Hashable, Sendable {
    public let vocabularySize: Int
    public let hiddenSize: Int
    public let intermediateSize: Int
    public let layers: Int
    public let queryHeads: Int
    /// `queryHeads` unless the file says otherwise.
    public let kvHeads: Int
    /// `hiddenSize / queryHeads` unless the file says otherwise.
    public let headDim: Int
    /// 10000 unless the file says otherwise.
    public let ropeTheta: Double
    /// 10⁻⁶ unless the file says otherwise.
    public let rmsNormEpsilon: Float
    /// Whether the output projection is the embedding; nil if the file does not say. The default is no, but a checkpoint
    /// without a tensor for the projection must mean yes.
    public let tiesWordEmbeddings: Bool?

    /// - Throws: `.inputOutput` when the file cannot be read; `.malformedFile`, naming the key, when a size is missing or
    ///   impossible, or the file requests something that `LlamaModel` does not do.
    public init(path: String) throws(SparseKernelsError) {
        let file = try ConfigurationFile(path: path)
        vocabularySize = try file.integer("vocab_size")
        hiddenSize = try file.integer("hidden_size")
        intermediateSize = try file.integer("intermediate_size")
        layers = try file.integer("num_hidden_layers", in: 1...4096)
        queryHeads = try file.integer("num_attention_heads")
        kvHeads = try file.integer("num_key_value_heads", default: queryHeads)
        guard queryHeads.isMultiple(of: kvHeads) else {
            throw file.failure(
                "num_key_value_heads", expected: "a divisor of num_attention_heads (\(queryHeads))", actual: "\(kvHeads)")
        }
        guard file.has("head_dim") || hiddenSize.isMultiple(of: queryHeads) else {
            throw file.failure(
                "head_dim",
                expected: "there, as hidden_size (\(hiddenSize)) is no multiple of num_attention_heads (\(queryHeads))",
                actual: "no such key")
        }
        headDim = try file.integer("head_dim", default: hiddenSize / queryHeads)
        guard headDim.isMultiple(of: 2) else {
            throw file.failure("head_dim", expected: "even, for the rotation of pairs", actual: "\(headDim)")
        }
        // Newer files keep the parameters of the rotation together.
        let rotation = try file.object("rope_parameters")
        ropeTheta =
            if let rotation, rotation.has("rope_theta") { try rotation.positive("rope_theta") } else {
                try file.positive("rope_theta", default: 10_000)
            }
        rmsNormEpsilon = Float(try file.positive("rms_norm_eps", orZero: true, default: 1e-6))
        tiesWordEmbeddings = try file.flag("tie_word_embeddings")
        try Self.refuseOthers(file, rotation)
    }

    private static func refuseOthers(
        _ file: ConfigurationFile, _ rotation: ConfigurationFile?
    ) throws(SparseKernelsError) {
        for key in ["attention_bias", "mlp_bias"] where try file.flag(key) == true {
            throw file.failure(key, expected: "false: biases are not supported", actual: "true")
        }
        let activation = try file.text("hidden_act") ?? "silu"
        guard activation == "silu" || activation == "swish" else {
            throw file.failure("hidden_act", expected: "\"silu\"", actual: "\"\(activation.prefix(40))\"")
        }
        for scaling in [try file.object("rope_scaling"), rotation].compactMap({ $0 }) {
            let key = scaling.has("rope_type") ? "rope_type" : "type"
            let type = try scaling.text(key) ?? "default"
            guard type == "default" else {
                throw scaling.failure(
                    key, expected: "\"default\": other rotations are not supported", actual: "\"\(type.prefix(40))\"")
            }
        }
        for place in [file, rotation].compactMap({ $0 }) {
            let part = try place.positive("partial_rotary_factor", default: 1)
            guard part == 1 else {
                throw place.failure(
                    "partial_rotary_factor", expected: "1: partial rotations are not supported", actual: "\(part)")
            }
        }
    }
}
