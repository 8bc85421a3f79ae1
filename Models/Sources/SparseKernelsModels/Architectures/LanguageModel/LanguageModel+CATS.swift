public import CATS
internal import NemotronH
public import SparseKernels

extension LanguageModel {
    /// Thresholds of nothing, with which a model is loaded for a calibration: its MLPs are dense.
    ///
    /// - Parameter folder: that of the model.
    /// - Throws: the errors of the configuration's file.
    public static func zeroThresholds(folder: String) throws(SparseKernelsError) -> CATSThresholds {
        let c = try LanguageModelConfiguration(path: folder + "/config.json")
        return try CATSThresholds(Array(repeating: 0, count: c.mlpLayers), sparsity: 0, function: c.activation)
    }

    /// The model with other thresholds, which shares the weights.
    ///
    /// - Parameter thresholds: one per MLP, for the model's activation function.
    /// - Throws: `.invalidArgument` for a model that was loaded without thresholds, or thresholds of another function;
    ///   `.invalidShape` for another number of layers.
    public func with(_ thresholds: CATSThresholds) throws(SparseKernelsError) -> LanguageModel {
        guard cats != nil else {
            throw SparseKernelsError(
                .invalidArgument, "cats", expected: "a model that was loaded with thresholds", actual: "one without")
        }
        try configuration.check(thresholds)
        var model = self
        model.cats = thresholds
        var next = 0
        for (index, layer) in layers.enumerated() {
            guard case .cats(let mixer) = layer.mixer else { continue }
            model.layers[index] = LanguageLayer(
                norm: layer.norm, mixer: .cats(try mixer.with(threshold: thresholds.values[next])), after: layer.after)
            next += 1
        }
        return model
    }

    /// Finds the thresholds at which every MLP drops a part of its activations on a text. The model, which was loaded with
    /// thresholds, runs with those that it has: zeros, for a calibration as in the paper.
    ///
    /// - Parameters:
    ///   - sparsity: the part, at least 0 and below 1.
    ///   - windows: sequences of tokens, each from position 0 on.
    ///   - pool: the threads to use.
    ///   - progress: called after each window with its number.
    /// - Throws: `.invalidArgument` for another sparsity, no tokens, or a model without thresholds; the errors of `logits`.
    public func catsThresholds(
        sparsity: Double, windows: [[Int]], on pool: WorkerPool = .shared, progress: (Int) -> Void = { _ in }
    ) throws(SparseKernelsError) -> CATSThresholds {
        var mixers: [String: (index: Int, layer: CATSLayer)] = [:]
        for layer in layers {
            if case .cats(let mixer) = layer.mixer { mixers[mixer.upNames[0]] = (mixers.count, mixer.layer) }
        }
        guard !mixers.isEmpty else {
            throw SparseKernelsError(
                .invalidArgument, "cats", expected: "a model that was loaded with thresholds", actual: "one without")
        }
        // An impossible sparsity is refused before anything runs.
        _ = try CATSThresholds([0], sparsity: sparsity)
        var histograms = [ActivationHistogram](repeating: ActivationHistogram(), count: mixers.count)
        var workspace = CATSWorkspace()
        for (number, window) in windows.enumerated() {
            _ = try logits(window, on: pool) { name, input throws(SparseKernelsError) in
                guard let (index, layer) = mixers[name] else { return }
                try layer.record(
                    input.matrixView(named: "input"), into: &histograms[index], workspace: &workspace, on: pool)
            }
            progress(number + 1)
        }
        return try CATSThresholds(histograms, sparsity: sparsity, function: configuration.activation)
    }
}

extension LanguageModelConfiguration {
    /// Layers with an MLP.
    var mlpLayers: Int {
        guard let pattern else { return layers }
        return pattern.layers.count { $0 == .mlp }
    }

    /// Throws unless thresholds are those of this model's layers.
    func check(_ thresholds: CATSThresholds) throws(SparseKernelsError) {
        guard thresholds.values.count == mlpLayers else {
            throw SparseKernelsError(
                .invalidShape, "thresholds", expected: "\(mlpLayers), one per MLP", actual: "\(thresholds.values.count)")
        }
        guard thresholds.function == activation else {
            throw SparseKernelsError(
                .invalidArgument, "thresholds", expected: "those of \(activation.rawValue)",
                actual: "of \(thresholds.function.rawValue)")
        }
    }
}
