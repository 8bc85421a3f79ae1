/// Points of one head and the centroids that they are assigned to.
public struct AssignArguments {
    /// Row 0 is the first point.
    public var points: RowOperand
    public var count: Int
    public var channels: Int
    /// Adjacent rows of `channels` floats.
    public var centroids: UnsafePointer<Float>
    public var clusters: Int
    /// ‖c‖² of each centroid, with memory for `AssignScratch.paddedClusters` floats, +∞ behind the last one.
    public var norms: UnsafePointer<Float>
    /// The index of the nearest centroid of each point.
    public var labels: UnsafeMutablePointer<Int32>
    /// The squared distance to it; +∞ for a point or centroids that are not finite.
    public var distances: UnsafeMutablePointer<Float>
    /// `AssignScratch.byteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        points: RowOperand, count: Int, channels: Int, centroids: UnsafePointer<Float>, clusters: Int,
        norms: UnsafePointer<Float>, labels: UnsafeMutablePointer<Int32>, distances: UnsafeMutablePointer<Float>,
        scratch: UnsafeMutableRawPointer
    ) {
        self.points = points
        self.count = count
        self.channels = channels
        self.centroids = centroids
        self.clusters = clusters
        self.norms = norms
        self.labels = labels
        self.distances = distances
        self.scratch = scratch
    }
}

/// The offsets of the scratch of an assignment, in floats. It has one panel of points.
public struct AssignScratch: Sendable {
    /// Floats across the widest panel of any instruction set.
    public static let maximumPanelWidth = 48
    /// Rows of the tallest register tile of any instruction set.
    public static let maximumTileRows = 8

    /// The panel's points as adjacent rows, before they are transposed.
    public let rows: Int
    /// The panel `[channels][lanes]`.
    public let panel: Int
    /// ‖x‖² of each point.
    public let norms: Int
    /// The smallest distance so far.
    public let distances: Int
    /// The index of its centroid, as 32-bit integers.
    public let labels: Int
    public let byteCount: Int

    public init(channels: Int) {
        let width = Self.maximumPanelWidth
        rows = 0
        panel = rows + channels * width
        norms = panel + channels * width
        distances = norms + width
        labels = distances + width
        byteCount = (labels + width) * 4
    }

    /// The floats of `norms` for a number of clusters.
    public static func paddedClusters(_ clusters: Int) -> Int {
        (clusters + maximumTileRows - 1) / maximumTileRows * maximumTileRows
    }
}
