public import SparseKernels

/// Lloyd's algorithm in `Double` for the rows of one head, written from its definition.
public struct ReferenceKMeans: Sendable {
    /// Rows of the head.
    public let points: [[Double]]

    public init(points: [[Double]]) { self.points = points }

    /// The rows of one head of an operand.
    public init<Element: AttentionElement>(_ points: TensorView<Element>, head: Int) { self.points = points.rows(head: head) }

    /// Whether a row counts: a row that is not finite has no distance to any centroid.
    public func isFinite(_ point: Int) -> Bool { points[point].allSatisfy(\.isFinite) }

    /// ‖x − c‖².
    public func distance(_ point: Int, to centroid: [Double]) -> Double {
        zip(points[point], centroid).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }
    }

    /// The nearest centroid of every row. The lowest index wins ties, and is the label of rows that are not finite.
    public func labels(_ centroids: [[Double]]) -> [Int] {
        points.indices.map { point in
            var (best, label) = (Double.infinity, 0)
            for (cluster, centroid) in centroids.enumerated() {
                let distance = distance(point, to: centroid)
                if distance < best { (best, label) = (distance, cluster) }
            }
            return label
        }
    }

    /// The means of the finite rows of each cluster. A cluster without any keeps its centroid.
    public func means(_ labels: [Int], keeping centroids: [[Double]]) -> [[Double]] {
        centroids.indices.map { cluster in
            let members = points.indices.filter { labels[$0] == cluster && isFinite($0) }
            if members.isEmpty { return centroids[cluster] }
            return centroids[cluster].indices.map { channel in
                members.reduce(0) { $0 + points[$1][channel] } / Double(members.count)
            }
        }
    }
}
