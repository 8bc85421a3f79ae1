internal import KernelInterface

/// The points that are drawn as the first centroids.
struct KMeansDraws {
    private let plan: KMeans
    /// `[heads, clusters]`.
    private var drawn: [Int32]
    private var generators: [SplitMix64]

    init(_ plan: KMeans, seed: UInt64) {
        self.plan = plan
        drawn = [Int32](repeating: 0, count: plan.heads * plan.clusters)
        // Streams of seeds that differ by one would overlap after one step; outputs of a generator set them apart.
        var seeds = SplitMix64(seed: seed)
        generators = (0..<plan.heads).map { _ in SplitMix64(seed: seeds.next()) }
    }

    /// Draws with replacement.
    mutating func drawUniformly() {
        for head in 0..<plan.heads {
            for cluster in 0..<plan.clusters { drawn[head * plan.clusters + cluster] = anyPoint(head) }
        }
    }

    private mutating func anyPoint(_ head: Int) -> Int32 {
        Int32(Int.random(in: 0..<plan.points, using: &generators[head]))
    }

    /// Draws each next point in proportion to its squared distance from the nearest one drawn.
    ///
    /// Points that are not finite are drawn only when no other is left.
    mutating func drawByDistance(_ points: AttentionOperand, on pool: WorkerPool) throws(SparseKernelsError) {
        let count = plan.points
        var nearest = [Float](repeating: .infinity, count: plan.heads * count)
        let single = try KMeans(
            heads: plan.heads, points: count, channels: plan.channels, clusters: 1, instructionSet: plan.instructionSet)
        var state = KMeansState(single)
        for cluster in 0..<plan.clusters {
            for head in 0..<plan.heads {
                drawn[head * plan.clusters + cluster] =
                    cluster == 0 ? anyPoint(head) : point(nearest[head * count..<(head + 1) * count], head)
            }
            if cluster == plan.clusters - 1 { break }
            var last = KMeansDraws(single, seed: 0)
            for head in 0..<plan.heads { last.drawn[head] = drawn[head * plan.clusters + cluster] }
            try state.assign(points, to: last.rows(of: points, on: pool), on: pool)
            for index in nearest.indices { nearest[index] = min(nearest[index], state.distances[index]) }
        }
    }

    private mutating func point(_ distances: ArraySlice<Float>, _ head: Int) -> Int32 {
        func weight(_ distance: Float) -> Double { distance < .infinity ? Double(distance) : 0 }
        let total = distances.reduce(0) { $0 + weight($1) }
        if total <= 0 { return anyPoint(head) }
        var rest = Double.random(in: 0..<total, using: &generators[head])
        var last = 0
        for (index, distance) in distances.enumerated() where weight(distance) > 0 {
            last = index
            rest -= weight(distance)
            if rest < 0 { break }
        }
        return Int32(last)
    }

    /// The drawn rows, `[heads, clusters, channels]`.
    func rows(of points: AttentionOperand, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float> {
        try Tensor(gathering: drawn, lists: plan.heads, from: points, plan.kernels, on: pool)
    }
}
