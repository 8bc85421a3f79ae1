public import SparseKernels

/// The clusters of a call, and the key clusters that each query cluster keeps.
public struct SVG2Selection: Sendable {
    /// Clusters of the video's queries, by query head.
    public let query: Clustering
    /// Clusters of the video's keys, by KV head.
    public let key: Clustering
    /// One mask per query head over the tokens in the order of clusters, with text and padding as clusters of their own.
    public let masks: [BlockMask]
    /// The order of tokens that makes clusters adjacent, by query head. Text stays in its place.
    public let queryOrder: Permutation
    /// The order of keys and values, by KV head.
    public let keyOrder: Permutation

    /// The fraction of all pairs of tokens that a head keeps, text included.
    public func density(head: Int) -> Double {
        let grid = masks[head].grid
        let pairs = grid.query.length * grid.key.length
        return pairs == 0 ? 1 : Double(masks[head].visiblePairs) / Double(pairs)
    }

    /// The mean density of the heads.
    public var density: Double { masks.indices.reduce(0) { $0 + density(head: $1) } / Double(max(1, masks.count)) }

    /// The centroids from which the next step starts.
    public func centroids(_ geometry: VideoGeometry) -> SVG2Centroids {
        SVG2Centroids(query: query.centroids, key: key.centroids, geometry: geometry)
    }
}
