public import SparseKernels
import SparseKernelsReference

/// Makes videos: Euler steps from noise at time 1 to the video at time 0, x ← x + (t₂ − t₁)·v.
public struct VideoSampler: Hashable, Sendable {
    public let steps: Int

    /// - Throws: `.invalidArgument` for steps outside 1…10000.
    public init(steps: Int = 20) throws(SparseKernelsError) {
        guard (1...10_000).contains(steps) else {
            throw SparseKernelsError(.invalidArgument, "steps", expected: "1 to 10000", actual: "\(steps)")
        }
        self.steps = steps
    }

    /// What a run tells of its progress. A closure that throws stops it.
    public enum Event: Sendable {
        /// A layer of a step is done.
        case layer(Int, step: Int, density: Double)
        /// A step is done: its number, the mean density of its layers, and its times.
        case step(Int, densities: [Double], seconds: StageSeconds)
    }
    public typealias Progress = (Event) throws(SparseKernelsError) -> Void

    /// The noise of a seed, `[videoTokens, patchChannels]`: the same on every platform.
    public static func noise(
        _ configuration: VideoTransformerConfiguration, seed: UInt64
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try .normal([configuration.videoTokens, configuration.patchChannels], seed: seed)
    }

    /// The time at which a step begins: 1 for the first; 0 for the one after the last.
    public func time(ofStep step: Int) -> Double { 1 - Double(step) / Double(steps) }

    /// x ← x + (t₂ − t₁)·v.
    func advance(_ x: inout Tensor<Float>, by velocity: Tensor<Float>, step: Int) {
        let (velocity, difference) = (velocity.span, Float(time(ofStep: step + 1) - time(ofStep: step)))
        var elements = x.mutableSpan
        for i in 0..<elements.count { elements[i] += difference * velocity[i] }
    }

    /// Makes a video.
    ///
    /// The same model, prompt, seed and method give the same bits for every number of threads.
    ///
    /// - Parameters:
    ///   - model: the model.
    ///   - prompt: a token id for each text token, such as `SpritePrompt.tokens`.
    ///   - seed: of the noise.
    ///   - attention: the method. It is copied and reset, so that nothing of another video is in it.
    ///   - pool: the threads to use.
    ///   - progress: called after each layer and each step.
    /// - Throws: the errors of `VideoTransformer.velocity` and of the closures.
    public func callAsFunction(
        _ model: VideoTransformer, prompt: [Int], seed: UInt64, attention: any VideoAttention = DenseVideoAttention(),
        on pool: WorkerPool = .shared,
        progress: Progress = { _ throws(SparseKernelsError) in }
    ) throws(SparseKernelsError) -> VideoSample {
        var method = attention
        method.reset()
        var x = try Self.noise(model.configuration, seed: seed)
        var workspace = try VideoTransformer.Workspace(model.configuration)
        var (densities, seconds): ([[Double]], StageSeconds) = ([], StageSeconds())
        for step in 0..<steps {
            let result = try model.velocity(
                of: x, prompt: prompt, time: time(ofStep: step), step: (step, steps), attention: &method, workspace: &workspace,
                on: pool,
                finishedLayer: { layer, density throws(SparseKernelsError) in
                    try progress(.layer(layer, step: step, density: density))
                })
            advance(&x, by: result.velocity, step: step)
            densities.append(result.densities)
            seconds += result.seconds
            try progress(.step(step, densities: result.densities, seconds: result.seconds))
        }
        return VideoSample(clip: try VideoClip(patches: x, model.configuration), densities: densities, seconds: seconds)
    }
}

/// A video and what it took.
public struct VideoSample: Sendable {
    public let clip: VideoClip
    /// The part of all pairs that attention computed, by step and layer.
    public let densities: [[Double]]
    public let seconds: StageSeconds

    public init(clip: VideoClip, densities: [[Double]], seconds: StageSeconds) {
        self.clip = clip
        self.densities = densities
        self.seconds = seconds
    }

    /// The mean over all steps and layers, dense ones too.
    public var density: Double { mean(densities.flatMap { $0 }) }

    /// The mean over the calls for which a condition holds, such as those after the warm-up; 1 if there are none.
    public func density(where condition: (_ step: Int, _ layer: Int) -> Bool) -> Double {
        var chosen: [Double] = []
        for (step, layers) in densities.enumerated() {
            for (layer, density) in layers.enumerated() where condition(step, layer) { chosen.append(density) }
        }
        return mean(chosen)
    }

    private func mean(_ values: [Double]) -> Double {
        values.isEmpty ? 1 : values.reduce(0, +) / Double(values.count)
    }
}
