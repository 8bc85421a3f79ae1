public import CATS
public import SparseKernels
public import SparseKernelsModels

/// How MLPs are computed, as people write it: `dense`, `cats:0.5` for CATS at a sparsity, or `cats:FILE` with thresholds that were found
/// before.
public enum MLPSpec: Hashable, Sendable, CustomStringConvertible {
    case dense
    /// Thresholds are found when the model is loaded.
    case cats(sparsity: Double)
    case thresholds(file: String)

    /// The forms.
    public static let help = """
        dense, cats:SPARSITY (0 to below 1) with thresholds that are found on the sources of the repository, or cats:FILE with those of \
        sparse-lm thresholds. CATS needs weights of 16 or 32 bits.
        """

    /// - Throws: `.invalidArgument` for a name that is not known, or a sparsity out of range.
    public init(_ text: String) throws(SparseKernelsError) {
        if text == "dense" {
            self = .dense
        } else if text.hasPrefix("cats:"), let sparsity = Double(text.dropFirst(5)), sparsity >= 0, sparsity < 1 {
            self = .cats(sparsity: sparsity)
        } else if text.hasPrefix("cats:"), text.count > 5, Double(text.dropFirst(5)) == nil {
            self = .thresholds(file: String(text.dropFirst(5)))
        } else {
            throw SparseKernelsError(
                .invalidArgument, "mlp", expected: "dense, cats:SPARSITY from 0 to below 1, or cats:FILE", actual: "\"\(text)\""
            )
        }
    }

    /// Reads a list with commas between.
    public static func list(_ text: String) throws(SparseKernelsError) -> [MLPSpec] {
        var specs: [MLPSpec] = []
        for part in text.split(separator: ",", omittingEmptySubsequences: false) { specs.append(try MLPSpec(String(part))) }
        return specs
    }

    public var description: String {
        switch self {
        case .dense: "dense"
        case .cats(let sparsity): "cats:\(sparsity)"
        case .thresholds(let file): "cats:\(file)"
        }
    }

    /// The thresholds to load a model with: zeros where they are found afterwards, nil for dense MLPs.
    /// - Throws: the errors of the file, and of the model's configuration.
    public func thresholds(folder: String) throws(SparseKernelsError) -> CATSThresholds? {
        switch self {
        case .dense: nil
        case .cats: try LanguageModel.zeroThresholds(folder: folder)
        case .thresholds(let file): try CATSThresholds(path: file)
        }
    }

    /// The model that was loaded with `thresholds`, with those that its sparsity needs.
    ///
    /// - Parameters:
    ///   - text: makes the text of the calibration, if there is one.
    ///   - plan: how much of it is run.
    public func calibrated(
        _ model: LanguageModel, plan: CATSPlan = CATSPlan(), on pool: WorkerPool = .shared,
        text: () throws(SparseKernelsError) -> TextCorpus
    ) throws(SparseKernelsError) -> LanguageModel {
        guard case .cats(let sparsity) = self, sparsity > 0 else { return model }
        return try model.with(plan.thresholds(model, sparsity: sparsity, text: text(), on: pool))
    }
}

/// How much text the thresholds of CATS are found on. A thousand tokens say a quantile of a layer's entries to a few parts in a
/// thousand, as each has all channels of the layer.
public struct CATSPlan: Hashable, Sendable {
    public var windows = 8
    /// Tokens of a window.
    public var context = 1024

    public init() {}

    /// The thresholds at which every MLP drops a part of its activations on windows that are spread evenly over a text.
    ///
    /// - Throws: `.invalidArgument` for a text that is too short; the errors of `LanguageModel.catsThresholds`.
    public func thresholds(
        _ model: LanguageModel, sparsity: Double, text: TextCorpus, on pool: WorkerPool = .shared,
        progress: (Int) -> Void = { _ in }
    ) throws(SparseKernelsError) -> CATSThresholds {
        let ranges = try text.windows(windows, length: context)
        return try model.catsThresholds(
            sparsity: sparsity, windows: ranges.map { Array(text.tokens[$0]) }, on: pool, progress: progress)
    }
}
