/// The tokens of each place of a picture, from frame to frame: what is compared and merged along time.
///
/// Tokens are those of one sequence. A chain has the tokens of one place in their order; where a frame lost its token, those before
/// and after it become neighbours.
public struct FrameChains: Hashable, Sendable {
    /// Tokens of the sequence.
    public let tokenCount: Int
    /// Tokens of chains, chain by chain, each in ascending order.
    let rows: [Int32]
    /// Where each chain starts in `rows`, and the end.
    let starts: [Int]

    /// - Parameter places: the place of every token, such as its index within its frame; a negative number for tokens that are in no
    ///   frame, such as text.
    /// - Throws: `.invalidShape` for 2³¹ tokens or more, `.invalidArgument` for a place of 2²⁴ or more.
    /// - Complexity: O(tokens + places).
    public init(places: [Int32]) throws(SparseKernelsError) {
        try require(
            places.count < 1 << 31, .invalidShape, "places", expected: "fewer than 2³¹ tokens", actual: "\(places.count)")
        // The counters of a damaged file should not take all memory.
        let largest = places.max() ?? -1
        try require(largest < 1 << 24, .invalidArgument, "places", expected: "places below 2²⁴", actual: "\(largest)")
        var counts = [Int](repeating: 0, count: max(0, Int(largest)) + 1)
        for place in places where place >= 0 { counts[Int(place)] += 1 }
        var (starts, next, total) = ([0], [Int](repeating: 0, count: counts.count), 0)
        for place in counts.indices where counts[place] > 0 {
            next[place] = total
            total += counts[place]
            starts.append(total)
        }
        var rows = [Int32](repeating: 0, count: total)
        for (token, place) in places.enumerated() where place >= 0 {
            rows[next[Int(place)]] = Int32(truncatingIfNeeded: token)
            next[Int(place)] += 1
        }
        (tokenCount, self.rows, self.starts) = (places.count, rows, starts)
    }

    /// The chains of `frames` frames with `places` tokens each, which follow each other from the first token on.
    /// - Throws: `.invalidShape` for a negative number, or 2³¹ tokens or more.
    public init(frames: Int, places: Int) throws(SparseKernelsError) {
        let (count, overflow) = frames.multipliedReportingOverflow(by: places)
        try require(
            frames >= 0 && places >= 0 && !overflow && count < 1 << 31, .invalidShape, "frames",
            expected: "frames · places from 0 to 2³¹ − 1", actual: "\(frames) · \(places)")
        var list: [Int32] = []
        list.reserveCapacity(count)
        for _ in 0..<frames {
            for place in 0..<places { list.append(Int32(truncatingIfNeeded: place)) }
        }
        try self.init(places: list)
    }

    /// Chains, each of at least one token.
    public var count: Int { starts.count - 1 }
    /// Tokens that are in a chain.
    public var frameTokenCount: Int { rows.count }

    /// The tokens of a chain.
    public subscript(chain: Int) -> ArraySlice<Int32> { rows[starts[chain]..<starts[chain + 1]] }

    /// The tokens whose similarity to their predecessor is at least a threshold, ascending; NaN is not.
    /// - Parameters:
    ///   - threshold: the least similarity.
    ///   - similarities: as ``FrameMerge`` gives them.
    /// - Throws: `.invalidShape` for another number of similarities.
    public func tokens(
        withSimilarity threshold: Float, of similarities: Tensor<Float>
    ) throws(SparseKernelsError) -> [Int] {
        try requireOnePerToken(similarities)
        let values = similarities.span
        return (0..<tokenCount).filter { values[$0] >= threshold && values[$0] > Self.noSimilarity }
    }

    /// The `count` tokens that are most similar to their predecessors, ascending; equal ones by the lower index. A token without a
    /// predecessor is not among them, so that there may be fewer.
    /// - Throws: `.invalidShape` for another number of similarities, `.invalidArgument` for a negative count or a NaN.
    public func mostSimilarTokens(
        _ count: Int, of similarities: Tensor<Float>
    ) throws(SparseKernelsError) -> [Int] {
        try requireOnePerToken(similarities)
        let values = similarities.span
        for token in 0..<tokenCount where values[token].isNaN {
            throw SparseKernelsError(
                .invalidArgument, "similarities[\(token)]", expected: "a number", actual: "\(values[token])")
        }
        return try TopK.select(scores: values, count: count).filter { values[$0] > Self.noSimilarity }
    }

    /// The similarity of a token that has no predecessor. No cosine is as low.
    public static let noSimilarity: Float = -2

    private func requireOnePerToken(_ similarities: Tensor<Float>) throws(SparseKernelsError) {
        try require(
            similarities.shape == [tokenCount], .invalidShape, "similarities", expected: "\([tokenCount])",
            actual: "\(similarities.shape)")
    }
}
