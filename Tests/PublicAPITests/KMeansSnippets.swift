import SparseKernels
import Testing

/// The snippets of Docs/Operators/KMeans.md, with checks of their comments.
@Suite("Snippets: k-means")
struct KMeansSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("clusters, and the next step")
    func clusters() throws {
        let (key, nextKey) = try (Self.pattern([2, 300, 16], 7), Self.pattern([2, 300, 16], 11))

        let kMeans = try KMeans(heads: 2, points: 300, channels: 16, clusters: 10)
        let start = try kMeans.initialCentroids(of: key, .plusPlus, seed: 7)
        let clusters = try kMeans(key, from: start, iterations: 50)
        print(clusters.labels.shape, clusters.centroids.shape)  // [2, 300] [2, 10, 16]
        print(clusters.sizes[0], clusters.inertia(head: 0))  // rows by cluster; the sum of squared distances
        // Rows that moved a little need few iterations from where they were.
        let next = try kMeans(nextKey, from: clusters.centroids, iterations: 2)
        print(next.iterations)  // 2, or 1 when nothing moves

        #expect(clusters.labels.shape == [2, 300] && clusters.centroids.shape == [2, 10, 16])
        #expect(clusters.sizes[0].reduce(0, +) == 300 && clusters.inertia(head: 0) >= 0)
        #expect((1...2).contains(next.iterations))
    }

    @Test("rows by cluster, and labels of others")
    func order() throws {
        let key = try Self.pattern([2, 300, 16], 7)
        let kMeans = try KMeans(heads: 2, points: 300, channels: 16, clusters: 10)
        let clusters = try kMeans(key, from: kMeans.initialCentroids(of: key), iterations: 3)

        // The rows of a head by cluster, and where each cluster begins.
        let sorted = try clusters.permutation.gathered(key.view())
        let partition = try clusters.partition(head: 0)
        print(sorted.shape, partition[3])  // [2, 300, 16], and the rows of cluster 3 in head 0
        // Labels for given centroids, and centroids for given labels.
        let assigned = try kMeans.assign(key.view(), to: clusters.centroids)
        let means = try kMeans.clusters(key.view(), labels: assigned.labels, keeping: clusters.centroids)

        #expect(sorted.shape == [2, 300, 16] && partition[3].count == clusters.sizes[0][3])
        #expect(assigned.centroids == clusters.centroids && means.labels == assigned.labels)
    }
}
