import Foundation
public import SparseKernels

/// The text-conditioned video diffusion transformer of the shared data, in single precision, run directly.
///
/// Text tokens come first, then video tokens, frame by frame. Blocks use adaLN: y = x·(1 + scale) + shift before, x + gate·f(y)
/// after, with rows of `e + mod` for both halves. Like `LlamaModel` it exposes the inputs of its linear layers.
public struct VideoTransformer: Sendable {
    /// The edge of the cube of video tokens, in frames, rows and columns of patches.
    public static let edge = 16
    private static let timeChannels = 128
    private static let ropeAxes = [16, 24, 24]

    public let layers: Int
    public let hiddenSize: Int
    private let headDim: Int
    private let weights: [String: Tensor<Float>]

    /// Loads `model.safetensors` of a folder.
    /// - Throws: `.inputOutput` and `.malformedFile` for a file that cannot be read; `.notFound` for a missing weight,
    ///   `.invalidShape` for one that does not fit the others.
    public init(folder: String) throws(SparseKernelsError) {
        let file = try SafetensorsFile(path: folder + "/model.safetensors")
        layers = file.tensors.filter { $0.name.hasSuffix(".mod") }.count
        func length(_ name: String) throws(SparseKernelsError) -> Int {
            let shape = try file.entry(named: name).shape
            guard shape.count == 1, (1...1 << 20).contains(shape[0]) else {
                throw SparseKernelsError(
                    .invalidShape, "\(file.name), tensor \"\(name)\"", expected: "a vector of 1 to 2²⁰ elements",
                    actual: "\(shape)")
            }
            return shape[0]
        }
        (hiddenSize, headDim) = try (length("patch.bias"), length("blocks.0.qn"))
        let d = hiddenSize
        var shapes = [
            "patch.weight": [d, 48], "patch.bias": [d], "t1.weight": [d, 2 * Self.timeChannels], "t1.bias": [d],
            "t2.weight": [d, d],
            "t2.bias": [d],
            "t6.weight": [6 * d, d], "t6.bias": [6 * d], "text.weight": [64, d], "tpos": [32, d], "fmod": [2, d],
            "out.weight": [48, d], "out.bias": [48],
        ]
        for layer in 0..<layers {
            let linear = ["qkv": [3 * d, d], "o": [d, d], "up": [4 * d, d], "down": [d, 4 * d]]
            for (name, shape) in linear {
                shapes["blocks.\(layer).\(name).weight"] = shape
                shapes["blocks.\(layer).\(name).bias"] = [shape[0]]
            }
            for (name, shape) in ["mod": [6, d], "qn": [headDim], "kn": [headDim]] { shapes["blocks.\(layer).\(name)"] = shape }
        }
        let channels = Self.ropeAxes.reduce(0, +)
        guard headDim == channels, d % headDim == 0 else {
            throw SparseKernelsError(
                .invalidShape, "\(file.name), tensor \"\(headDim == channels ? "patch.bias" : "blocks.0.qn")\"",
                expected: headDim == channels
                    ? "a multiple of \(channels) elements" : "\(channels) elements, as the rotation has",
                actual: "\(headDim == channels ? d : headDim)")
        }
        var weights: [String: Tensor<Float>] = [:]
        for (name, shape) in shapes {
            let actual = try file.entry(named: name).shape
            guard actual == shape else {
                throw SparseKernelsError(
                    .invalidShape, "\(file.name), tensor \"\(name)\"", expected: "\(shape)", actual: "\(actual)")
            }
            weights[name] = try file.floatTensor(name)
        }
        self.weights = weights
    }

    /// The velocity of every patch, `[4096, 48]`.
    ///
    /// - Parameters:
    ///   - patches: the noisy video, `[4096, 48]`.
    ///   - prompt: 32 token ids below 64.
    ///   - time: 1 for noise, 0 for the video.
    ///   - pool: the threads to use.
    ///   - observe: called with the input of each linear layer of a block, such as "blocks.0.qkv", just before it runs.
    /// - Throws: `.invalidShape` for other patches, `.invalidArgument` for another prompt, and the errors of `observe`.
    public func velocity(
        of patches: Tensor<Float>, prompt: [Int], time: Double, on pool: WorkerPool = .shared,
        observe: LlamaModel.Observer = { _, _ throws(SparseKernelsError) in }
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let video = Self.edge * Self.edge * Self.edge
        guard patches.shape == [video, 48] else {
            throw SparseKernelsError(.invalidShape, "patches", expected: "\([video, 48])", actual: "\(patches.shape)")
        }
        guard prompt.count == 32, prompt.allSatisfy({ (0..<64).contains($0) }) else {
            throw SparseKernelsError(
                .invalidArgument, "prompt", expected: "32 ids from 0 to 63",
                actual: "\(prompt.count) ids\(prompt.isEmpty ? "" : " from \(prompt.min()!) to \(prompt.max()!)")")
        }
        let d = hiddenSize
        let frequencies = (0..<Self.timeChannels).map { 1000 * time * pow(10000, -Double($0) / Double(Self.timeChannels)) }
        let angles = try Tensor([1, 2 * Self.timeChannels], (frequencies.map(cos) + frequencies.map(sin)).map(Float.init))
        let embedding = try linear("t2", silu(linear("t1", angles, on: pool)), on: pool)
        let modulation = try linear("t6", silu(embedding), on: pool).elements
        let (text, position) = (weights["text.weight"]!, weights["tpos"]!)
        let embedded = try linear("patch", patches, on: pool)
        var hidden = try Tensor<Float>([prompt.count + video, d]) { index in
            let (token, channel) = index.quotientAndRemainder(dividingBy: d)
            return token < prompt.count
                ? text[flat: prompt[token] * d + channel] + position[flat: index]
                : embedded[flat: index - prompt.count * d]
        }
        let rotation = VideoRotation(textTokens: prompt.count, edge: Self.edge, axes: Self.ropeAxes)
        for layer in 0..<layers {
            let block = "blocks.\(layer)."
            let own = weights[block + "mod"]!.elements
            func row(_ index: Int) -> [Float] { (0..<d).map { modulation[index * d + $0] + own[index * d + $0] } }
            func observed(_ name: String, _ input: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
                try observe(block + name, input)
                return try linear(block + name, input, on: pool)
            }
            let qkv = try observed("qkv", normalized(hidden, shift: row(0), scale: row(1)))
            let attended = try attention(qkv, block, rotation, on: pool)
            add(try observed("o", attended), times: row(2), to: &hidden)
            let inner = gelu(try observed("up", normalized(hidden, shift: row(3), scale: row(4))))
            add(try observed("down", inner), times: row(5), to: &hidden)
        }
        let last = weights["fmod"]!.elements
        func final(_ index: Int) -> [Float] { (0..<d).map { last[index * d + $0] + embedding[flat: $0] } }
        let output = try linear("out", normalized(hidden, shift: final(0), scale: final(1)), on: pool)
        return try Tensor([video, 48]) { output[flat: prompt.count * 48 + $0] }
    }

    // MARK: - Parts

    private func linear(
        _ name: String, _ x: Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let (weight, bias) = (weights[name + ".weight"]!, weights[name + ".bias"]!.elements)
        let (m, n, k) = (x.shape[0], weight.shape[0], x.shape[1])
        var y = try Tensor<Float>(zeros: [m, n])
        try GEMM(m: m, n: n, k: k, transposesB: true).run(a: x, b: weight, into: &y, on: pool)
        var elements = y.mutableSpan
        for index in 0..<elements.count { elements[index] += bias[index % n] }
        return y
    }

    /// LayerNorm without weights, modulated.
    private func normalized(
        _ x: Tensor<Float>, shift: [Float], scale: [Float]
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let (d, source) = (hiddenSize, x.span)
        var result = try Tensor<Float>(zeros: x.shape)
        var target = result.mutableSpan
        for start in stride(from: 0, to: source.count, by: d) {
            var (sum, squares) = (Float(0), Float(0))
            for i in 0..<d { sum += source[start + i] }
            let mean = sum / Float(d)
            for i in 0..<d { squares += (source[start + i] - mean) * (source[start + i] - mean) }
            let factor = 1 / (squares / Float(d) + 1e-5).squareRoot()
            for i in 0..<d { target[start + i] = (source[start + i] - mean) * factor * (1 + scale[i]) + shift[i] }
        }
        return result
    }

    private func attention(
        _ qkv: Tensor<Float>, _ block: String, _ rotation: VideoRotation, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let (tokens, d, heads) = (qkv.shape[0], hiddenSize, hiddenSize / headDim)
        func part(_ index: Int, norm: String?) throws(SparseKernelsError) -> Tensor<Float> {
            var rows = try Tensor<Float>([tokens, d]) { qkv[flat: $0 / d * 3 * d + index * d + $0 % d] }
            if let norm { rotation.apply(to: &rows, normalizedBy: weights[block + norm]!.elements) }
            return rows
        }
        let (query, key, value) = try (part(0, norm: "qn"), part(1, norm: "kn"), part(2, norm: nil))
        let shape = try AttentionShape(
            queryLength: tokens, keyLength: tokens, queryHeads: heads, kvHeads: heads, headDim: headDim)
        let geometry = try TensorGeometry(heads: heads, tokens: tokens, channels: headDim, layout: .nhd)
        var output = try Tensor<Float>(zeros: [tokens, d])
        try DenseAttention(shape).run(
            query: TensorView(query.span, geometry: geometry, named: "query"),
            key: TensorView(key.span, geometry: geometry, named: "key"),
            value: TensorView(value.span, geometry: geometry, named: "value"),
            output: MutableTensorView(output.mutableSpan, geometry: geometry, named: "output"), on: pool)
        return output
    }

    private func add(_ x: Tensor<Float>, times gate: [Float], to sum: inout Tensor<Float>) {
        let source = x.span
        var target = sum.mutableSpan
        for index in 0..<source.count { target[index] += source[index] * gate[index % gate.count] }
    }

    private func silu(_ x: Tensor<Float>) -> Tensor<Float> { map(x) { $0 / (1 + exp(-$0)) } }

    private func gelu(_ x: Tensor<Float>) -> Tensor<Float> {
        map(x) { 0.5 * $0 * (1 + tanh(0.797_884_56 * ($0 + 0.044715 * $0 * $0 * $0))) }
    }

    private func map(_ x: Tensor<Float>, _ function: (Float) -> Float) -> Tensor<Float> {
        var result = x
        var elements = result.mutableSpan
        for index in 0..<elements.count { elements[index] = function(elements[index]) }
        return result
    }
}
