internal import KernelInterface

/// k-means clustering of rows by Euclidean distance (Lloyd's algorithm), batched over heads.
///
/// ```swift
/// let kMeans = try KMeans(heads: 24, points: 51_480, channels: 128, clusters: 500)
/// let start = try kMeans.initialCentroids(of: key, .uniform, seed: 7)
/// let clusters = try kMeans(key, from: start, iterations: 50)
/// ```
///
/// Each iteration assigns every point to its nearest centroid, where the lowest index wins ties, and moves every centroid to
/// the mean of its points. A cluster without points keeps its centroid.
///
/// - A point whose squared norm is not finite is in cluster 0 and counts in no mean, so that it cannot spoil a cluster. A
///   centroid that is not finite gets no points.
/// - Results are bitwise equal for every number of threads.
/// - Source: `batch_kmeans_Euclid` of Sparse VideoGen 2 (Yang et al., 2025, arXiv 2505.18875).
/// - Complexity: `heads · points · clusters · channels` multiply-adds per iteration.
/// - Scratch: 12 bytes per point, 4 bytes per centroid channel, and one panel of points per thread.
public struct KMeans: Sendable {
    public let heads: Int
    /// Rows of each head.
    public let points: Int
    public let channels: Int
    /// Clusters of each head.
    public let clusters: Int
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    let kernels: any KernelTable.Type

    /// How the first centroids are chosen from the points.
    public enum Initialization: String, Hashable, Sendable, CaseIterable {
        /// Points drawn uniformly with replacement, as released. The same point may be drawn twice; then the cluster of the
        /// higher index is empty.
        case uniform
        /// k-means++ (Arthur and Vassilvitskii, 2007): each next point is drawn with a probability in proportion to its squared
        /// distance from the nearest one so far. It costs as much as an iteration at a quarter of the speed.
        case plusPlus
    }

    /// - Parameters:
    ///   - heads: at least 1.
    ///   - points: rows per head.
    ///   - channels: at least 1.
    ///   - clusters: 1…`points`.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` naming the extent that is out of range, or for extents whose work overflows;
    ///   `.unsupportedInstructionSet`.
    public init(
        heads: Int = 1, points: Int, channels: Int, clusters: Int, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        for (name, extent) in [("heads", heads), ("channels", channels)] {
            try require(extent >= 1, .invalidShape, name, expected: "at least 1", actual: "\(extent)")
        }
        try require(
            points >= 0 && points <= Int(Int32.max), .invalidShape, "points", expected: "at least 0 and below 2³¹",
            actual: "\(points)")
        try require(
            clusters >= 1 && clusters <= points, .invalidShape, "clusters",
            expected: "from 1 to \(points), the number of points",
            actual: "\(clusters)")
        var work = (partialValue: heads, overflow: false)
        for extent in [points, clusters, channels] where !work.overflow {
            work = work.partialValue.multipliedReportingOverflow(by: extent)
        }
        try require(
            !work.overflow && work.partialValue < 1 << 60, .invalidShape, "shape",
            expected: "such that heads · points · clusters · channels is below 2⁶⁰",
            actual: "\(heads) · \(points) · \(clusters) · \(channels)")
        self.heads = heads
        self.points = points
        self.channels = channels
        self.clusters = clusters
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Clusters the points.
    ///
    /// - Parameters:
    ///   - points: heads × points × channels, in any layout.
    ///   - centroids: where clusters start, `[heads, clusters, channels]`: `initialCentroids`, or those of an earlier call.
    ///   - iterations: the most iterations, at least 1.
    ///   - tolerance: iterations end when no centroid of any head would move by this distance; the last move is then not made.
    ///   - roundsCentroids: rounds centroids to the element type of the points after every iteration, as released.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: the last assignment, and the means of its clusters: one update more than assignments saw. When iterations
    ///   ended by tolerance, the centroids are those of the assignment.
    /// - Throws: `.invalidShape` for operands of other extents; `.invalidArgument` for no iterations or a negative tolerance.
    public func callAsFunction<Element: AttentionElement>(
        _ points: TensorView<Element>, from centroids: Tensor<Float>, iterations: Int, tolerance: Float = 1e-4,
        roundsCentroids: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Clustering {
        try check(points, centroids)
        try require(iterations >= 1, .invalidArgument, "iterations", expected: "at least 1", actual: "\(iterations)")
        try require(tolerance >= 0, .invalidArgument, "tolerance", expected: "at least 0", actual: "\(tolerance)")
        let rounding = roundsCentroids ? Element.storageType : .float32
        let operand = AttentionOperand(points)
        var state = KMeansState(self)
        var (current, done) = (centroids, 0)
        while done < iterations {
            state.assign(operand, to: current, on: pool)
            var next = current
            let shift = state.update(&next, operand, rounding: rounding, on: pool)
            done += 1
            if shift < tolerance { break }
            current = next
        }
        return try Clustering(self, state, centroids: current, iterations: done)
    }

    /// Clusters the points of a tensor `[heads, points, channels]`. See the call with a view.
    public func callAsFunction<Element: AttentionElement>(
        _ points: Tensor<Element>, from centroids: Tensor<Float>, iterations: Int, tolerance: Float = 1e-4,
        roundsCentroids: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Clustering {
        try self(
            points.view(named: "points"), from: centroids, iterations: iterations, tolerance: tolerance,
            roundsCentroids: roundsCentroids, on: pool)
    }

    /// Assigns points to given centroids and changes none of them.
    /// - Throws: `.invalidShape` for operands of other extents.
    public func assign<Element: AttentionElement>(
        _ points: TensorView<Element>, to centroids: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Clustering {
        try check(points, centroids)
        var state = KMeansState(self)
        state.assign(AttentionOperand(points), to: centroids, on: pool)
        state.sort(on: pool)
        return try Clustering(self, state, centroids: centroids, iterations: 0)
    }

    /// The clusters of given labels, with the means of their points as centroids.
    ///
    /// - Parameters:
    ///   - points: heads × points × channels, in any layout.
    ///   - labels: the cluster of each point, `[heads, points]`.
    ///   - centroids: what clusters without points keep, `[heads, clusters, channels]`.
    ///   - roundsCentroids: rounds centroids to the element type of the points, as released.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for operands of other extents, `.invalidArgument` for a label that is not a cluster.
    public func clusters<Element: AttentionElement>(
        _ points: TensorView<Element>, labels: Tensor<Int32>, keeping centroids: Tensor<Float>,
        roundsCentroids: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Clustering {
        try check(points, centroids)
        try require(
            labels.shape == [heads, self.points], .invalidShape, "labels",
            expected: "[heads, points] = \([heads, self.points])", actual: "\(labels.shape)")
        for (index, label) in labels.elements.enumerated() {
            try require(
                label >= 0 && label < clusters, .invalidArgument, "labels[\(index)]", expected: "from 0 to \(clusters - 1)",
                actual: "\(label)")
        }
        var (state, means) = (KMeansState(self), centroids)
        // Distances to some finite centroids say which points are finite.
        state.assign(AttentionOperand(points), to: try Tensor(zeros: centroids.shape), on: pool)
        state.replaceLabels(labels.elements)
        _ = state.update(
            &means, AttentionOperand(points), rounding: roundsCentroids ? Element.storageType : .float32, on: pool)
        for index in labels.elements.indices {
            let (head, point) = index.quotientAndRemainder(dividingBy: self.points)
            let first = (head * clusters + Int(labels[flat: index])) * channels
            var sum = 0.0
            for channel in 0..<channels {
                let distance = Double(points[head, point, channel].floatValue) - Double(means[flat: first + channel])
                sum += distance * distance
            }
            state.replaceDistance(of: index, by: Float(sum))
        }
        return try Clustering(self, state, centroids: means, iterations: 0)
    }

    /// The first centroids, `[heads, clusters, channels]`, which are rows of the points.
    ///
    /// - Parameters:
    ///   - points: heads × points × channels, in any layout.
    ///   - method: how rows are drawn.
    ///   - seed: heads draw from streams of their own, so the choice of a head does not depend on the others.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for points of other extents.
    public func initialCentroids<Element: AttentionElement>(
        of points: TensorView<Element>, _ method: Initialization = .uniform, seed: UInt64 = 0, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try points.geometry.requireExtents("points", heads: heads, tokens: self.points, channels: channels)
        var draws = KMeansDraws(self, seed: seed)
        switch method {
        case .uniform: draws.drawUniformly()
        case .plusPlus: try draws.drawByDistance(AttentionOperand(points), on: pool)
        }
        return try draws.rows(of: AttentionOperand(points), on: pool)
    }

    /// The first centroids of a tensor `[heads, points, channels]`. See the function with a view.
    public func initialCentroids<Element: AttentionElement>(
        of points: Tensor<Element>, _ method: Initialization = .uniform, seed: UInt64 = 0, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try initialCentroids(of: points.view(named: "points"), method, seed: seed, on: pool)
    }

    private func check<Element: AttentionElement>(
        _ points: TensorView<Element>, _ centroids: Tensor<Float>
    ) throws(SparseKernelsError) {
        try points.requireMemory(named: "points")
        try points.geometry.requireExtents("points", heads: heads, tokens: self.points, channels: channels)
        try require(
            centroids.shape == [heads, clusters, channels], .invalidShape, "centroids",
            expected: "[heads, clusters, channels] = \([heads, clusters, channels])", actual: "\(centroids.shape)")
    }
}
