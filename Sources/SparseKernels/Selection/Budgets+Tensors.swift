// Lists of weights and scores as arrays and as tensors, whose elements count in memory order.

extension TopK {
    /// As `select` of a span.
    /// - Throws: as `select` of a span.
    public static func select(scores: [Float], count: Int) throws(SparseKernelsError) -> [Int] {
        try select(scores: scores.span, count: count)
    }

    /// As `select` of a span. Indices are flat positions in the tensor.
    /// - Throws: as `select` of a span.
    public static func select(scores: Tensor<Float>, count: Int) throws(SparseKernelsError) -> [Int] {
        try select(scores: scores.span, count: count)
    }
}

extension TopP {
    /// As `select` of a span.
    /// - Throws: as `select` of a span.
    public static func select(
        weights: [Float], mass: Double, minimumCount: Int = 0, forced: [Int] = []
    ) throws(SparseKernelsError) -> [Int] {
        try select(weights: weights.span, mass: mass, minimumCount: minimumCount, forced: forced)
    }

    /// As `select` of a span. Indices are flat positions in the tensor.
    /// - Throws: as `select` of a span.
    public static func select(
        weights: Tensor<Float>, mass: Double, minimumCount: Int = 0, forced: [Int] = []
    ) throws(SparseKernelsError) -> [Int] {
        try select(weights: weights.span, mass: mass, minimumCount: minimumCount, forced: forced)
    }

    /// As `bisection` of a span.
    /// - Throws: as `bisection` of a span.
    public static func bisection(
        weights: [Float], mass: Double, upperBound: BisectionUpperBound = .firstWeight, epsilon: Float = 1e-5
    ) throws(SparseKernelsError) -> Bisection {
        try bisection(weights: weights.span, mass: mass, upperBound: upperBound, epsilon: epsilon)
    }

    /// As `bisection` of a span.
    /// - Throws: as `bisection` of a span.
    public static func bisection(
        weights: Tensor<Float>, mass: Double, upperBound: BisectionUpperBound = .firstWeight, epsilon: Float = 1e-5
    ) throws(SparseKernelsError) -> Bisection {
        try bisection(weights: weights.span, mass: mass, upperBound: upperBound, epsilon: epsilon)
    }
}

extension TopP.Bisection {
    /// Indices of the weights above the threshold, ascending.
    public func indices(in weights: [Float]) -> [Int] { indices(in: weights.span) }

    /// Flat positions of the weights above the threshold, ascending.
    public func indices(in weights: Tensor<Float>) -> [Int] { indices(in: weights.span) }
}
