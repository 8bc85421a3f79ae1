/// Budgets by mass: selects the smallest set of elements whose weights add up to a fraction p of the total.
///
/// All decisions of the package about how much attention mass is enough use this. `BlockSelection` applies it to every row of
/// block scores; estimators of pages or tokens call it on their own weights. It can also prune the result of another selector,
/// from the weights that that selector kept (Twilight's "select, then prune").
///
/// - Source: Twilight (Lin et al., NeurIPS 2025, arXiv 2502.02770), which makes top-p a separate step after any selector;
///   XAttention (arXiv 2503.16428), Algorithm 1, `find_blocks`.
public enum TopP {
    /// The indices of the smallest set that reaches the mass, ascending.
    ///
    /// Elements are taken by weight, larger first and equal ones by lower index, until the running sum is at least `mass` times
    /// the total; the element that crosses this limit is included. Sums are in `Double`: the total in index order, the running
    /// sum in the order of taking, forced elements first. Elements of weight 0 are never taken for their mass. So `mass` 1
    /// keeps all weights that are not 0 (except those below 2⁻⁵³ of the total, which a `Double` sum does not see), and `mass` 0
    /// keeps only forced elements and those that `minimumCount` requires.
    ///
    /// ```swift
    /// let kept = try TopP.select(weights: weights, mass: 0.9)
    /// ```
    ///
    /// - Parameters:
    ///   - weights: finite and not negative; they need not add up to 1.
    ///   - mass: the fraction p of the total, 0…1.
    ///   - minimumCount: the number of elements to keep at least, forced ones included. They may have weight 0.
    ///   - forced: indices to keep in any case; duplicates count once. Their mass counts first.
    /// - Throws: `.invalidArgument` for a mass outside 0…1, a negative count, a forced index out of range, and weights that are
    ///   negative, infinite or NaN; `.invalidShape` for 2³² weights or more.
    /// - Complexity: O(n + k log n) for k kept of n, because only kept elements are sorted.
    /// - Scratch: 8 bytes and two bits per weight.
    public static func select(
        weights: Span<Float>, mass: Double, minimumCount: Int = 0, forced: [Int] = []
    ) throws(SparseKernelsError) -> [Int] {
        try checkMass(mass, named: "mass")
        try checkWeights(weights)
        try require(
            minimumCount >= 0, .invalidArgument, "minimumCount", expected: "at least 0", actual: "\(minimumCount)")
        for (position, index) in forced.enumerated() {
            try require(
                index >= 0 && index < weights.count, .invalidArgument, "forced[\(position)]",
                expected: weights.isEmpty
                    ? "left out, as there are no weights" : "from 0 to \(weights.count - 1), an index of a weight",
                actual: "\(index)")
        }
        let words = (weights.count + 63) / 64
        // The words of the heap come first, then the bits of kept and of forced elements.
        let scratch = UnsafeMutablePointer<UInt64>.allocate(capacity: weights.count + 2 * words)
        defer { scratch.deallocate() }
        let (kept, forcedBits) = (scratch + weights.count, scratch + weights.count + words)
        kept.initialize(repeating: 0, count: 2 * words)
        for index in forced { forcedBits[index >> 6] |= 1 << UInt64(index & 63) }
        var row = RowSelection(kept: kept, heap: scratch)
        for index in 0..<weights.count {
            row.add(weights[index], index: index, isForced: forcedBits[index >> 6] >> UInt64(index & 63) & 1 == 1)
        }
        row.select(.topP(mass), minimumCount: minimumCount)
        var result: [Int] = []
        result.reserveCapacity(row.keptCount)
        for word in 0..<words { forEachBit(of: kept[word]) { result.append(word * 64 + $0) } }
        return result
    }

    /// Throws unless `mass` is a fraction.
    package static func checkMass(_ mass: Double, named name: @autoclosure () -> String) throws(SparseKernelsError) {
        try require(mass >= 0 && mass <= 1, .invalidArgument, name(), expected: "within 0...1", actual: "\(mass)")
    }

    /// Throws unless the weights have an order and a sum.
    static func checkWeights(_ weights: Span<Float>) throws(SparseKernelsError) {
        try require(
            weights.count < 1 << 32, .invalidShape, "weights", expected: "fewer than 2³²", actual: "\(weights.count)")
        for index in 0..<weights.count {
            let weight = weights[index]
            try require(
                weight >= 0 && weight.isFinite, .invalidArgument, "weights[\(index)]", expected: "finite and not negative",
                actual: "\(weight)")
        }
    }
}

/// Calls `body` with the positions of the set bits, ascending.
@inline(__always)
func forEachBit(of word: UInt64, _ body: (Int) -> Void) {
    var rest = word
    while rest != 0 {
        body(rest.trailingZeroBitCount)
        rest &= rest - 1
    }
}
