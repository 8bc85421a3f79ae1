/// Channels of a layer, ascending and without repetition: what contextual sparsity keeps of a width.
///
/// ```swift
/// let scores: [Float] = […]                                     // one per channel of a layer
/// let count = try ChannelSubset.count(ofWidth: scores.count, sparsity: 0.9)
/// let kept = try ChannelSubset.strongest(scores, count: count)
/// ```
///
/// It is a value: it can be compared, printed and stored. Layers take it with every call, since it follows the input.
///
/// - Source: SparseLoRA (arXiv 2506.16500), CATS (arXiv 2404.08763), Polar Sparsity (arXiv 2505.14884).
public struct ChannelSubset: Hashable, Sendable {
    /// The number of channels that there are, below 2³¹.
    public internal(set) var width: Int
    /// The channels that are kept, in ascending order.
    public internal(set) var indices: [Int32]

    /// Takes a list of channels.
    ///
    /// - Parameters:
    ///   - indices: the channels, in ascending order, each at most once. There may be none.
    ///   - width: the number of channels that there are.
    /// - Throws: `.invalidArgument` naming the first position whose channel is outside of the width, or not greater than the one
    ///   before; `.invalidShape` for a negative width, or 2³¹ channels or more.
    /// - Complexity: the number of indices.
    public init(_ indices: [Int32], of width: Int) throws(SparseKernelsError) {
        try Self.requireWidth(width)
        var previous: Int32 = -1
        for (position, channel) in indices.enumerated() {
            try require(
                channel >= 0 && Int(channel) < width, .invalidArgument, "indices[\(position)]",
                expected: "a channel from 0 to \(width - 1)", actual: "\(channel)")
            try require(
                channel > previous, .invalidArgument, "indices[\(position)]",
                expected: "greater than \(previous), the channel before it", actual: "\(channel)")
            previous = channel
        }
        self.init(unchecked: indices, of: width)
    }

    /// All channels of a width from 0 to 2³¹ − 1.
    public init(all width: Int) {
        precondition(width >= 0 && width <= Int(Int32.max), "a width from 0 to 2³¹ − 1, got \(width)")
        self.init(unchecked: (0..<Int32(width)).map { $0 }, of: width)
    }

    /// A list that is known to be ascending and in the width.
    init(unchecked indices: [Int32], of width: Int) {
        self.indices = indices
        self.width = width
    }

    /// The number of channels that are kept.
    public var count: Int { indices.count }
    /// Whether every channel is kept.
    public var isAll: Bool { indices.count == width }
    /// The kept share of the width; 1 for a width of 0.
    public var density: Double { width == 0 ? 1 : Double(count) / Double(width) }

    // MARK: - Choosing

    /// The number of channels that are left at a sparsity: width · (1 − sparsity) in `Double`, rounded down, as the released code
    /// of SparseLoRA computes it. Rounding makes it one less than a decimal calculation in some cases: 15 for 160 and 0.9.
    ///
    /// - Throws: `.invalidArgument` for a sparsity outside of [0, 1); `.invalidShape` for a width that is negative, or 2³¹ or more.
    public static func count(ofWidth width: Int, sparsity: Double) throws(SparseKernelsError) -> Int {
        try requireWidth(width)
        try require(
            sparsity >= 0 && sparsity < 1, .invalidArgument, "sparsity", expected: "at least 0 and below 1",
            actual: "\(sparsity)")
        return Int(Double(width) * (1 - sparsity))
    }

    /// The channels of the largest scores. Of equal scores that of the lower channel counts as larger, so that the result is
    /// determined; −0 equals 0.
    ///
    /// - Parameters:
    ///   - scores: one per channel; infinities are scores like others.
    ///   - count: the number of channels to keep.
    /// - Throws: `.invalidArgument` for a count outside of 0…width, or a score that is NaN, naming its channel.
    /// - Complexity: 32 passes over the scores, whatever the count.
    public static func strongest(_ scores: [Float], count: Int) throws(SparseKernelsError) -> ChannelSubset {
        try requireWidth(scores.count)
        try require(
            count >= 0 && count <= scores.count, .invalidArgument, "count",
            expected: "0 to \(scores.count), the number of scores",
            actual: "\(count)")
        if let channel = scores.firstIndex(where: \.isNaN) {
            throw SparseKernelsError(.invalidArgument, "scores[\(channel)]", expected: "not NaN", actual: "nan")
        }
        if count == 0 { return ChannelSubset(unchecked: [], of: scores.count) }
        // Integers in the order of the scores. The threshold, the count-th largest, is found from its highest bit down.
        let keys = scores.map { score -> UInt32 in
            let bits = (score + 0).bitPattern
            return bits >> 31 == 0 ? bits | 1 << 31 : ~bits
        }
        var threshold: UInt32 = 0
        for bit in stride(from: 31, through: 0, by: -1) {
            let candidate = threshold | 1 << UInt32(bit)
            var reached = 0
            for key in keys where key >= candidate { reached += 1 }
            if reached >= count { threshold = candidate }
        }
        var ties = count
        for key in keys where key > threshold { ties -= 1 }
        var kept: [Int32] = []
        kept.reserveCapacity(count)
        for (channel, key) in keys.enumerated() {
            if key > threshold {
                kept.append(Int32(channel))
            } else if key == threshold && ties > 0 {
                kept.append(Int32(channel))
                ties -= 1
            }
        }
        return ChannelSubset(unchecked: kept, of: scores.count)
    }

    // MARK: - Combining

    /// The channels that this subset or another one keeps.
    /// - Throws: `.invalidShape` for a subset of another width.
    public func union(_ other: ChannelSubset) throws(SparseKernelsError) -> ChannelSubset {
        try require(
            other.width == width, .invalidShape, "other", expected: "a subset of \(width) channels", actual: "\(other.width)")
        var merged: [Int32] = []
        merged.reserveCapacity(min(width, count + other.count))
        var (a, b) = (0, 0)
        while a < count || b < other.count {
            let left = a < count ? indices[a] : Int32.max
            let right = b < other.count ? other.indices[b] : Int32.max
            merged.append(min(left, right))
            if left <= right { a += 1 }
            if right <= left { b += 1 }
        }
        return ChannelSubset(unchecked: merged, of: width)
    }

    /// The subset of width · size channels that has the blocks of `size` channels whose numbers this one has: heads as channels of
    /// a projection, for instance.
    ///
    /// `size` is at least 1, and width · size below 2³¹.
    public func blocks(of size: Int) -> ChannelSubset {
        precondition(size >= 1, "blocks of at least 1 channel, got \(size)")
        let (total, overflow) = width.multipliedReportingOverflow(by: size)
        precondition(!overflow && total <= Int(Int32.max), "\(width) blocks of \(size) channels are 2³¹ or more")
        var channels: [Int32] = []
        channels.reserveCapacity(count * size)
        for block in indices {
            let first = block * Int32(size)
            for offset in 0..<Int32(size) { channels.append(first + offset) }
        }
        return ChannelSubset(unchecked: channels, of: total)
    }

    private static func requireWidth(_ width: Int) throws(SparseKernelsError) {
        try require(
            width >= 0 && width <= Int(Int32.max), .invalidShape, "width", expected: "at least 0 and below 2³¹",
            actual: "\(width)")
    }
}
