public import SparseKernels

/// Where in the making of a video an attention call is.
public struct VideoAttentionPlace: Hashable, Sendable {
    public var layer: Int
    public var layers: Int
    /// The denoising step, from 0.
    public var step: Int
    public var steps: Int
    /// The pass of the step: models with guidance run one with and one without the prompt. Always 0 for `VideoTransformer`.
    public var pass: Int

    public init(layer: Int, layers: Int, step: Int, steps: Int, pass: Int = 0) {
        self.layer = layer
        self.layers = layers
        self.step = step
        self.steps = steps
        self.pass = pass
    }
}

/// The attention of a video model: any method, which may remember what it saw in earlier steps of the same video.
///
/// A copy of a value has memory of its own. `VideoSampler` copies the value it is given and resets it, so that videos do not
/// depend on each other.
public protocol VideoAttention: Sendable {
    /// Computes the attention of one layer in one step.
    ///
    /// - Parameters:
    ///   - place: the layer, the step and the pass.
    ///   - query: heads × tokens × headDim, normalised and rotated; text tokens first, then the video frame by frame.
    ///   - key: as `query`.
    ///   - value: as `query`, neither normalised nor rotated.
    ///   - output: heads × tokens × headDim.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: the part of all pairs of query and key that was computed, 1 for dense attention.
    mutating func attend(
        at place: VideoAttentionPlace, query: TensorView<Float>, key: TensorView<Float>, value: TensorView<Float>,
        output: consuming MutableTensorView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Double

    /// Forgets everything about the video before.
    mutating func reset()
}

extension VideoAttention {
    public mutating func reset() {}
}

/// Exact attention over all keys.
public struct DenseVideoAttention: VideoAttention {
    public init() {}

    public func attend(
        at place: VideoAttentionPlace, query: TensorView<Float>, key: TensorView<Float>, value: TensorView<Float>,
        output: consuming MutableTensorView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Double {
        try DenseAttention(shape(query: query, key: key)).run(
            query: query, key: key, value: value, output: output, on: pool)
        return 1
    }
}

/// A sparse method with dense attention in the first steps and layers, where errors do the most harm.
///
/// Source: Sparse VideoGen (arXiv 2502.01776), whose released configuration keeps the first quarter of the steps and the first
/// layer dense.
public struct WarmedUpVideoAttention: VideoAttention {
    /// The method after the warm-up.
    public var method: any VideoAttention
    /// The part of the steps, from the first on, that are dense; rounded up to whole steps.
    public let denseStepFraction: Double
    /// The layers, from the first on, that are dense in every step.
    public let denseLayers: Int

    /// - Throws: `.invalidArgument` for a fraction outside 0…1 or a negative number of layers.
    public init(
        _ method: any VideoAttention, denseStepFraction: Double = 0.25, denseLayers: Int = 1
    ) throws(SparseKernelsError) {
        guard (0...1).contains(denseStepFraction) else {
            throw SparseKernelsError(
                .invalidArgument, "denseStepFraction", expected: "0 to 1", actual: "\(denseStepFraction)")
        }
        guard denseLayers >= 0 else {
            throw SparseKernelsError(.invalidArgument, "denseLayers", expected: "0 or more", actual: "\(denseLayers)")
        }
        self.method = method
        self.denseStepFraction = denseStepFraction
        self.denseLayers = denseLayers
    }

    /// Whether a call is in the warm-up.
    public func isDense(at place: VideoAttentionPlace) -> Bool {
        place.layer < denseLayers || Double(place.step) < denseStepFraction * Double(place.steps)
    }

    public mutating func attend(
        at place: VideoAttentionPlace, query: TensorView<Float>, key: TensorView<Float>, value: TensorView<Float>,
        output: consuming MutableTensorView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Double {
        if isDense(at: place) {
            return try DenseVideoAttention().attend(
                at: place, query: query, key: key, value: value, output: output, on: pool)
        }
        return try method.attend(at: place, query: query, key: key, value: value, output: output, on: pool)
    }

    public mutating func reset() { method.reset() }
}

/// The shape of a call.
func shape(query: TensorView<Float>, key: TensorView<Float>) throws(SparseKernelsError) -> AttentionShape {
    try AttentionShape(
        queryLength: query.tokens, keyLength: key.tokens, queryHeads: query.heads, kvHeads: key.heads,
        headDim: query.channels)
}
