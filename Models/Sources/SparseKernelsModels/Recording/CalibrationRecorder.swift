public import SparseKernels
import SparseKernelsReference

/// A sample of the inputs of every linear layer, for calibration. All layers have the same tokens, drawn evenly from all seen.
///
/// It is reservoir sampling (Vitter's algorithm R, 1985) with a seed. After any number of tokens each of them is in the sample
/// with equal probability, and memory depends on the sample only, not on the length of the text.
public struct CalibrationRecorder: Sendable {
    /// The largest number of rows in each layer's sample.
    public let capacity: Int
    /// The number of tokens seen.
    public private(set) var tokens = 0
    private var generator: SplitMix64
    private var rows: [String: Rows] = [:]

    private struct Rows {
        var inFeatures: Int
        var elements: [Float]
    }

    /// - Throws: `.invalidArgument` for a capacity below 1.
    public init(capacity: Int, seed: UInt64 = 0) throws(SparseKernelsError) {
        guard capacity >= 1 else {
            throw SparseKernelsError(.invalidArgument, "capacity", expected: "at least 1", actual: "\(capacity)")
        }
        self.capacity = capacity
        generator = SplitMix64(seed: seed)
    }

    /// Runs something that shows the inputs of its linear layers for `count` tokens, and samples them.
    ///
    /// ```swift
    /// try recorder.record(tokens: 4128) { observe throws(SparseKernelsError) in
    ///     try video.velocity(of: patches, prompt: prompt, time: 0.7, observe: observe)
    /// }
    /// ```
    ///
    /// - Parameters:
    ///   - count: the rows that every layer shows in this run.
    ///   - run: calls its argument with each layer's input `[count, inFeatures]`, once per layer.
    /// - Returns: the result of `run`.
    /// - Throws: `.invalidShape` for a layer that shows other rows, and the errors of `run`. After an error the sample is not one
    ///   of all tokens.
    @discardableResult
    public mutating func record<Result>(
        tokens count: Int, _ run: (LayerObserver) throws(SparseKernelsError) -> Result
    ) throws(SparseKernelsError) -> Result {
        // They are drawn once per run, so that all layers keep the same tokens.
        var kept: [Int: Int] = [:]
        for (position, index) in (tokens..<tokens + count).enumerated() {
            let slot = index < capacity ? index : Int.random(in: 0...index, using: &generator)
            if slot < capacity { kept[slot] = position }
        }
        tokens += count
        let (size, slots) = (min(tokens, capacity), kept)
        var rows = rows
        self.rows = [:]
        defer { self.rows = rows }
        return try run { layer, input throws(SparseKernelsError) in
            guard input.shape.count == 2, input.shape[0] == count else {
                throw SparseKernelsError(
                    .invalidShape, "layer \"\(layer)\"", expected: "[\(count), inFeatures]", actual: "\(input.shape)")
            }
            let inFeatures = input.shape[1]
            let source = input.span
            var sample = rows.removeValue(forKey: layer) ?? Rows(inFeatures: inFeatures, elements: [])
            sample.elements.append(
                contentsOf: repeatElement(0, count: size * inFeatures - sample.elements.count))
            for (slot, position) in slots {
                for k in 0..<inFeatures { sample.elements[slot * inFeatures + k] = source[position * inFeatures + k] }
            }
            rows[layer] = sample
        }
    }

    /// Runs the model over one sequence and samples the inputs of its linear layers.
    /// - Returns: the logits, from which the model's quality on this text can be computed.
    /// - Throws: the errors of `LanguageModel.logits`. After an error the sample is not one of all tokens.
    @discardableResult
    public mutating func record(
        _ sequence: [Int], through model: LanguageModel, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try record(tokens: sequence.count) { observe throws(SparseKernelsError) in
            try model.logits(sequence, on: pool, observe: observe)
        }
    }

    /// Makes a video and samples the inputs of the model's linear layers in all of its steps, and so at all times.
    /// - Returns: the video.
    /// - Throws: the errors of `VideoSampler`. After an error the sample is not one of all tokens.
    @discardableResult
    public mutating func record(
        prompt: [Int], seed: UInt64, through model: VideoTransformer, sampler: VideoSampler, on pool: WorkerPool = .shared,
        progress: VideoSampler.Progress = { _ throws(SparseKernelsError) in }
    ) throws(SparseKernelsError) -> VideoClip {
        var x = try VideoSampler.noise(model.configuration, seed: seed)
        var workspace = try VideoTransformer.Workspace(model.configuration)
        var attention: any VideoAttention = DenseVideoAttention()
        for step in 0..<sampler.steps {
            let result = try record(tokens: model.configuration.tokens) { observe throws(SparseKernelsError) in
                try model.velocity(
                    of: x, prompt: prompt, time: sampler.time(ofStep: step), step: (step, sampler.steps),
                    attention: &attention, workspace: &workspace, on: pool, observe: observe
                ) { layer, density throws(SparseKernelsError) in try progress(.layer(layer, step: step, density: density)) }
            }
            sampler.advance(&x, by: result.velocity, step: step)
            try progress(.step(step, densities: result.densities, seconds: result.seconds))
        }
        return try VideoClip(patches: x, model.configuration)
    }

    /// The names of the layers seen, in order.
    public var layers: [String] { rows.keys.sorted() }

    /// The sample of a layer, `[tokens, inFeatures]`.
    /// - Throws: `.notFound`.
    public func sample(of layer: String) throws(SparseKernelsError) -> Tensor<Float> {
        guard let sample = rows[layer] else {
            throw SparseKernelsError(
                .notFound, "layer \"\(layer)\"", expected: "one of the \(rows.count) layers that were run",
                actual: "another name")
        }
        return try Tensor([sample.elements.count / sample.inFeatures, sample.inFeatures], sample.elements)
    }

    /// Writes the calibration file for `sparsekernels quantize --calibration`: a tensor `[tokens, inFeatures]` per layer name.
    ///
    /// Values are bfloat16, whose rounding error is far below that of 4-bit codes.
    /// - Throws: `.inputOutput`.
    public func write(to path: String, source: String) throws(SparseKernelsError) {
        var writer = SafetensorsWriter(metadata: [
            "format": "calibration", "layout": "[tokens, inFeatures]", "source": source, "tokens": "\(tokens)",
        ])
        for layer in layers {
            try writer.add(layer, sample(of: layer).converted(to: BFloat16.self))
        }
        try writer.write(to: path)
    }
}
