public import SparseKernels

/// The settings of ``SVG2Attention``. The defaults are the paper's numbers of clusters and the budgets of the released scripts.
public struct SVG2Configuration: Hashable, Sendable {
    /// Clusters of the video's queries per head.
    public var queryClusters: Int
    /// Clusters of the video's keys per KV head.
    public var keyClusters: Int
    /// The fraction of the estimated attention mass that the kept key clusters of a query cluster have at least.
    public var mass: Double
    /// The fraction of the key clusters that every query cluster keeps at least, rounded down.
    public var minimumKeyRatio: Double
    /// Iterations of k-means from new centroids, for the first step of a video.
    public var initialIterations: Int
    /// Iterations of k-means from the centroids of the step before.
    public var stepIterations: Int
    /// How new centroids are drawn.
    public var initialization: KMeans.Initialization
    /// The seed of the draws.
    public var seed: UInt64
    /// Rounds centroids to the element type of the operands, as released.
    public var roundsCentroids: Bool
    /// How scores become probabilities, without ALiBi slopes: clusters have no positions. Selection uses the softmax scale only.
    public var modifiers: ScoreModifiers

    public init(
        queryClusters: Int = 100, keyClusters: Int = 500, mass: Double = 0.9, minimumKeyRatio: Double = 0.1,
        initialIterations: Int = 50, stepIterations: Int = 2, initialization: KMeans.Initialization = .uniform,
        seed: UInt64 = 0, roundsCentroids: Bool = false, modifiers: ScoreModifiers = ScoreModifiers()
    ) {
        self.queryClusters = queryClusters
        self.keyClusters = keyClusters
        self.mass = mass
        self.minimumKeyRatio = minimumKeyRatio
        self.initialIterations = initialIterations
        self.stepIterations = stepIterations
        self.initialization = initialization
        self.seed = seed
        self.roundsCentroids = roundsCentroids
        self.modifiers = modifiers
    }

    /// Throws naming the setting that is out of its domain. Mass and ratio are checked by `CentroidSelection`, clusters with the
    /// geometry.
    func validate(queryHeads: Int) throws(SparseKernelsError) {
        for (name, iterations) in [("initialIterations", initialIterations), ("stepIterations", stepIterations)] {
            try require(iterations >= 1, .invalidArgument, name, expected: "at least 1", actual: "\(iterations)")
        }
        try modifiers.validate(queryHeads: queryHeads)
        try require(
            modifiers.aliBiSlopes == nil, .invalidArgument, "modifiers.aliBiSlopes",
            expected: "nil, because heads reorder their tokens", actual: "slopes")
    }
}
