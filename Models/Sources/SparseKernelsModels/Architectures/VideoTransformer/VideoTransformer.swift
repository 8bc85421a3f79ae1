import Foundation
public import SparseKernels

/// The text-conditioned video diffusion transformer of the shared data, `video-dit`, or one of the same kind with other sizes.
///
/// ```swift
/// let model = try VideoTransformer(folder: "Models/Data/video-dit-w4a4")
/// let sample = try VideoSampler(steps: 20)(model, prompt: SpritePrompt(seed: 1), seed: 1)
/// ```
///
/// Text tokens come first, then video tokens, frame by frame. Blocks use adaLN: y = x·(1 + scale) + shift before, x + gate·f(y)
/// after, with rows of `e + mod` for both halves. Attention is any `VideoAttention`, and the linear layers of the blocks have
/// one of several forms. What comes in and goes out is in single precision.
///
/// - Results are bitwise equal for every number of threads.
/// - Complexity of a step: attention over all tokens and the linear layers; the passes between them are a few percent.
public struct VideoTransformer: Sendable {
    public let configuration: VideoTransformerConfiguration
    /// The form of the linear layers in the blocks.
    public let linear: VideoLinearFormat
    /// Whether the weights of the blocks come from a file of 4-bit codes.
    public let isQuantized: Bool

    public var layers: Int { configuration.layers }
    public var hiddenSize: Int { configuration.hiddenSize }
    /// Bytes of the weights of the linear layers in the blocks, as they are in memory.
    public let blockByteCount: Int

    private let weights: [String: Tensor<Float>]
    private let blocks: [Block]
    private let rotation: VideoRotation
    /// Cosines and sines of the embedding of the time.
    private let timeFrequencies: Int

    /// The weights of a block.
    struct Block: Sendable {
        let qkv: VideoLinear
        let output: VideoLinear
        let up: VideoLinear
        let down: VideoLinear
        /// `[6, hiddenSize]`.
        let modulation: [Float]
        let queryNorm: [Float]
        let keyNorm: [Float]
    }

    /// Loads `config.json` and `model.safetensors` of a folder.
    ///
    /// - Parameters:
    ///   - folder: of a model as it was trained, or of one that `sparsekernels quantize` made.
    ///   - linear: nil means `.w4a4` for a quantised file and `.float` for another.
    ///   - pool: the threads to use.
    /// - Throws: `.inputOutput` and `.malformedFile` for files that cannot be read; `.notFound`, `.invalidElementType` and
    ///   `.invalidShape` for a weight that is missing or does not fit the configuration; `.invalidArgument` for `.w4a4` with a
    ///   file of 16-bit weights.
    public init(
        folder: String, linear: VideoLinearFormat? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(
            VideoTransformerConfiguration(path: folder + "/config.json"),
            weights: SafetensorsFile(path: folder + "/model.safetensors"), linear: linear, on: pool)
    }

    /// Makes a model of a configuration and an open file. Parameters and errors are those of the initialiser with a folder.
    public init(
        _ c: VideoTransformerConfiguration, weights file: SafetensorsFile, linear: VideoLinearFormat? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        configuration = c
        isQuantized = VideoLinear.isQuantized(file)
        let format = linear ?? (isQuantized ? .w4a4 : .float)
        self.linear = format
        let d = c.hiddenSize
        let time = try file.entry(named: "t1.weight").shape
        guard time.count == 2, time[0] == d, time[1].isMultiple(of: 2), (2...1 << 16).contains(time[1]) else {
            throw SparseKernelsError(
                .invalidShape, "\(file.name), tensor \"t1.weight\"", expected: "[\(d), an even number]", actual: "\(time)")
        }
        timeFrequencies = time[1] / 2
        var weights: [String: Tensor<Float>] = [:]
        for (name, shape) in [
            ("patch.weight", [d, c.patchChannels]), ("patch.bias", [d]), ("t1.weight", time), ("t1.bias", [d]),
            ("t2.weight", [d, d]), ("t2.bias", [d]), ("t6.weight", [6 * d, d]), ("t6.bias", [6 * d]),
            ("text.weight", [c.textVocabulary, d]), ("tpos", [c.textTokens, d]), ("fmod", [2, d]),
            ("out.weight", [c.patchChannels, d]), ("out.bias", [c.patchChannels]),
        ] {
            weights[name] = try file.checkedTensor(name, shape)
        }
        self.weights = weights
        var blocks: [Block] = []
        for layer in 0..<c.layers {
            let prefix = "blocks.\(layer)."
            func linear(_ name: String, _ shape: [Int], gelu: Bool = false) throws(SparseKernelsError) -> VideoLinear {
                try VideoLinear(prefix + name, shape: shape, in: file, format: format, appliesGELU: gelu, on: pool)
            }
            blocks.append(
                Block(
                    qkv: try linear("qkv", [3 * d, d]), output: try linear("o", [d, d]),
                    up: try linear("up", [c.innerSize, d], gelu: true), down: try linear("down", [d, c.innerSize]),
                    modulation: try file.checkedTensor(prefix + "mod", [6, d]).elements,
                    queryNorm: try file.checkedTensor(prefix + "qn", [c.headDim]).elements,
                    keyNorm: try file.checkedTensor(prefix + "kn", [c.headDim]).elements))
        }
        self.blocks = blocks
        blockByteCount = blocks.reduce(0) {
            $0 + $1.qkv.byteCount + $1.output.byteCount + $1.up.byteCount + $1.down.byteCount
        }
        rotation = VideoRotation(c)
    }

    /// The names of the linear layers in the blocks, in the order in which they run.
    public var linearLayers: [String] {
        (0..<layers).flatMap { layer in ["qkv", "o", "up", "down"].map { "blocks.\(layer).\($0)" } }
    }

    // MARK: - Run

    /// The velocity of every patch with dense attention: `[videoTokens, patchChannels]`. For single steps and recordings.
    ///
    /// - Parameters:
    ///   - patches: the noisy video, `[videoTokens, patchChannels]`.
    ///   - prompt: a token id for each text token; 0 is padding.
    ///   - time: 1 for noise, 0 for the video.
    ///   - pool: the threads to use.
    ///   - observe: called with the input of each linear layer of a block, such as "blocks.0.qkv", just before it runs.
    /// - Throws: as the method with a workspace, and the errors of `observe`.
    public func velocity(
        of patches: Tensor<Float>, prompt: [Int], time: Double, on pool: WorkerPool = .shared,
        observe: LayerObserver = { _, _ throws(SparseKernelsError) in }
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var attention: any VideoAttention = DenseVideoAttention()
        var workspace = try Workspace(configuration)
        return try velocity(
            of: patches, prompt: prompt, time: time, attention: &attention, workspace: &workspace, on: pool, observe: observe
        ).velocity
    }

    /// The velocity of every patch, with times and densities.
    ///
    /// - Parameters:
    ///   - patches: the noisy video, `[videoTokens, patchChannels]`.
    ///   - prompt: a token id for each text token; 0 is padding.
    ///   - time: 1 for noise, 0 for the video.
    ///   - step: the denoising step and their number, which methods of attention may go by.
    ///   - attention: the method, which may remember what it sees.
    ///   - workspace: memory that is used again from step to step; `Workspace(configuration)`.
    ///   - pool: the threads to use.
    ///   - observe: called with the input of each linear layer of a block just before it runs.
    ///   - finishedLayer: called with each layer and its density, for progress and to stop.
    /// - Throws: `.invalidShape` for other patches, `.invalidArgument` for another prompt or a time that is not finite, and the
    ///   errors of the attention and the closures.
    public func velocity(
        of patches: Tensor<Float>, prompt: [Int], time: Double, step: (index: Int, count: Int) = (0, 1),
        attention: inout any VideoAttention, workspace: inout Workspace, on pool: WorkerPool = .shared,
        observe: LayerObserver = { _, _ throws(SparseKernelsError) in },
        finishedLayer: (_ layer: Int, _ density: Double) throws(SparseKernelsError) -> Void = {
            _, _ throws(SparseKernelsError) in
        }
    ) throws(SparseKernelsError) -> VideoStep {
        let c = configuration
        try check(patches, prompt, time)
        var stopwatch = Stopwatch()
        let (d, epsilon) = (c.hiddenSize, c.normEpsilon)
        let embedding = try timeEmbedding(time, on: pool)
        let modulation = try product("t6", silu(embedding), on: pool).elements
        try embed(patches, prompt, into: &workspace, on: pool)
        var densities: [Double] = []
        stopwatch.lap(\.other)
        for (layer, block) in blocks.enumerated() {
            let name = "blocks.\(layer)."
            func row(_ index: Int) -> [Float] { (0..<d).map { modulation[index * d + $0] + block.modulation[index * d + $0] } }
            VideoPasses.modulate(workspace.hidden, shift: row(0), scale: row(1), into: &workspace.normalized, on: pool)
            try observe(name + "qkv", workspace.normalized)
            stopwatch.lap(\.other)
            try block.qkv.run(workspace.normalized, into: &workspace.qkv, on: pool)
            stopwatch.lap(\.linear)
            VideoPasses.splitHeads(
                workspace.qkv, bias: block.qkv.pendingBias, queryNorm: block.queryNorm, keyNorm: block.keyNorm,
                epsilon: epsilon, rotation: rotation, into: &workspace.heads, on: pool)
            stopwatch.lap(\.other)
            let density = try attend(
                with: &attention, at: VideoAttentionPlace(layer: layer, layers: c.layers, step: step.index, steps: step.count),
                workspace.heads, into: &workspace.attended, on: pool)
            densities.append(density)
            stopwatch.lap(\.attention)
            try observe(name + "o", workspace.attended)
            stopwatch.lap(\.other)
            try block.output.run(workspace.attended, into: &workspace.update, on: pool)
            stopwatch.lap(\.linear)
            VideoPasses.addGated(
                workspace.update, bias: block.output.pendingBias, gate: row(2), to: &workspace.hidden, on: pool)

            VideoPasses.modulate(workspace.hidden, shift: row(3), scale: row(4), into: &workspace.normalized, on: pool)
            try observe(name + "up", workspace.normalized)
            stopwatch.lap(\.other)
            try block.up.run(workspace.normalized, into: &workspace.inner, on: pool)
            stopwatch.lap(\.linear)
            if let bias = block.up.pendingBias { VideoPasses.gelu(&workspace.inner, bias: bias, on: pool) }
            try observe(name + "down", workspace.inner)
            stopwatch.lap(\.other)
            try block.down.run(workspace.inner, into: &workspace.update, on: pool)
            stopwatch.lap(\.linear)
            VideoPasses.addGated(
                workspace.update, bias: block.down.pendingBias, gate: row(5), to: &workspace.hidden, on: pool)
            try finishedLayer(layer, density)
            stopwatch.lap(\.other)
        }
        let last = weights["fmod"]!.elements
        func final(_ index: Int) -> [Float] { (0..<d).map { last[index * d + $0] + embedding[flat: $0] } }
        VideoPasses.modulate(workspace.hidden, shift: final(0), scale: final(1), into: &workspace.normalized, on: pool)
        let velocity = try output(of: workspace.normalized, on: pool)
        stopwatch.lap(\.other)
        return VideoStep(velocity: velocity, densities: densities, seconds: stopwatch.seconds)
    }

    /// The attention of one layer, whose output is `[tokens, heads · headDim]`.
    private func attend(
        with attention: inout any VideoAttention, at place: VideoAttentionPlace,
        _ heads: (query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>), into output: inout Tensor<Float>,
        on pool: WorkerPool
    ) throws(SparseKernelsError) -> Double {
        let c = configuration
        let geometry = try TensorGeometry(heads: c.heads, tokens: c.tokens, channels: c.headDim, layout: .nhd)
        return try attention.attend(
            at: place, query: heads.query.view(named: "query"), key: heads.key.view(named: "key"),
            value: heads.value.view(named: "value"),
            output: MutableTensorView(output.mutableSpan, geometry: geometry, named: "output"), on: pool)
    }

    private func check(_ patches: Tensor<Float>, _ prompt: [Int], _ time: Double) throws(SparseKernelsError) {
        let c = configuration
        let expected = [c.videoTokens, c.patchChannels]
        guard patches.shape == expected else {
            throw SparseKernelsError(.invalidShape, "patches", expected: "\(expected)", actual: "\(patches.shape)")
        }
        guard prompt.count == c.textTokens, prompt.allSatisfy({ (0..<c.textVocabulary).contains($0) }) else {
            throw SparseKernelsError(
                .invalidArgument, "prompt", expected: "\(c.textTokens) ids from 0 to \(c.textVocabulary - 1)",
                actual: "\(prompt.count) ids\(prompt.isEmpty ? "" : " from \(prompt.min()!) to \(prompt.max()!)")")
        }
        guard time.isFinite else {
            throw SparseKernelsError(.invalidArgument, "time", expected: "a finite number", actual: "\(time)")
        }
    }

    // MARK: - Around the blocks

    private func timeEmbedding(_ time: Double, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float> {
        let count = timeFrequencies
        let angles = (0..<count).map { configuration.timeScale * time * pow(10000, -Double($0) / Double(count)) }
        let waves = try Tensor([1, 2 * count], (angles.map(cos) + angles.map(sin)).map(Float.init))
        return try product("t2", silu(product("t1", waves, on: pool)), on: pool)
    }

    /// Writes the embeddings of text and patches into `workspace.hidden`.
    private func embed(
        _ patches: Tensor<Float>, _ prompt: [Int], into workspace: inout Workspace, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (d, textTokens) = (hiddenSize, prompt.count)
        let embedded = try product("patch", patches, on: pool)
        let (textWeight, positions) = (weights["text.weight"]!, weights["tpos"]!)
        let (text, position, video) = (textWeight.span, positions.span, embedded.span)
        var hidden = workspace.hidden.mutableSpan
        for token in 0..<textTokens {
            for i in 0..<d { hidden[token * d + i] = text[prompt[token] * d + i] + position[token * d + i] }
        }
        for i in 0..<video.count { hidden[textTokens * d + i] = video[i] }
    }

    /// The last layer for the video tokens of `x`.
    private func output(of x: Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float> {
        let c = configuration
        let video = try MatrixView(
            x.span.extracting((c.textTokens * c.hiddenSize)...), rows: c.videoTokens, columns: c.hiddenSize, named: "video")
        return try product("out", video, on: pool)
    }

    private func product(_ name: String, _ x: Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float> {
        try product(name, x.matrixView(named: name), on: pool)
    }

    private func product(
        _ name: String, _ x: MatrixView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let (weight, biases) = (weights[name + ".weight"]!, weights[name + ".bias"]!)
        let bias = biases.span
        let (m, n) = (x.rows, weight.shape[0])
        var y = try Tensor<Float>(zeros: [m, n])
        try GEMM(m: m, n: n, k: x.columns, transposesB: true).run(
            a: x, b: weight.matrixView(named: name), c: y.mutableMatrixView(named: name), on: pool)
        var elements = y.mutableSpan
        for row in 0..<m { for i in 0..<n { elements[row * n + i] += bias[i] } }
        return y
    }

    private func silu(_ x: Tensor<Float>) -> Tensor<Float> {
        var result = x
        result.update { _, value in value = value / (1 + exp(-value)) }
        return result
    }
}
