public import SparseKernels

/// A sequence of CoT-VLA: pictures and text are causal, and the tokens of an action chunk see each other.
///
///     [observation, instruction] [subgoal picture] [actions]
///
/// Query i sees key j when j ≤ i, or when both are in one action span. So each row has one limit and there is no mask matrix:
/// i + 1 outside of action spans, and the end of the span inside.
///
/// ```swift
/// let sequence = try CoTVLASequence([(.observation, 256), (.instruction, 20), (.subgoal, 256), (.actions, 70)])
/// let limits = try sequence.limits(shape)
/// let state = try DenseAttention(shape, limits: limits)(query: q, key: k, value: v)
/// ```
///
/// - Source: Zhao et al., "CoT-VLA" (arXiv 2503.22020), section 3.3, "hybrid attention".
public struct CoTVLASequence: Hashable, Sendable {
    /// What the tokens of a segment are.
    public enum Kind: Hashable, Sendable {
        /// The picture that the robot sees.
        case observation
        case instruction
        /// The picture of what the robot wants to see.
        case subgoal
        /// A chunk of actions, decoded in parallel.
        case actions
    }

    /// Tokens in all.
    public let length: Int
    /// The spans of actions, ascending and disjoint.
    public let actionSpans: [Range<Int>]

    /// Segments one after the other.
    ///
    /// Adjacent segments of actions are chunks of their own, which see each other causally.
    /// - Throws: `.invalidArgument` for a negative number of tokens, or so many that their sum overflows.
    public init(_ segments: [(kind: Kind, tokens: Int)]) throws(SparseKernelsError) {
        var (first, spans) = (0, [Range<Int>]())
        for (index, segment) in segments.enumerated() {
            let (end, overflow) = first.addingReportingOverflow(segment.tokens)
            try require(
                segment.tokens >= 0 && !overflow, .invalidArgument, "segments[\(index)]", expected: "0 or more tokens",
                actual: "\(segment.tokens)")
            if segment.kind == .actions && segment.tokens > 0 { spans.append(first..<end) }
            first = end
        }
        try self.init(length: first, actionSpans: spans)
    }

    /// A sequence whose spans of actions are known.
    /// - Throws: `.invalidShape` for a negative length; `.invalidArgument` for a span that leaves the sequence, and for one that overlaps
    ///   or precedes the span before it.
    public init(length: Int, actionSpans: [Range<Int>]) throws(SparseKernelsError) {
        try require(length >= 0, .invalidShape, "length", expected: "at least 0", actual: "\(length)")
        var end = 0
        for (index, span) in actionSpans.enumerated() {
            try require(
                span.lowerBound >= end && span.upperBound <= length, .invalidArgument, "actionSpans[\(index)]",
                expected: "in \(end)...\(length), after the spans before it", actual: "\(span)")
            end = span.upperBound
        }
        self.length = length
        self.actionSpans = actionSpans
    }

    /// The keys that every query of an attention call sees.
    ///
    /// - Parameter shape: the sizes; its keys are the tokens of the sequence, and its queries the last of them.
    /// - Throws: `.invalidShape` for other keys, and for more queries than keys.
    public func limits(_ shape: AttentionShape) throws(SparseKernelsError) -> KeyLimits {
        try require(
            shape.keyLength == length, .invalidShape, "keyLength", expected: "\(length), the tokens of the sequence",
            actual: "\(shape.keyLength)")
        try require(
            shape.queryLength <= length, .invalidShape, "queryLength", expected: "at most \(length)",
            actual: "\(shape.queryLength)")
        return try KeyLimits(shape, mask: .causal, fullWithin: actionSpans)
    }
}
