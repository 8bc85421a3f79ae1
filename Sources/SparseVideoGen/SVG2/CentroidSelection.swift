internal import Foundation
public import SparseKernels

/// Scores pairs of clusters by their centroids, and selects the key clusters of each query cluster.
///
///     a_ij = scale·q̄_i·k̄_j        e_ij = n_j·e^(a_ij − max_j a_ij)        π_ij = e_ij / Σ_j e_ij
///
/// n_j is the number of keys in cluster j: a cluster stands for as many keys. Clusters are kept by descending π until their sum
/// reaches the mass.
///
/// - Source: Sparse VideoGen 2, section 4 and `identify_dynamic_map`.
public struct CentroidSelection: Sendable {
    /// The fraction of the mass to reach.
    public let mass: Double
    /// The key clusters to keep at least.
    public let minimumCount: Int
    public let softmaxScale: Float
    private let instructionSet: InstructionSet?

    /// - Parameters:
    ///   - mass: above 0 and at most 1.
    ///   - minimumKeyRatio: the fraction of `keyClusters` to keep at least, rounded down.
    /// - Throws: `.invalidArgument` for fractions out of range.
    public init(
        mass: Double, minimumKeyRatio: Double, keyClusters: Int, softmaxScale: Float, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(mass > 0 && mass <= 1, .invalidArgument, "mass", expected: "above 0 and at most 1", actual: "\(mass)")
        try require(
            minimumKeyRatio >= 0 && minimumKeyRatio <= 1, .invalidArgument, "minimumKeyRatio", expected: "within 0...1",
            actual: "\(minimumKeyRatio)")
        self.mass = mass
        minimumCount = Int(minimumKeyRatio * Double(keyClusters))
        self.softmaxScale = softmaxScale
        self.instructionSet = instructionSet
    }

    /// The weights π of all pairs, `[queryHeads, queryClusters, keyClusters]`.
    ///
    /// A key cluster without keys has weight 0. A row whose query centroid is not finite is NaN, and so is a key cluster whose
    /// centroid is not finite; its keys are not finite, either.
    ///
    /// - Parameters:
    ///   - query: centroids `[queryHeads, queryClusters, headDim]`.
    ///   - key: centroids `[kvHeads, keyClusters, headDim]`.
    ///   - keySizes: keys in each cluster, `[kvHeads][keyClusters]`.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for operands that disagree.
    public func weights(
        query: Tensor<Float>, key: Tensor<Float>, keySizes: [[Int]], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try require(
            query.shape.count == 3 && key.shape.count == 3 && query.shape[2] == key.shape[2] && key.shape[0] > 0
                && query.shape[0] % key.shape[0] == 0, .invalidShape, "query",
            expected: "[queryHeads, queryClusters, headDim] with the channels of key \(key.shape) and a multiple of its heads",
            actual: "\(query.shape)")
        let (heads, rows, channels) = (query.shape[0], query.shape[1], query.shape[2])
        let (kvHeads, columns) = (key.shape[0], key.shape[1])
        try require(
            keySizes.count == kvHeads && keySizes.allSatisfy { $0.count == columns }, .invalidShape, "keySizes",
            expected: "\(kvHeads) heads of \(columns) sizes", actual: "\(keySizes.count) heads of \(keySizes.first?.count ?? 0)"
        )
        var weights: [Float] = []
        weights.reserveCapacity(heads * rows * columns)
        var products = try Tensor<Float>(zeros: [rows, columns])
        let product = try GEMM(m: rows, n: columns, k: channels, transposesB: true, instructionSet: instructionSet)
        for head in 0..<heads {
            let kvHead = head / (heads / kvHeads)
            let a = query.span.extracting(head * rows * channels..<(head + 1) * rows * channels)
            let b = key.span.extracting(kvHead * columns * channels..<(kvHead + 1) * columns * channels)
            try product.run(
                a: MatrixView(a, rows: rows, columns: channels), b: MatrixView(b, rows: columns, columns: channels),
                c: products.mutableMatrixView(), on: pool)
            for row in 0..<rows {
                let scores = products.span.extracting(row * columns..<(row + 1) * columns)
                weights += rowWeights(scores, sizes: keySizes[kvHead])
            }
        }
        return try Tensor([heads, rows, columns], weights)
    }

    /// The weights of a row of products.
    private func rowWeights(_ products: Span<Float>, sizes: [Int]) -> [Float] {
        var largest = -Float.infinity
        for column in sizes.indices where sizes[column] > 0 { largest = max(largest, products[column] * softmaxScale) }
        var weights = sizes.indices.map { column in
            sizes[column] == 0 ? 0 : Float(sizes[column]) * Foundation.exp(products[column] * softmaxScale - largest)
        }
        let total = weights.reduce(0.0) { $1.isNaN ? $0 : $0 + Double($1) }
        if total > 0 { for column in weights.indices { weights[column] = Float(Double(weights[column]) / total) } }
        return weights
    }

    /// The key clusters that each query cluster keeps: `[queryHeads][queryClusters]` lists, ascending.
    ///
    /// Weights that are NaN are kept, because nothing says that their keys do not matter.
    /// - Throws: `.invalidShape` for weights of another rank.
    public func callAsFunction(
        weights: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> [[[Int]]] {
        try require(
            weights.shape.count == 3, .invalidShape, "weights", expected: "[queryHeads, queryClusters, keyClusters]",
            actual: "\(weights.shape)")
        let (heads, rows, columns) = (weights.shape[0], weights.shape[1], weights.shape[2])
        let kept = pool.map(heads * rows, work: heads * rows * columns * 8) { row in
            let span = weights.span.extracting(row * columns..<(row + 1) * columns)
            return self.kept(span)
        }
        return (0..<heads).map { head in Array(kept[head * rows..<(head + 1) * rows]) }
    }

    private func kept(_ row: Span<Float>) -> [Int] {
        var (finite, forced): ([Float], [Int]) = ([], [])
        finite.reserveCapacity(row.count)
        for column in 0..<row.count {
            let isNumber = row[column].isFinite
            if !isNumber { forced.append(column) }
            finite.append(isNumber ? row[column] : 0)
        }
        // The arguments are in their domains, so nothing is thrown.
        let kept = try? TopP.select(weights: finite.span, mass: mass, minimumCount: minimumCount, forced: forced)
        return kept ?? Array(0..<row.count)
    }
}
