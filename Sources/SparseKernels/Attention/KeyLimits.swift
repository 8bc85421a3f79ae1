/// The keys that each query sees, one range per query: masks that no window describes.
///
/// A mask with full attention inside spans of tokens is causal elsewhere: the prompt of a prefix language model, the actions that
/// CoT-VLA decodes together, or a block of a diffusion model.
///
/// ```swift
/// let shape = try AttentionShape(queryLength: 90, keyLength: 90, queryHeads: 8, kvHeads: 2, headDim: 64)
/// let limits = try KeyLimits(shape, mask: .causal, fullWithin: [20..<90])   // the last 70 tokens see each other
/// let state = try DenseAttention(shape, limits: limits)(query: q, key: k, value: v)
/// ```
///
/// - Source: Zhao et al., "CoT-VLA" (arXiv 2503.22020), hybrid attention; prefix language models as in Raffel et al., "T5"
///   (arXiv 1910.10683), figure 4.
public struct KeyLimits: Hashable, Sendable {
    /// The keys that query i sees; an empty range is none.
    public let ranges: [Range<Int>]

    /// One range of keys per query.
    public init(_ ranges: [Range<Int>]) { self.ranges = ranges }

    /// One number of keys per query: query i sees the keys below `ends[i]`.
    public init(below ends: [Int]) { ranges = ends.map { 0..<max(0, $0) } }

    /// The keys that a mask shows, and for queries inside a span also all keys of the span.
    ///
    /// - Parameters:
    ///   - shape: the lengths. Query i has key position i + `keyLength` − `queryLength`, as in ``AttentionMask``.
    ///   - mask: what a query sees anyway.
    ///   - spans: ranges of key positions. A query whose position is in several of them sees all of these.
    /// - Throws: `.invalidArgument` for a span outside of the keys, and for a mask out of range.
    /// - Complexity: O(queries · spans).
    public init(
        _ shape: AttentionShape, mask: AttentionMask = .causal, fullWithin spans: [Range<Int>]
    ) throws(SparseKernelsError) {
        try mask.validate()
        for (index, span) in spans.enumerated() {
            try require(
                span.lowerBound >= 0 && span.upperBound <= shape.keyLength, .invalidArgument, "spans[\(index)]",
                expected: "within the \(shape.keyLength) keys", actual: "\(span)")
        }
        var ranges: [Range<Int>] = []
        ranges.reserveCapacity(shape.queryLength)
        for query in 0..<shape.queryLength {
            let position = query + shape.keyLength - shape.queryLength
            var keys = mask.keys(ofQuery: query, shape)
            for span in spans where span.contains(position) {
                // Both hold the query's own position, so that their union is one range.
                keys = min(keys.lowerBound, span.lowerBound)..<max(keys.upperBound, span.upperBound)
            }
            ranges.append(keys)
        }
        self.ranges = ranges
    }

    /// Whether query `query` sees key `key`.
    public func isVisible(query: Int, key: Int) -> Bool { ranges[query].contains(key) }

    /// Throws unless there is one range per query, within the keys.
    func validate(_ shape: AttentionShape) throws(SparseKernelsError) {
        try require(
            ranges.count == shape.queryLength, .invalidShape, "limits",
            expected: "one range per query (\(shape.queryLength))", actual: "\(ranges.count)")
        // Kernels compare 32-bit numbers.
        try require(
            shape.keyLength < Int(Int32.max), .invalidShape, "keyLength", expected: "below 2³¹ − 1, with limits",
            actual: "\(shape.keyLength)")
        for (query, keys) in ranges.enumerated() {
            try require(
                keys.lowerBound >= 0 && keys.upperBound <= shape.keyLength, .invalidArgument, "limits[\(query)]",
                expected: "within the \(shape.keyLength) keys", actual: "\(keys)")
        }
    }
}

extension AttentionMask {
    /// The keys that a query sees.
    func keys(ofQuery query: Int, _ shape: AttentionShape) -> Range<Int> {
        let limits = limits(shape)
        let from = min(max(0, query + limits.from), shape.keyLength)
        return from..<max(from, min(query + limits.to, shape.keyLength))
    }
}
