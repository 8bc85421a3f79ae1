// Overloads for weights and scores in arrays and tensors. Elements of tensors count in memory order.

extension TopK {
    /// The indices of the `count` largest scores of an array. See `select(scores:count:)` for spans.
    /// - Throws: the errors of the call with a span.
    public static func select(scores: [Float], count: Int) throws(SparseKernelsError) -> [Int] {
        try select(scores: scores.span, count: count)
    }

    /// The flat positions of the `count` largest scores of a tensor. See `select(scores:count:)` for spans.
    /// - Throws: the errors of the call with a span.
    public static func select(scores: Tensor<Float>, count: Int) throws(SparseKernelsError) -> [Int] {
        try select(scores: scores.span, count: count)
    }
}

extension TopP {
    /// The smallest set of an array's weights that reaches the mass. See `select(weights:mass:minimumCount:forced:)` for spans.
    /// - Throws: the errors of the call with a span.
    public static func select(
        weights: [Float], mass: Double, minimumCount: Int = 0, forced: [Int] = []
    ) throws(SparseKernelsError) -> [Int] {
        try select(weights: weights.span, mass: mass, minimumCount: minimumCount, forced: forced)
    }

    /// The smallest set that reaches the mass, as flat positions. See `select(weights:mass:minimumCount:forced:)` for spans.
    /// - Throws: the errors of the call with a span.
    public static func select(
        weights: Tensor<Float>, mass: Double, minimumCount: Int = 0, forced: [Int] = []
    ) throws(SparseKernelsError) -> [Int] {
        try select(weights: weights.span, mass: mass, minimumCount: minimumCount, forced: forced)
    }

    /// Bisects the weights of an array. See `bisection(weights:mass:upperBound:epsilon:)` for spans.
    /// - Throws: the errors of the call with a span.
    public static func bisection(
        weights: [Float], mass: Double, upperBound: BisectionUpperBound = .firstWeight, epsilon: Float = 1e-5
    ) throws(SparseKernelsError) -> Bisection {
        try bisection(weights: weights.span, mass: mass, upperBound: upperBound, epsilon: epsilon)
    }

    /// Bisects the weights of a tensor. See `bisection(weights:mass:upperBound:epsilon:)` for spans.
    /// - Throws: the errors of the call with a span.
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
