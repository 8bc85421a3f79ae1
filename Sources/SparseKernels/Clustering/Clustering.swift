/// The clusters of the rows of several heads.
public struct Clustering: Sendable {
    /// The cluster of every row, `[heads, points]`.
    public let labels: Tensor<Int32>
    /// The centroids, `[heads, clusters, channels]`.
    public let centroids: Tensor<Float>
    /// The number of rows of every cluster, `[heads][clusters]`. Some may be 0.
    public let sizes: [[Int]]
    /// The rows of each head by cluster: those of cluster 0, of cluster 1 and so on, ascending within a cluster.
    public let permutation: Permutation
    /// Squared distances of rows to the centroid that they were assigned to, `[heads, points]`. A row that is not finite has
    /// +∞.
    public let distances: Tensor<Float>
    /// Iterations that were performed; 0 for an assignment to given centroids.
    public let iterations: Int

    init(_ plan: KMeans, _ state: KMeansState, centroids: Tensor<Float>, iterations: Int) throws(SparseKernelsError) {
        labels = try Tensor([plan.heads, plan.points], state.labels)
        distances = try Tensor([plan.heads, plan.points], state.distances)
        self.centroids = centroids
        sizes = (0..<plan.heads).map { Array(state.sizes[$0 * plan.clusters..<($0 + 1) * plan.clusters]) }
        permutation = Permutation(unchecked: state.order, heads: plan.heads, length: plan.points)
        self.iterations = iterations
    }

    /// The clusters of a head as blocks of its permuted rows.
    /// - Throws: nothing for a head of the clustering.
    public func partition(head: Int) throws(SparseKernelsError) -> BlockPartition { try BlockPartition(sizes: sizes[head]) }

    /// The sum of the squared distances of a head's rows that are finite, which k-means minimises.
    public func inertia(head: Int) -> Double {
        var sum = 0.0
        let count = labels.shape[1]
        for index in head * count..<(head + 1) * count where distances[flat: index] < .infinity {
            sum += Double(distances[flat: index])
        }
        return sum
    }
}
