public import SparseKernels

/// How many patches of each high-resolution scale a pass selects.
///
/// ```swift
/// let scales = try PS3Scales([378, 756, 1512, 3780])
/// try PS3Budget(2560, scales).perScale   // [85, 341, 2134]
/// ```
public struct PS3Budget: Hashable, Sendable {
    /// Patches of scales 1, 2, …
    public let perScale: [Int]
    /// Patches of a pass.
    public let total: Int

    /// Divides a budget K in proportion to the pixels of the scales: kᵢ = ⌊K · sᵢ² / Σ sⱼ²⌋ over the high resolutions, in double
    /// precision, and what is left to the last one.
    /// - Throws: `.invalidArgument` for a budget of 0, or of more than the patches that a square picture has.
    public init(_ total: Int, _ scales: PS3Scales) throws(SparseKernelsError) {
        let most = scales.highPatches
        try require(
            total >= 1 && total <= most, .invalidArgument, "budget", expected: "1 to the \(most) patches of all scales",
            actual: "\(total)")
        var pixels = 0.0
        for side in scales.sides.dropFirst() { pixels += Double(side * side) }
        var (perScale, rest) = ([Int](), total)
        for side in scales.sides.dropFirst() {
            let share = Int(Double(total) * Double(side * side) / pixels)
            perScale.append(share)
            rest -= share
        }
        perScale[perScale.count - 1] += rest
        self.perScale = perScale
        self.total = total
    }

    /// Takes given numbers.
    /// - Throws: `.invalidShape` unless there is one number per high-resolution scale; `.invalidArgument` for one that is negative or more
    ///   than the patches of a square picture at its scale, and for 0 patches in all.
    public init(perScale: [Int], _ scales: PS3Scales) throws(SparseKernelsError) {
        try require(
            perScale.count == scales.highScales, .invalidShape, "budget", expected: "\(scales.highScales) scales",
            actual: "\(perScale.count)")
        var total = 0
        for (index, count) in perScale.enumerated() {
            let most = scales.squareGrid(index + 1).count
            try require(
                count >= 0 && count <= most, .invalidArgument, "budget[\(index)]",
                expected: "0 to the \(most) patches of its scale", actual: "\(count)")
            total += count
        }
        try require(total >= 1, .invalidArgument, "budget", expected: "at least 1 patch", actual: "\(total)")
        self.init(perScale: perScale, total: total)
    }

    private init(perScale: [Int], total: Int) {
        self.perScale = perScale
        self.total = total
    }

    /// The budget of a pass with fewer patches: ⌊kᵢ · n / K⌋ of each scale, and what is left to the last one.
    /// - Throws: `.invalidArgument` unless `tokens` is 1…`total`.
    public func reduced(to tokens: Int) throws(SparseKernelsError) -> PS3Budget {
        try require(
            tokens >= 1 && tokens <= total, .invalidArgument, "tokens", expected: "1 to the budget of a pass (\(total))",
            actual: "\(tokens)")
        return distributing(tokens, scales: perScale.count) { Int(Double($0 * tokens) / Double(total)) }
    }

    /// The whole budget on the first scales only: ⌊kᵢ / Σ kⱼ · K⌋ over these, and what is left to the last of them.
    ///
    /// The released code gives what is left to the last scale of all, which is not among the first.
    /// - Throws: `.invalidArgument` unless `scales` is 1…the number of scales, and for first scales without a budget.
    public func limited(toFirst scales: Int) throws(SparseKernelsError) -> PS3Budget {
        try require(
            scales >= 1 && scales <= perScale.count, .invalidArgument, "firstScales", expected: "1 to \(perScale.count)",
            actual: "\(scales)")
        var first = 0
        for index in 0..<scales { first += perScale[index] }
        try require(
            first > 0, .invalidArgument, "firstScales", expected: "scales with a budget", actual: "\(scales) of \(perScale)")
        return distributing(total, scales: scales) { Int(Double($0) / Double(first) * Double(total)) }
    }

    private func distributing(_ total: Int, scales: Int, _ share: (Int) -> Int) -> PS3Budget {
        var (result, rest) = ([Int](repeating: 0, count: perScale.count), total)
        for index in 0..<scales {
            result[index] = share(perScale[index])
            rest -= result[index]
        }
        result[scales - 1] += rest
        return PS3Budget(perScale: result, total: total)
    }
}
