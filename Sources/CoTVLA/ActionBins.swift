public import SparseKernels

/// The bins of each dimension of an action: equal steps between two percentiles of the actions of a data set.
///
///     bin(x) = ⌊(x − low) / (high − low) · count⌋, at least 0 and at most count − 1         x ≈ low + (bin + ½) · (high − low) / count
///
/// - Exactness: values between `low` and `high` come back within half a step; others as the centre of the outermost bin. A
///   dimension that never changes has one bin of width 0.
/// - Source: Zhao et al., "CoT-VLA" (arXiv 2503.22020), section 3.2; the bins of RT-2 and OpenVLA.
public struct ActionBins: Hashable, Sendable {
    /// Where the bins of each dimension begin and end.
    public let low: [Double]
    public let high: [Double]
    /// Bins of a dimension.
    public let count: Int

    /// - Throws: `.invalidShape` for no dimensions or a different number of them; `.invalidArgument` for a limit that is not finite or
    ///   a range that ends before it begins, and for a number of bins outside of 1…65536.
    public init(low: [Double], high: [Double], count: Int = 256) throws(SparseKernelsError) {
        try require(!low.isEmpty, .invalidShape, "low", expected: "one number per dimension", actual: "none")
        try require(
            high.count == low.count, .invalidShape, "high", expected: "\(low.count) numbers, as low", actual: "\(high.count)")
        for dimension in low.indices {
            let width = high[dimension] - low[dimension]
            try require(
                width >= 0 && width.isFinite && low[dimension].isFinite, .invalidArgument, "high[\(dimension)]",
                expected: "finite, and at least low (\(low[dimension]))", actual: "\(high[dimension])")
        }
        try require(count >= 1 && count <= 65536, .invalidArgument, "count", expected: "in 1...65536", actual: "\(count)")
        (self.low, self.high, self.count) = (low, high, count)
    }

    /// The bins of a data set.
    ///
    /// Percentiles are interpolated linearly between the neighbouring actions, as `numpy.quantile` does.
    ///
    /// - Parameters:
    ///   - actions: `[actions, dimensions]`.
    ///   - range: the lowest and the highest percentile, as fractions; the 1st and the 99th unless given.
    ///   - count: bins of a dimension.
    /// - Throws: `.invalidShape` for another rank, no actions or no dimensions; `.invalidArgument` for a value that is not finite, a range
    ///   outside of 0…1, and the errors of ``init(low:high:count:)``.
    public init(
        percentilesOf actions: Tensor<Float>, range: ClosedRange<Double> = 0.01...0.99, count: Int = 256
    ) throws(SparseKernelsError) {
        try require(
            actions.shape.count == 2 && actions.count > 0, .invalidShape, "actions",
            expected: "[actions, dimensions], at least 1 of each", actual: "\(actions.shape)")
        try require(
            range.lowerBound >= 0 && range.upperBound <= 1, .invalidArgument, "range", expected: "within 0...1",
            actual: "\(range)")
        try requireFiniteActions(actions)
        let (rows, dimensions) = (actions.shape[0], actions.shape[1])
        var (low, high) = ([Double](), [Double]())
        for dimension in 0..<dimensions {
            let values = (0..<rows).map { Double(actions[flat: $0 * dimensions + dimension]) }.sorted()
            low.append(Self.quantile(range.lowerBound, of: values))
            high.append(Self.quantile(range.upperBound, of: values))
        }
        try self.init(low: low, high: high, count: count)
    }

    /// Numbers of an action.
    public var dimensions: Int { low.count }

    /// The bins of actions.
    ///
    /// - Parameter actions: `[…, dimensions]`.
    /// - Returns: one bin per number, in the same order.
    /// - Throws: `.invalidShape` for other dimensions, `.invalidArgument` for a number that is not finite.
    public func bins(of actions: Tensor<Float>) throws(SparseKernelsError) -> [Int32] {
        try require(
            actions.shape.last == dimensions, .invalidShape, "actions", expected: "[…, \(dimensions)]",
            actual: "\(actions.shape)")
        try requireFiniteActions(actions)
        return (0..<actions.count).map { index in
            let dimension = index % dimensions
            let width = high[dimension] - low[dimension]
            if width == 0 { return 0 }
            let place = (Double(actions[flat: index]) - low[dimension]) / width * Double(count)
            return Int32(max(0, min(Double(count - 1), place.rounded(.down))))
        }
    }

    /// The actions that bins stand for: the centres of the bins.
    ///
    /// - Parameter bins: one per number, action after action.
    /// - Returns: `[actions, dimensions]`.
    /// - Throws: `.invalidShape` for a number of bins that is not whole actions, `.invalidArgument` for a bin that does not exist.
    public func actions(of bins: [Int32]) throws(SparseKernelsError) -> Tensor<Float> {
        try require(
            bins.count % dimensions == 0, .invalidShape, "bins", expected: "a multiple of \(dimensions)",
            actual: "\(bins.count)")
        for (index, bin) in bins.enumerated() {
            try require(
                bin >= 0 && bin < count, .invalidArgument, "bins[\(index)]", expected: "in 0..<\(count)", actual: "\(bin)")
        }
        return try Tensor([bins.count / dimensions, dimensions]) { index in
            let dimension = index % dimensions
            let step = (high[dimension] - low[dimension]) / Double(count)
            return Float(low[dimension] + (Double(bins[index]) + 0.5) * step)
        }
    }

    private static func quantile(_ fraction: Double, of sorted: [Double]) -> Double {
        let place = fraction * Double(sorted.count - 1)
        let below = min(sorted.count - 1, Int(place))
        let above = min(sorted.count - 1, below + 1)
        return sorted[below] + (place - Double(below)) * (sorted[above] - sorted[below])
    }
}

/// Throws unless every number is finite.
private func requireFiniteActions(_ actions: Tensor<Float>) throws(SparseKernelsError) {
    for index in 0..<actions.count where !actions[flat: index].isFinite {
        throw SparseKernelsError(
            .invalidArgument, "actions", expected: "finite", actual: "\(actions[flat: index]) at element \(index)")
    }
}
