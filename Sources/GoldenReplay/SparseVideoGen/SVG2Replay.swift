internal import SparseKernels
internal import SparseVideoGen

/// `svg2.semantic_aware_permutation_attention`: every stage from the official tensors of the stage before.
///
/// Let u be the unit roundoff of the official type (2⁻²⁴ for fp32).
///
/// * First assignment: the distance to our centroid is at most that to theirs plus rounding. Norms are rounded by u each, and
///   products on the GPU to TF32 in the 16-bit cases: 2(‖x‖² + ‖c‖²)·(u + 2⁻¹¹); 2(‖x‖² + ‖c‖²)·12u in single precision.
/// * Centroids of the official labels: 1e-5, as recorded, or u of the value.
/// * Weights from official centroids: a score of magnitude up to M is rounded twice, which moves a weight by 4uM + 2u of itself.
///   Weights of less than 1e-6 are compared absolutely.
/// * Maps: a block that differs is within μ of the mass that decides. μ is 1e-5 for the map in float64, and 4uM + √n·u for the
///   official one, whose running sum over n clusters is in its type.
/// * Attention from the official labels and map: 2e-5, as recorded.
func replaySVG2(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(SVG2Parameters.self)
    switch parameters.type {
    case "fp32":
        var replay = try SVG2Replay<Float>(golden, parameters, instructionSet, pool, unitRoundoff: 0x1p-24)
        return try replay.run()
    case "bf16":
        var replay = try SVG2Replay<BFloat16>(golden, parameters, instructionSet, pool, unitRoundoff: 0x1p-8)
        return try replay.run()
    #if !(os(macOS) && arch(x86_64))
        case "fp16":
            var replay = try SVG2Replay<Float16>(golden, parameters, instructionSet, pool, unitRoundoff: 0x1p-11)
            return try replay.run()
    #endif
    default:
        throw SparseKernelsError(
            .invalidElementType, "dtype of \(golden.name)", expected: "fp32, bf16 or fp16", actual: parameters.type)
    }
}

private struct SVG2Parameters: Decodable {
    var type: String
    var queryClusters: Int
    var keyClusters: Int
    var iterations: Int
    var minimumKeyRatio: Double
    var tolerance: Float
    var mass: Double

    enum CodingKeys: String, CodingKey {
        case type = "dtype"
        case queryClusters = "q_clusters"
        case keyClusters = "k_clusters"
        case iterations = "max_iters"
        case minimumKeyRatio = "min_kc_ratio"
        case tolerance = "tol"
        case mass = "top_p"
    }
}

private struct SVG2Replay<Element: AttentionElement> {
    let golden: GoldenCase
    let parameters: SVG2Parameters
    let pool: WorkerPool
    let unitRoundoff: Double
    let query: Tensor<Element>
    let key: Tensor<Element>
    let value: Tensor<Element>
    let attention: SVG2Attention
    let queries: KMeans
    let keys: KMeans
    private var comparison = GoldenComparison()

    init(
        _ golden: GoldenCase, _ parameters: SVG2Parameters, _ instructionSet: InstructionSet, _ pool: WorkerPool,
        unitRoundoff: Double
    ) throws(SparseKernelsError) {
        self.golden = golden
        self.parameters = parameters
        self.pool = pool
        self.unitRoundoff = unitRoundoff
        let query = try golden.file.floatTensor("in.q").converted(to: Element.self)
        let key = try golden.file.floatTensor("in.k").converted(to: Element.self)
        let value = try golden.file.floatTensor("in.v").converted(to: Element.self)
        (self.query, self.key, self.value) = (query, key, value)
        let shape = try AttentionShape(
            query: query.view(named: "in.q"), key: key.view(named: "in.k"), value: value.view(named: "in.v"))
        attention = try SVG2Attention(
            shape, geometry: VideoGeometry(frames: 1, tokensPerFrame: shape.queryLength),
            SVG2Configuration(
                queryClusters: parameters.queryClusters, keyClusters: parameters.keyClusters, mass: parameters.mass,
                minimumKeyRatio: parameters.minimumKeyRatio, initialIterations: parameters.iterations, roundsCentroids: true),
            instructionSet: instructionSet)
        queries = try KMeans(
            heads: shape.queryHeads, points: shape.queryLength, channels: shape.headDim, clusters: parameters.queryClusters,
            instructionSet: instructionSet)
        keys = try KMeans(
            heads: shape.kvHeads, points: shape.keyLength, channels: shape.headDim, clusters: parameters.keyClusters,
            instructionSet: instructionSet)
    }

    mutating func run() throws(SparseKernelsError) -> GoldenResult {
        let queryClusters = try compareClusters("q", query, queries)
        let keyClusters = try compareClusters("k", key, keys)
        let kept = try compareMaps(queryClusters, keyClusters)
        let selected = try attention.selection(query: queryClusters, key: keyClusters, keeping: kept)
        let density = try golden.file.floatTensor("out.density")
        for head in 0..<density.count {
            let expected = Double(density[flat: head])
            comparison.compare(
                "out.density[\(head)]", actual: selected.density(head: head), expected: expected, bound: 1e-6 * expected)
        }
        // The official output is from single-precision copies of the inputs.
        let state = try attention.attention(over: selected)(query: query, key: key, value: value, on: pool)
        let output = try golden.file.floatTensor("out.attention_output")
        try require("out.attention_output", output.shape, state.output.shape)
        for index in 0..<output.count {
            comparison.compare(
                "out.attention_output[\(index)]", actual: Double(state.output[flat: index]),
                expected: Double(output[flat: index]), bound: 2e-5)
        }
        return comparison.result(golden)
    }

    private func require(_ name: String, _ actual: [Int], _ expected: [Int]) throws(SparseKernelsError) {
        if actual == expected { return }
        throw SparseKernelsError(
            .invalidShape, "\(name) of \(golden.name)", expected: "\(expected)", actual: "\(actual)")
    }

    // MARK: - Clusters

    /// Compares the stages of k-means, and returns the clusters of the official labels.
    private mutating func compareClusters(
        _ side: String, _ points: Tensor<Element>, _ kMeans: KMeans
    ) throws(SparseKernelsError) -> Clustering {
        let start = try golden.file.floatTensor("in.\(side)_init_centroids").converted(to: Element.self).converted(
            to: Float.self)
        let first = try kMeans.assign(points.view(), to: start, on: pool)
        let official = try golden.file.tensor("out.\(side)_first_assignment", as: Int32.self)
        try require("out.\(side)_first_assignment", official.shape, [kMeans.heads, kMeans.points])
        let rounding = Element.self == Float.self ? 12 * unitRoundoff : unitRoundoff + 0x1p-11
        compareLabels("out.\(side)_first_assignment", first.labels, official, points, start, rounding: rounding)
        if side == "q" {
            let exact = try golden.file.tensor("aux.f64_q_first_assignment", as: Int32.self)
            try require("aux.f64_q_first_assignment", exact.shape, official.shape)
            compareLabels("aux.f64_q_first_assignment", first.labels, exact, points, start, rounding: 12 * 0x1p-24)
        }
        let run = try kMeans(
            points, from: start, iterations: parameters.iterations, tolerance: parameters.tolerance, roundsCentroids: true,
            on: pool)
        let iterations = try golden.file.tensor("out.\(side)_iters", as: Int64.self)
        comparison.compare(
            "out.\(side)_iters", actual: Double(run.iterations), expected: Double(iterations[flat: 0]), bound: 0)

        let labels = try golden.file.tensor("out.\(side)_labels", as: Int32.self)
        let centroids = try golden.file.floatTensor("out.\(side)_centroids")
        let clusters = try kMeans.clusters(
            points.view(), labels: labels, keeping: centroids, roundsCentroids: true, on: pool)
        for index in 0..<centroids.count {
            let expected = Double(centroids[flat: index])
            comparison.compare(
                "out.\(side)_centroids[\(index)]", actual: Double(clusters.centroids[flat: index]), expected: expected,
                bound: max(1e-5, 2 * unitRoundoff * abs(expected)))
        }
        let sizes = try golden.file.tensor("out.\(side)_cluster_sizes", as: Int32.self)
        let order = try golden.file.tensor("out.\(side)_sorted_indices", as: Int32.self)
        for head in 0..<kMeans.heads {
            for (cluster, size) in clusters.sizes[head].enumerated() {
                comparison.compare(
                    "out.\(side)_cluster_sizes[\(head), \(cluster)]", actual: Double(size),
                    expected: Double(sizes[flat: head * kMeans.clusters + cluster]), bound: 0)
            }
            // Official sorting is not stable, so only the labels along the order are compared.
            for (position, token) in clusters.permutation.order(head: head).enumerated() {
                let theirs = Int(order[flat: head * kMeans.points + position])
                comparison.compare(
                    "out.\(side)_sorted_indices[\(head), \(position)]",
                    actual: Double(labels[flat: head * kMeans.points + Int(token)]),
                    expected: Double(labels[flat: head * kMeans.points + theirs]), bound: 0)
            }
        }
        return clusters
    }

    private mutating func compareLabels(
        _ name: String, _ actual: Tensor<Int32>, _ expected: Tensor<Int32>, _ points: Tensor<Element>,
        _ centroids: Tensor<Float>, rounding: Double
    ) {
        let (count, channels, clusters) = (points.shape[1], points.shape[2], centroids.shape[1])
        for index in 0..<actual.count where actual[flat: index] != expected[flat: index] {
            func distance(_ label: Int32) -> (squared: Double, norms: Double) {
                let first = (index / count * clusters + Int(label)) * channels
                var (sum, norms) = (0.0, 0.0)
                for channel in 0..<channels {
                    let x = Double(points[flat: index * channels + channel].floatValue)
                    let c = Double(centroids[flat: first + channel])
                    sum += (x - c) * (x - c)
                    norms += x * x + c * c
                }
                return (sum, norms)
            }
            let (ours, theirs) = (distance(actual[flat: index]), distance(expected[flat: index]))
            comparison.compare(
                "\(name)[\(index)]", actual: ours.squared, expected: theirs.squared,
                bound: 2 * rounding * max(ours.norms, theirs.norms))
        }
    }

    // MARK: - Selection

    /// Compares weights and maps, and returns the official map as lists.
    private mutating func compareMaps(
        _ query: Clustering, _ key: Clustering
    ) throws(SparseKernelsError) -> [[[Int]]] {
        // The official map is from the official centroids, of which ours are copies within rounding.
        let queryCentroids = try golden.file.floatTensor("out.q_centroids")
        let keyCentroids = try golden.file.floatTensor("out.k_centroids")
        let scale = 1 / Float(queryCentroids.shape[2]).squareRoot()
        let selection = try CentroidSelection(
            mass: parameters.mass, minimumKeyRatio: parameters.minimumKeyRatio, keyClusters: parameters.keyClusters,
            softmaxScale: scale, instructionSet: attention.instructionSet)
        let weights = try selection.weights(query: queryCentroids, key: keyCentroids, keySizes: key.sizes, on: pool)
        let expected = try golden.file.floatTensor("out.weighted_probs")
        try require("out.weighted_probs", expected.shape, weights.shape)
        let largest = largestScore(queryCentroids, keyCentroids, scale: Double(scale))
        let relative = 4 * unitRoundoff * largest + 2 * unitRoundoff
        for index in 0..<expected.count {
            let value = Double(expected[flat: index])
            comparison.compare(
                "out.weighted_probs[\(index)]", actual: Double(weights[flat: index]), expected: value,
                bound: max(1e-6, 1e-5 * value, relative * value))
        }
        let kept = try selection(weights: weights, on: pool)
        let sums = Double(parameters.keyClusters).squareRoot() * unitRoundoff
        try compareMap("aux.f64_dynamic_map", kept, weights, margin: 1e-5)
        return try compareMap("out.dynamic_map", kept, weights, margin: max(1e-5, relative + sums))
    }

    private func largestScore(_ query: Tensor<Float>, _ key: Tensor<Float>, scale: Double) -> Double {
        func norm(_ tensor: Tensor<Float>) -> Double {
            stride(from: 0, to: tensor.count, by: tensor.shape[2]).map { first in
                (0..<tensor.shape[2]).reduce(0.0) { $0 + Double(tensor[flat: first + $1]) * Double(tensor[flat: first + $1]) }
            }.max()?.squareRoot() ?? 0
        }
        return norm(query) * norm(key) * scale
    }

    /// Compares a map with ours, and returns it as lists. The distance of a block that differs is that of the mass before it
    /// from the limit.
    @discardableResult
    private mutating func compareMap(
        _ name: String, _ kept: [[[Int]]], _ weights: Tensor<Float>, margin: Double
    ) throws(SparseKernelsError) -> [[[Int]]] {
        let map = try golden.file.tensor(name, as: UInt8.self)
        try require(name, map.shape, weights.shape)
        let (rows, columns) = (weights.shape[1], weights.shape[2])
        var lists: [[[Int]]] = []
        for head in 0..<weights.shape[0] {
            lists.append([])
            for row in 0..<rows {
                let first = (head * rows + row) * columns
                let theirs = (0..<columns).filter { map[flat: first + $0] != 0 }
                lists[head].append(theirs)
                for column in Set(theirs).symmetricDifference(kept[head][row]) {
                    let own = Double(weights[flat: first + column])
                    var before = 0.0
                    for other in 0..<columns where Double(weights[flat: first + other]) > own {
                        before += Double(weights[flat: first + other])
                    }
                    // Among equal weights the official order is arbitrary, so the tie's mass is a margin, too.
                    let ties = (0..<columns).reduce(0.0) {
                        $0 + (Double(weights[flat: first + $1]) == own ? own : 0)
                    }
                    comparison.compare(
                        "\(name)[\(head), \(row), \(column)]", actual: before, expected: parameters.mass,
                        bound: margin + ties)
                }
            }
        }
        return lists
    }
}
