public import SparseKernels

/// One axis of a neighbourhood: which coordinates of keys a coordinate of a query sees.
///
/// For a query at i of n tokens, with window k, stride s and no dilation:
///
///     not causal    leader ℓ = min(⌊i/s⌋·s + ⌊s/2⌋, n − 1)     keys of the window of k around ℓ, moved inwards at the borders
///     causal        leader ℓ = min(⌊i/s⌋·s + s − 1, n − 1)     keys from max(ℓ − k + 1, 0) to i
///
/// A window of even size has one key more before its leader than behind it. All s queries of a stride group share a leader, and
/// without a causal limit a window: stride 1 is neighbourhood attention, stride k windows that do not overlap.
///
/// With dilation d, tokens of different remainders x mod d do not see each other, and the rules hold among those of one remainder
/// with ⌊x/d⌋ in the place of x.
///
/// - Source: NATTEN 0.21, `csrc/include/natten/cuda/reference/mask.hpp`; GNA, arXiv 2504.16922. NATTEN needs windows of 2 or
///   more; a window of 1 is accepted here, because an axis of length 1 has no other.
public struct NeighborhoodAxis: Hashable, Sendable {
    /// Tokens along the axis, n.
    public let length: Int
    /// Keys that a query sees along the axis, k.
    public let window: Int
    /// Queries that share a window, s.
    public let stride: Int
    /// The distance between neighbours, d.
    public let dilation: Int
    /// Whether keys after the query are hidden.
    public let isCausal: Bool

    /// - Throws: `.invalidShape` for a length below 1, `.invalidArgument` for a window below 1 or with window · dilation above the
    ///   length, a stride outside 1…window, or a dilation below 1.
    public init(
        length: Int, window: Int, stride: Int = 1, dilation: Int = 1, isCausal: Bool = false
    ) throws(SparseKernelsError) {
        try require(length >= 1, .invalidShape, "length", expected: "at least 1", actual: "\(length)")
        try require(window >= 1, .invalidArgument, "window", expected: "at least 1", actual: "\(window)")
        try require(dilation >= 1, .invalidArgument, "dilation", expected: "at least 1", actual: "\(dilation)")
        let (extent, overflow) = window.multipliedReportingOverflow(by: dilation)
        try require(
            !overflow && extent <= length, .invalidArgument, "window",
            expected: "such that window · dilation is at most the length (\(length))", actual: "\(window) · \(dilation)")
        try require(
            stride >= 1 && stride <= window, .invalidArgument, "stride", expected: "in 1...window (\(window))",
            actual: "\(stride)")
        self.length = length
        self.window = window
        self.stride = stride
        self.dilation = dilation
        self.isCausal = isCausal
    }

    /// Tokens with the remainder `group` of the dilation.
    func length(ofGroup group: Int) -> Int { length / dilation + (group < length % dilation ? 1 : 0) }

    /// The keys that query `index` of a dilation group of `count` tokens sees, both counted in the group.
    func window(of index: Int, in count: Int) -> Range<Int> {
        let first = index / stride * stride
        if isCausal {
            let leader = min(first + stride - 1, count - 1)
            return max(leader - window + 1, 0)..<index + 1
        }
        let leader = min(first + stride / 2, count - 1)
        let (left, right) = (window / 2, window / 2 + window % 2 - 1)
        let moved = leader + right >= count ? count - right - leader - 1 : 0
        let start = max(leader - left, 0) + moved
        return start..<start + window
    }

    /// The coordinates of the keys that a query sees, ascending.
    public func neighbors(of coordinate: Int) -> StrideTo<Int> {
        precondition(coordinate >= 0 && coordinate < length, "coordinate \(coordinate) outside an axis of \(length)")
        let group = coordinate % dilation
        let keys = window(of: coordinate / dilation, in: length(ofGroup: group))
        return Swift.stride(
            from: keys.lowerBound * dilation + group, to: (keys.upperBound - 1) * dilation + group + 1, by: dilation)
    }

    /// Whether a query sees a key.
    public func isNeighbor(query: Int, key: Int) -> Bool {
        precondition(
            query >= 0 && query < length && key >= 0 && key < length, "(\(query), \(key)) outside an axis of \(length)")
        if query % dilation != key % dilation { return false }
        return window(of: query / dilation, in: length(ofGroup: query % dilation)).contains(key / dilation)
    }

    /// Pairs of a query and a key that it sees.
    /// - Complexity: O(length).
    var visiblePairs: Int {
        (0..<length).reduce(0) { $0 + window(of: $1 / dilation, in: length(ofGroup: $1 % dilation)).count }
    }
}
