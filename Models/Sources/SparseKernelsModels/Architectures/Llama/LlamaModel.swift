import Foundation
public import SparseKernels

/// A Llama model in single precision, run directly: `GEMM` for the linear layers, `DenseAttention` for attention.
///
/// Its purpose is to show the inputs of linear layers (`observe`), not to generate text: it has no cache of keys and values.
/// Weights are widened to `Float` when the model is loaded.
public struct LlamaModel: Sendable {
    public let configuration: LlamaConfiguration
    private let weights: [String: Tensor<Float>]
    private let outputName: String

    /// Loads `config.json` and `model.safetensors` of a folder.
    /// - Throws: `.inputOutput` and `.malformedFile` for files that cannot be read; `.notFound`, `.invalidElementType` and
    ///   `.invalidShape` for a weight that is missing or does not fit the configuration.
    public init(folder: String) throws(SparseKernelsError) {
        configuration = try LlamaConfiguration(path: folder + "/config.json")
        let file = try SafetensorsFile(path: folder + "/model.safetensors")
        var weights: [String: Tensor<Float>] = [:]
        let (embedding, projection) = ("model.embed_tokens.weight", "lm_head.weight")
        let isTied = configuration.tiesWordEmbeddings ?? (file[projection] == nil)
        outputName = isTied ? embedding : projection
        var shapes = Self.shapes(configuration)
        if !isTied { shapes.append((projection, [configuration.vocabularySize, configuration.hiddenSize])) }
        for (name, shape) in shapes {
            let tensor = try file.floatTensor(name)
            guard tensor.shape == shape else {
                throw SparseKernelsError(
                    .invalidShape, "\(file.name), tensor \"\(name)\"", expected: "\(shape)", actual: "\(tensor.shape)")
            }
            weights[name] = tensor
        }
        self.weights = weights
    }

    /// The linear layers of one block, in the order in which they run, with their outputs and inputs.
    private static func linearLayers(_ c: LlamaConfiguration) -> [(name: String, outFeatures: Int, inFeatures: Int)] {
        let (queries, keys) = (c.queryHeads * c.headDim, c.kvHeads * c.headDim)
        return [
            ("self_attn.q_proj", queries, c.hiddenSize), ("self_attn.k_proj", keys, c.hiddenSize),
            ("self_attn.v_proj", keys, c.hiddenSize), ("self_attn.o_proj", c.hiddenSize, queries),
            ("mlp.gate_proj", c.intermediateSize, c.hiddenSize), ("mlp.up_proj", c.intermediateSize, c.hiddenSize),
            ("mlp.down_proj", c.hiddenSize, c.intermediateSize),
        ]
    }

    private static func shapes(_ c: LlamaConfiguration) -> [(String, [Int])] {
        var shapes = [("model.embed_tokens.weight", [c.vocabularySize, c.hiddenSize]), ("model.norm.weight", [c.hiddenSize])]
        for layer in 0..<c.layers {
            let prefix = "model.layers.\(layer)."
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                shapes.append((prefix + norm + ".weight", [c.hiddenSize]))
            }
            for linear in linearLayers(c) {
                shapes.append((prefix + linear.name + ".weight", [linear.outFeatures, linear.inFeatures]))
            }
        }
        return shapes
    }

    // MARK: - Run

    /// The logits of every position, `[tokens, vocabularySize]`.
    ///
    /// - Parameters:
    ///   - tokens: one sequence that starts at position 0.
    ///   - pool: the threads to use.
    ///   - observe: called with the input of each linear layer just before it runs.
    /// - Throws: `.invalidArgument` for no tokens or one outside the vocabulary, and the errors of `observe`.
    /// - Complexity: memory O(tokens · intermediateSize) beside the weights.
    public func logits(
        _ tokens: [Int], on pool: WorkerPool = .shared, observe: LayerObserver = { _, _ throws(SparseKernelsError) in }
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let c = configuration
        guard !tokens.isEmpty, let largest = tokens.max(), tokens.min()! >= 0, largest < c.vocabularySize else {
            throw SparseKernelsError(
                .invalidArgument, "tokens", expected: "one or more, each 0 to \(c.vocabularySize - 1)",
                actual: tokens.isEmpty ? "none" : "\(tokens.count), from \(tokens.min()!) to \(tokens.max()!)")
        }
        let embedding = weights["model.embed_tokens.weight"]!
        let rope = RotaryEmbedding(tokens: tokens.count, headDim: c.headDim, theta: c.ropeTheta)
        var hidden = try Tensor<Float>([tokens.count, c.hiddenSize]) {
            embedding[flat: tokens[$0 / c.hiddenSize] * c.hiddenSize + $0 % c.hiddenSize]
        }
        for layer in 0..<c.layers {
            let block = "model.layers.\(layer)."
            func linear(_ name: String, _ input: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
                try observe(block + name, input)
                return try product(input, weights[block + name + ".weight"]!, on: pool)
            }
            let attentionInput = try normalized(hidden, by: block + "input_layernorm.weight")
            var query = try linear("self_attn.q_proj", attentionInput)
            var key = try linear("self_attn.k_proj", attentionInput)
            let value = try linear("self_attn.v_proj", attentionInput)
            rope.rotate(&query)
            rope.rotate(&key)
            add(try linear("self_attn.o_proj", try attention(query, key, value, on: pool)), to: &hidden)

            let mlpInput = try normalized(hidden, by: block + "post_attention_layernorm.weight")
            let gate = try linear("mlp.gate_proj", mlpInput)
            let gated = try gatedBySiLU(gate, try linear("mlp.up_proj", mlpInput))
            add(try linear("mlp.down_proj", gated), to: &hidden)
        }
        return try product(try normalized(hidden, by: "model.norm.weight"), weights[outputName]!, on: pool)
    }

    /// The bits that the logits of a sequence need to code it: −Σ log₂ p(next token). The last row predicts nothing.
    public static func codeLength(_ logits: Tensor<Float>, _ tokens: [Int]) -> Double {
        let (rows, vocabulary) = (logits.span, logits.shape[1])
        var bits = 0.0
        for (position, next) in tokens.dropFirst().enumerated() {
            let row = position * vocabulary
            var (largest, sum) = (rows[row], 0.0)
            for i in 1..<vocabulary { largest = max(largest, rows[row + i]) }
            for i in 0..<vocabulary { sum += exp(Double(rows[row + i] - largest)) }
            bits += (log(sum) - Double(rows[row + next] - largest)) / log(2)
        }
        return bits
    }

    private func product(
        _ x: Tensor<Float>, _ weight: Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: [x.shape[0], weight.shape[0]])
        try GEMM(m: x.shape[0], n: weight.shape[0], k: x.shape[1], transposesB: true).run(a: x, b: weight, into: &y, on: pool)
        return y
    }

    private func attention(
        _ query: Tensor<Float>, _ key: Tensor<Float>, _ value: Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let (tokens, c) = (query.shape[0], configuration)
        let shape = try AttentionShape(
            queryLength: tokens, keyLength: tokens, queryHeads: c.queryHeads, kvHeads: c.kvHeads, headDim: c.headDim)
        let queries = try TensorGeometry(heads: c.queryHeads, tokens: tokens, channels: c.headDim, layout: .nhd)
        let keys = try TensorGeometry(heads: c.kvHeads, tokens: tokens, channels: c.headDim, layout: .nhd)
        var output = try Tensor<Float>(zeros: query.shape)
        try DenseAttention(shape, mask: .causal).run(
            query: TensorView(query.span, geometry: queries, named: "query"),
            key: TensorView(key.span, geometry: keys, named: "key"),
            value: TensorView(value.span, geometry: keys, named: "value"),
            output: MutableTensorView(output.mutableSpan, geometry: queries, named: "output"), on: pool)
        return output
    }

    // MARK: - Element by element

    /// RMSNorm: x / √(mean x² + ε) · weight.
    private func normalized(_ x: Tensor<Float>, by name: String) throws(SparseKernelsError) -> Tensor<Float> {
        let scale = weights[name]!
        let (source, weight) = (x.span, scale.span)
        var result = try Tensor<Float>(zeros: x.shape)
        var target = result.mutableSpan
        for start in stride(from: 0, to: source.count, by: weight.count) {
            var squares: Float = 0
            for i in 0..<weight.count { squares += source[start + i] * source[start + i] }
            let factor = 1 / (squares / Float(weight.count) + configuration.rmsNormEpsilon).squareRoot()
            for i in 0..<weight.count { target[start + i] = source[start + i] * factor * weight[i] }
        }
        return result
    }

    private func add(_ x: Tensor<Float>, to sum: inout Tensor<Float>) {
        let source = x.span
        var target = sum.mutableSpan
        for i in 0..<source.count { target[i] += source[i] }
    }

    /// SwiGLU: SiLU(gate) · up.
    private func gatedBySiLU(_ gate: Tensor<Float>, _ up: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
        let (gates, ups) = (gate.span, up.span)
        var result = try Tensor<Float>(zeros: gate.shape)
        var target = result.mutableSpan
        for i in 0..<gates.count { target[i] = gates[i] / (1 + exp(-gates[i])) * ups[i] }
        return result
    }
}

/// Rotary position embedding, half-split: channel i of the first half of a head is rotated with channel i of the second.
private struct RotaryEmbedding {
    let halfDim: Int
    let cosines: [Float]
    let sines: [Float]

    init(tokens: Int, headDim: Int, theta: Double) {
        halfDim = headDim / 2
        let frequencies = (0..<headDim / 2).map { pow(theta, -Double($0) / Double(headDim / 2)) }
        let angles = (0..<tokens).flatMap { token in frequencies.map { Double(token) * $0 } }
        cosines = angles.map { Float(cos($0)) }
        sines = angles.map { Float(sin($0)) }
    }

    /// Rotates `[tokens, heads · headDim]` in place.
    func rotate(_ x: inout Tensor<Float>) {
        let (tokens, width) = (x.shape[0], x.shape[1])
        var elements = x.mutableSpan
        for token in 0..<tokens {
            for head in stride(from: token * width, to: (token + 1) * width, by: 2 * halfDim) {
                for i in 0..<halfDim {
                    let (cosine, sine) = (cosines[token * halfDim + i], sines[token * halfDim + i])
                    let (first, second) = (elements[head + i], elements[head + halfDim + i])
                    elements[head + i] = first * cosine - second * sine
                    elements[head + halfDim + i] = second * cosine + first * sine
                }
            }
        }
    }
}
