/// The keys and distances that a vertical-slash head keeps: vertical lines and diagonals of the attention matrix.
public struct VerticalSlashLines: Hashable, Sendable {
    /// Kept keys, ascending.
    public let keys: [Int32]
    /// Kept distances t = position of the query − key, ascending.
    public let distances: [Int32]

    /// Takes lines in any order; duplicates count once.
    public init(keys: [Int32], distances: [Int32]) {
        func isAscending(_ values: [Int32]) -> Bool { zip(values, values.dropFirst()).allSatisfy { $0 < $1 } }
        self.keys = isAscending(keys) ? keys : Set(keys).sorted()
        self.distances = isAscending(distances) ? distances : Set(distances).sorted()
    }
}

/// Chooses the lines of vertical-slash heads: the keys and distances with the largest scores, and some forced ones.
///
/// The first `forcedKeys` keys and the `forcedDistances` smallest distances are chosen before all others. Of equal scores the
/// lower key and the smaller distance are chosen. A head with a NaN among its scores keeps every line. Attention then shows the
/// NaN, which an arbitrary choice could hide.
///
/// - Source: MInference; `vertical_and_slash_kernel` of microsoft/MInference, whose `topk` does not define the order of ties.
/// - Complexity: O(`keyLength`) per head: the threshold is found digit by digit, without sorting.
public struct VerticalSlashSelection: Hashable, Sendable {
    /// The number of keys, and of distances, to keep, clamped to `keyLength`.
    public let vertical: Int
    public let slash: Int
    public let forcedKeys: Int
    public let forcedDistances: Int

    /// The released minima, to which smaller numbers of lines are raised.
    public static let minimumVertical = 30
    public static let minimumSlash = 50

    /// - Parameters:
    ///   - vertical: the number of keys to keep, forced ones included; raised to `minimumVertical` if below.
    ///   - slash: the number of distances to keep, forced ones included; raised to `minimumSlash` if below.
    ///   - forcedKeys: the number of first keys to keep; 30 in the released code.
    ///   - forcedDistances: the number of smallest distances to keep; in the released code 100 in prefill and 30 in the pattern
    ///     search. At least 1, because a query always sees itself.
    /// - Throws: `.invalidArgument` for negative counts or no forced distance.
    public init(
        vertical: Int, slash: Int, forcedKeys: Int = 30, forcedDistances: Int = 100
    ) throws(SparseKernelsError) {
        for (name, count, least) in [
            ("vertical", vertical, 0), ("slash", slash, 0), ("forcedKeys", forcedKeys, 0),
            ("forcedDistances", forcedDistances, 1),
        ] {
            try require(count >= least, .invalidArgument, name, expected: "at least \(least)", actual: "\(count)")
        }
        self.vertical = max(vertical, Self.minimumVertical)
        self.slash = max(slash, Self.minimumSlash)
        self.forcedKeys = forcedKeys
        self.forcedDistances = forcedDistances
    }

    /// The lines of one head.
    public func callAsFunction(_ scores: VerticalSlashScores, head: Int) -> VerticalSlashLines {
        precondition(head >= 0 && head < scores.heads, "head \(head) outside scores of \(scores.heads) heads")
        return VerticalSlashLines(
            keys: Self.largest(vertical, of: scores.vertical, row: head, forced: forcedKeys),
            distances: Self.largest(slash, of: scores.slash, row: head, forced: forcedDistances))
    }

    /// The indices of a row's `count` largest values, ascending; the first `forced` precede all others. All if a value is NaN.
    static func largest(_ count: Int, of values: Tensor<Float>, row: Int, forced: Int) -> [Int32] {
        let length = values.shape[1]
        let count = min(count, length)
        let forced = min(forced, count)
        var indices = (0..<forced).map { Int32(truncatingIfNeeded: $0) }
        if count == forced { return indices }
        let span = values.span
        var hasNaN = false
        let ranks = [UInt32](unsafeUninitializedCapacity: length - forced) { buffer, initializedCount in
            for index in forced..<length {
                let value = span[row * length + index]
                hasNaN = hasNaN || value.isNaN
                buffer[index - forced] = rank(value)
            }
            initializedCount = length - forced
        }
        if hasNaN { return (0..<length).map { Int32(truncatingIfNeeded: $0) } }
        var (threshold, equals) = threshold(of: ranks, count: count - forced)
        indices.reserveCapacity(count)
        for (index, rank) in ranks.enumerated() where rank >= threshold {
            if rank == threshold {
                if equals == 0 { continue }
                equals -= 1
            }
            indices.append(Int32(truncatingIfNeeded: index + forced))
        }
        return indices
    }

    /// An unsigned number with the order of the value; both zeros are equal.
    private static func rank(_ value: Float) -> UInt32 {
        let bits = (value + 0).bitPattern
        return bits >> 31 == 0 ? bits | 1 << 31 : ~bits
    }

    /// Radix-selects by bytes the `count`-th largest rank, and counts its elements among the `count` largest ones.
    private static func threshold(of ranks: [UInt32], count: Int) -> (rank: UInt32, equals: Int) {
        var (prefix, mask) = (UInt32(0), UInt32(0))
        var remaining = count
        for shift in [UInt32(24), 16, 8, 0] {
            var counts = [Int](repeating: 0, count: 256)
            for rank in ranks where rank & mask == prefix { counts[Int(rank >> shift & 255)] += 1 }
            var digit = 255
            while counts[digit] < remaining {
                remaining -= counts[digit]
                digit -= 1
            }
            prefix |= UInt32(digit) << shift
            mask |= 255 << shift
        }
        return (prefix, remaining)
    }
}
