internal import KernelInterface

/// The assignment of a call, and the points of each head sorted by it.
struct KMeansState {
    private let plan: KMeans
    /// `[heads, points]`.
    private(set) var labels: [Int32]
    /// Squared distances to the nearest centroid, `[heads, points]`.
    private(set) var distances: [Float]
    /// The points of each head by cluster, ascending within a cluster, `[heads, points]`.
    private(set) var order: [Int32]
    /// The number of points of each cluster, `[heads, clusters]`.
    private(set) var sizes: [Int]

    init(_ plan: KMeans) {
        self.plan = plan
        labels = [Int32](repeating: 0, count: plan.heads * plan.points)
        distances = [Float](repeating: .infinity, count: plan.heads * plan.points)
        order = labels
        sizes = [Int](repeating: 0, count: plan.heads * plan.clusters)
    }

    /// Finds the nearest centroid of every point.
    mutating func assign(_ points: AttentionOperand, to centroids: Tensor<Float>, on pool: WorkerPool) {
        let source = centroids.span
        source.withUnsafeBufferPointer { centroids in
            labels.withUnsafeMutableBufferPointer { labels in
                distances.withUnsafeMutableBufferPointer { distances in
                    AssignCall(
                        points: points, heads: plan.heads, clusters: plan.clusters, centroids: centroids.baseAddress!,
                        labels: labels.baseAddress!, distances: distances.baseAddress!, kernels: plan.kernels
                    ).run(on: pool)
                }
            }
        }
    }

    /// Takes labels of the caller, which are known to be clusters.
    mutating func replaceLabels(_ labels: [Int32]) { self.labels = labels }

    /// Sets the distance of a finite point to its centroid.
    mutating func replaceDistance(of point: Int, by distance: Float) {
        if distances[point] < .infinity { distances[point] = distance }
    }

    /// Sorts the points of every head by cluster: a counting sort, which keeps the order within a cluster.
    mutating func sort(on pool: WorkerPool) {
        let (points, clusters) = (plan.points, plan.clusters)
        labels.withUnsafeBufferPointer { labels in
            order.withUnsafeMutableBufferPointer { order in
                sizes.withUnsafeMutableBufferPointer { sizes in
                    let call = SortCall(
                        points: points, clusters: clusters, labels: labels.baseAddress!, order: order.baseAddress!,
                        sizes: sizes.baseAddress!)
                    pool.run(call, tasks: plan.heads, work: plan.heads * points * 8, scratchByteCount: (clusters + 1) * 8)
                }
            }
        }
    }

    /// Replaces centroids by the means of their points.
    /// - Returns: the largest distance that one moves, over all heads.
    mutating func update(
        _ centroids: inout Tensor<Float>, _ points: AttentionOperand, rounding: StorageType, on pool: WorkerPool
    ) -> Float {
        sort(on: pool)
        var shifts = [Float](repeating: 0, count: plan.heads * plan.clusters)
        var target = centroids.mutableSpan
        target.withUnsafeMutableBufferPointer { centroids in
            shifts.withUnsafeMutableBufferPointer { shifts in
                order.withUnsafeBufferPointer { order in
                    sizes.withUnsafeBufferPointer { sizes in
                        distances.withUnsafeBufferPointer { distances in
                            MeanCall(
                                points: points, heads: plan.heads, clusters: plan.clusters, order: order.baseAddress!,
                                sizes: sizes.baseAddress!, distances: distances.baseAddress!,
                                centroids: centroids.baseAddress!, shifts: shifts.baseAddress!, rounding: rounding,
                                kernels: plan.kernels
                            ).run(on: pool)
                        }
                    }
                }
            }
        }
        return shifts.max() ?? 0
    }
}

/// Assigns the points of all heads. A task has rows of one head.
struct AssignCall: PoolCall {
    /// Points per task: a multiple of every panel width. 192 points meet 100 clusters × 64 channels in a million multiply-adds.
    static let rowsPerTask = 192

    let points: AttentionOperand
    let heads: Int
    let clusters: Int
    /// `[heads, clusters, channels]`.
    let centroids: UnsafePointer<Float>
    let labels: UnsafeMutablePointer<Int32>
    let distances: UnsafeMutablePointer<Float>
    let kernels: any KernelTable.Type
    /// ‖c‖² with the padding of the kernel, `[heads, padded clusters]`.
    private let norms: [Float]

    init(
        points: AttentionOperand, heads: Int, clusters: Int, centroids: UnsafePointer<Float>,
        labels: UnsafeMutablePointer<Int32>, distances: UnsafeMutablePointer<Float>, kernels: any KernelTable.Type
    ) {
        self.points = points
        self.heads = heads
        self.clusters = clusters
        self.centroids = centroids
        self.labels = labels
        self.distances = distances
        self.kernels = kernels
        let (padded, channels) = (AssignScratch.paddedClusters(clusters), points.geometry.channels)
        var norms = [Float](repeating: .infinity, count: heads * padded)
        for head in 0..<heads {
            for cluster in 0..<clusters {
                let centroid = centroids + (head * clusters + cluster) * channels
                var sum = 0.0
                for channel in 0..<channels { sum += Double(centroid[channel]) * Double(centroid[channel]) }
                norms[head * padded + cluster] = Float(sum)
            }
        }
        self.norms = norms
    }

    private var groups: Int { (points.geometry.tokens + Self.rowsPerTask - 1) / Self.rowsPerTask }

    func run(on pool: WorkerPool) {
        pool.run(
            self, tasks: heads * groups, work: heads * points.geometry.tokens * clusters * points.geometry.channels,
            scratchByteCount: AssignScratch(channels: points.geometry.channels).byteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (head, first) = (task / groups, task % groups * Self.rowsPerTask)
        let (tokens, channels) = (points.geometry.tokens, points.geometry.channels)
        norms.withUnsafeBufferPointer { norms in
            var arguments = AssignArguments(
                points: points.rows(head: head, from: first), count: min(Self.rowsPerTask, tokens - first), channels: channels,
                centroids: centroids + head * clusters * channels, clusters: clusters,
                norms: norms.baseAddress! + head * AssignScratch.paddedClusters(clusters),
                labels: labels + head * tokens + first, distances: distances + head * tokens + first, scratch: scratch)
            kernels.assignRows(&arguments)
        }
    }
}

/// Sorts the points of a head by label.
private struct SortCall: PoolCall {
    let points: Int
    let clusters: Int
    let labels: UnsafePointer<Int32>
    let order: UnsafeMutablePointer<Int32>
    let sizes: UnsafeMutablePointer<Int>

    func perform(task head: Int, scratch: UnsafeMutableRawPointer) {
        let (labels, order, sizes) = (labels + head * points, order + head * points, sizes + head * clusters)
        let next = scratch.assumingMemoryBound(to: Int.self)
        for cluster in 0..<clusters { sizes[cluster] = 0 }
        for point in 0..<points { sizes[Int(labels[point])] += 1 }
        var first = 0
        for cluster in 0..<clusters {
            next[cluster] = first
            first += sizes[cluster]
        }
        for point in 0..<points {
            let cluster = Int(labels[point])
            order[next[cluster]] = Int32(truncatingIfNeeded: point)
            next[cluster] += 1
        }
    }
}

/// Moves centroids to the means of their points. A task has some clusters of one head.
private struct MeanCall: PoolCall {
    /// Clusters per task: 16 of 100 points × 128 channels are 800 KB to read.
    private static let clustersPerTask = 16
    /// Points summed in `Float`. These sums are added in `Double`, so that the mean of any number of points is rounded like
    /// that of 16.
    private static let pointsPerSum = 16

    let points: AttentionOperand
    let heads: Int
    let clusters: Int
    let order: UnsafePointer<Int32>
    let sizes: UnsafePointer<Int>
    let distances: UnsafePointer<Float>
    let centroids: UnsafeMutablePointer<Float>
    let shifts: UnsafeMutablePointer<Float>
    let rounding: StorageType
    let kernels: any KernelTable.Type

    private var groups: Int { (clusters + Self.clustersPerTask - 1) / Self.clustersPerTask }

    func run(on pool: WorkerPool) {
        let geometry = points.geometry
        pool.run(
            self, tasks: heads * groups, work: heads * geometry.tokens * geometry.channels * 4,
            scratchByteCount: geometry.channels * 16 + Self.pointsPerSum * 4)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (head, first) = (task / groups, task % groups * Self.clustersPerTask)
        let (tokens, channels) = (points.geometry.tokens, points.geometry.channels)
        let totals = scratch.assumingMemoryBound(to: Double.self)
        let sums = (scratch + channels * 8).assumingMemoryBound(to: Float.self)
        let listed = (scratch + channels * 16).assumingMemoryBound(to: Int32.self)
        var rows = points.rows(head: head)
        var start = (0..<first).reduce(head * tokens) { $0 + sizes[head * clusters + $1] }
        for cluster in first..<min(clusters, first + Self.clustersPerTask) {
            let size = sizes[head * clusters + cluster]
            defer { start += size }
            for channel in 0..<channels { totals[channel] = 0 }
            var (count, pending) = (0, 0)
            func flush() {
                kernels.sumListedRows(
                    &rows, rows: listed, count: pending, channels: channels, staging: sums + channels, into: sums)
                for channel in 0..<channels { totals[channel] += Double(sums[channel]) }
                count += pending
                pending = 0
            }
            for index in start..<start + size {
                // A point that is not finite has no distance to any centroid.
                if distances[head * tokens + Int(order[index])] == .infinity { continue }
                listed[pending] = order[index]
                pending += 1
                if pending == Self.pointsPerSum { flush() }
            }
            if pending > 0 { flush() }
            if count == 0 { continue }
            let centroid = centroids + (head * clusters + cluster) * channels
            var shift = 0.0
            for channel in 0..<channels {
                let mean = rounding.rounded(Float(totals[channel] / Double(count)))
                let move = Double(mean) - Double(centroid[channel])
                shift += move * move
                centroid[channel] = mean
            }
            shifts[head * clusters + cluster] = Float(shift.squareRoot())
        }
    }
}
