public import SparseKernels

/// The layers and steps in which attention stays dense: the first layers of every step, and the first steps.
///
/// Early steps lay out the video, and errors made there stay. The published results keep the first quarter of the steps dense,
/// for sparse methods and their baselines alike.
///
/// ```swift
/// let warmUp = try SVGWarmUp(layers: 40, steps: 50, layerRatio: 0.03, stepRatio: 0.25)
/// let attends = warmUp.isDense(layer: 0, step: 20)   // true: layer 0 is always dense
/// ```
public struct SVGWarmUp: Hashable, Sendable {
    /// The first layers, which are dense in every step.
    public let denseLayers: Int
    /// The first steps, which are dense in every layer.
    public let denseSteps: Int
    /// Under released rules, steps are dense whose timestep is above this one.
    public let timestepThreshold: Double?

    /// - Throws: `.invalidArgument` for a negative number.
    public init(denseLayers: Int, denseSteps: Int) throws(SparseKernelsError) {
        for (name, count) in [("denseLayers", denseLayers), ("denseSteps", denseSteps)] {
            try require(count >= 0, .invalidArgument, name, expected: "at least 0", actual: "\(count)")
        }
        self.denseLayers = denseLayers
        self.denseSteps = denseSteps
        timestepThreshold = nil
    }

    /// ⌊ratio · number⌋ layers and steps.
    /// - Parameters:
    ///   - layers: layers of the model.
    ///   - steps: steps of the diffusion.
    ///   - layerRatio: 0…1 (`first_layers_fp`).
    ///   - stepRatio: 0…1 (`first_times_fp`).
    /// - Throws: `.invalidArgument` for a negative number, and ratios outside 0…1.
    public init(layers: Int, steps: Int, layerRatio: Double, stepRatio: Double) throws(SparseKernelsError) {
        try Self.check(layers: layers, layerRatio: layerRatio, stepRatio: stepRatio)
        try require(
            steps >= 0 && steps < 1 << 53, .invalidArgument, "steps", expected: "at least 0 and below 2⁵³", actual: "\(steps)")
        try self.init(denseLayers: Int(layerRatio * Double(layers)), denseSteps: Int(stepRatio * Double(steps)))
    }

    /// The released rules, which look at timesteps and not at the number of a step.
    ///
    /// - Wan, Cosmos, HunyuanVideo: ⌊ratio · layers⌋ layers. With n = ⌊ratio · steps⌋, timesteps above `timesteps[n − 1]` − 1 are
    ///   dense: the first n steps, and any that follow within less than 1. None are for n = 0.
    /// - CogVideoX: layers below ratio · `layers`, hence ⌈ratio · layers⌉ of them, and timesteps above 1000 · (1 − ratio).
    ///
    /// - Parameters:
    ///   - model: whose rules.
    ///   - layers: layers of the model. CogVideoX has 42.
    ///   - timesteps: those of the scheduler, in the order of the steps, not ascending.
    ///   - layerRatio: 0…1 (`first_layers_fp`).
    ///   - stepRatio: 0…1 (`first_times_fp`).
    /// - Throws: `.invalidArgument` for a negative number, ratios outside 0…1, and timesteps that ascend or are not finite.
    public init(
        released model: SVGModel, layers: Int, timesteps: [Double], layerRatio: Double, stepRatio: Double
    ) throws(SparseKernelsError) {
        try Self.check(layers: layers, layerRatio: layerRatio, stepRatio: stepRatio)
        for (index, timestep) in timesteps.enumerated() {
            let previous = index == 0 ? Double.greatestFiniteMagnitude : timesteps[index - 1]
            try require(
                timestep.isFinite && timestep <= previous, .invalidArgument, "timesteps[\(index)]",
                expected: "finite and at most \(previous), the timestep before", actual: "\(timestep)")
        }
        let threshold: Double
        switch model {
        case .cogVideoX:
            denseLayers = Int((Double(layers) * layerRatio).rounded(.up))
            threshold = 1000 * (1 - stepRatio)
        case .hunyuanVideo, .wan:
            denseLayers = Int(layerRatio * Double(layers))
            let steps = Int(stepRatio * Double(timesteps.count))
            // Timesteps end at 1000.
            threshold = steps > 0 ? timesteps[steps - 1] - 1 : 1001
        }
        denseSteps = timesteps.prefix { $0 > threshold }.count
        timestepThreshold = threshold
    }

    private static func check(layers: Int, layerRatio: Double, stepRatio: Double) throws(SparseKernelsError) {
        // Conversions of more layers to Double would round.
        try require(
            layers >= 0 && layers < 1 << 53, .invalidArgument, "layers", expected: "at least 0 and below 2⁵³",
            actual: "\(layers)")
        for (name, ratio) in [("layerRatio", layerRatio), ("stepRatio", stepRatio)] {
            try require(ratio >= 0 && ratio <= 1, .invalidArgument, name, expected: "from 0 to 1", actual: "\(ratio)")
        }
    }

    /// Whether attention of a layer is dense in a step, both counted from 0.
    public func isDense(layer: Int, step: Int) -> Bool { layer < denseLayers || step < denseSteps }

    /// Whether attention of a layer is dense at a timestep, under released rules. Other values have no timesteps, and only
    /// layers decide.
    public func isDense(layer: Int, timestep: Double) -> Bool {
        layer < denseLayers || timestepThreshold.map { timestep > $0 } ?? false
    }
}
