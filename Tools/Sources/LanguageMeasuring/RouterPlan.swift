import PolarSparsity
public import SparseKernels
public import SparseKernelsModels

/// How much text the routers of heads are fitted on. A router has a weight per feature and head, so several tokens for each feature
/// are enough.
public struct RouterPlan: Hashable, Sendable {
    public var windows = 4
    /// Tokens of a window.
    public var context = 1024

    public init() {}

    /// The model with routers for a method, fitted on windows that are spread evenly over a text; as it is for other methods.
    ///
    /// - Throws: `.invalidArgument` for a text that is too short; the errors of `LanguageModel.fittedHeadRouters`.
    public func model(
        _ model: LanguageModel, for method: MethodSpec, on pool: WorkerPool = .shared,
        text: () throws(SparseKernelsError) -> TextCorpus
    ) throws(SparseKernelsError) -> LanguageModel {
        guard method.needsHeadRouters else { return model }
        let corpus = try text()
        let ranges = try corpus.windows(windows, length: context)
        return try model.with(
            headRouters: model.fittedHeadRouters(
                windows: ranges.map { Array(corpus.tokens[$0]) }, byGroup: method.routesGroups, RouterFitting(), on: pool))
    }
}
