public import SparseKernels

/// Seconds of the parts of a run.
public struct VideoStageSeconds: Hashable, Sendable {
    /// Attention, with everything a method does to choose its keys.
    public var attention = 0.0
    /// The linear layers of the blocks.
    public var linear = 0.0
    /// Norms, rotations, activations, embeddings and the observers.
    public var other = 0.0

    public var total: Double { attention + linear + other }

    public init() {}

    public static func += (a: inout Self, b: Self) {
        a.attention += b.attention
        a.linear += b.linear
        a.other += b.other
    }
}

/// The result of one forward pass.
public struct VideoStep: Sendable {
    /// `[videoTokens, patchChannels]`: noise minus video.
    public let velocity: Tensor<Float>
    /// The part of all pairs that attention computed, by layer.
    public let densities: [Double]
    public let seconds: VideoStageSeconds

    /// The mean over the layers.
    public var density: Double { densities.reduce(0, +) / Double(densities.count) }
}

/// Adds the time since the last lap to a stage.
struct Stopwatch {
    private(set) var seconds = VideoStageSeconds()
    private let clock = ContinuousClock()
    private var last: ContinuousClock.Instant

    init() { last = clock.now }

    mutating func lap(_ stage: WritableKeyPath<VideoStageSeconds, Double>) {
        let now = clock.now
        seconds[keyPath: stage] += (now - last) / .seconds(1)
        last = now
    }
}

extension VideoTransformer {
    /// The memory of a forward pass, which steps use one after the other, so that they allocate next to nothing.
    public struct Workspace: Sendable {
        /// `[tokens, hiddenSize]`: the residual stream.
        var hidden: Tensor<Float>
        var normalized: Tensor<Float>
        /// `[tokens, 3 · hiddenSize]`.
        var qkv: Tensor<Float>
        /// `[heads, tokens, headDim]` each.
        var heads: (query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>)
        var attended: Tensor<Float>
        var update: Tensor<Float>
        /// `[tokens, innerSize]`.
        var inner: Tensor<Float>

        /// - Throws: `.invalidShape` for sizes that overflow.
        public init(_ c: VideoTransformerConfiguration) throws(SparseKernelsError) {
            let rows = [c.tokens, c.hiddenSize]
            hidden = try Tensor(zeros: rows)
            normalized = try Tensor(zeros: rows)
            qkv = try Tensor(zeros: [c.tokens, 3 * c.hiddenSize])
            let head = [c.heads, c.tokens, c.headDim]
            heads = (try Tensor(zeros: head), try Tensor(zeros: head), try Tensor(zeros: head))
            attended = try Tensor(zeros: rows)
            update = try Tensor(zeros: rows)
            inner = try Tensor(zeros: [c.tokens, c.innerSize])
        }
    }
}
