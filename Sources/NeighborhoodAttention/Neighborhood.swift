public import SparseKernels

/// The keys that every token of a sequence, an image or a video sees: those that are neighbours along each axis.
///
/// Tokens are numbered row by row, the last axis fastest.
///
/// ```swift
/// let video = try Neighborhood(size: [30, 48, 80], window: [18, 24, 24], stride: [16, 8, 8])
/// print(video.density)   // 0.09
/// ```
public struct Neighborhood: Hashable, Sendable {
    /// One to three axes, the slowest first.
    public let axes: [NeighborhoodAxis]

    /// - Throws: `.invalidShape` for no axes or more than three, or for 2³¹ tokens or more.
    public init(_ axes: [NeighborhoodAxis]) throws(SparseKernelsError) {
        try require((1...3).contains(axes.count), .invalidShape, "axes", expected: "1, 2 or 3", actual: "\(axes.count)")
        var count = (partialValue: 1, overflow: false)
        for axis in axes where !count.overflow { count = count.partialValue.multipliedReportingOverflow(by: axis.length) }
        try require(
            !count.overflow && count.partialValue <= Int(Int32.max), .invalidShape, "axes", expected: "fewer than 2³¹ tokens",
            actual: "\(axes.map(\.length))")
        self.axes = axes
    }

    /// A neighbourhood from the extents of its axes. A nil stride or dilation is 1 everywhere, and nil `isCausal` false.
    /// - Throws: `.invalidShape` for lists of other lengths than `size`, and the errors of ``NeighborhoodAxis``.
    public init(
        size: [Int], window: [Int], stride: [Int]? = nil, dilation: [Int]? = nil, isCausal: [Bool]? = nil
    ) throws(SparseKernelsError) {
        for (name, count) in [
            ("window", window.count), ("stride", stride?.count), ("dilation", dilation?.count), ("isCausal", isCausal?.count),
        ] {
            try require(
                count == nil || count == size.count, .invalidShape, name,
                expected: "one per axis (\(size.count))", actual: "\(count ?? 0)")
        }
        var axes: [NeighborhoodAxis] = []
        for axis in size.indices {
            try axes.append(
                NeighborhoodAxis(
                    length: size[axis], window: window[axis], stride: stride?[axis] ?? 1, dilation: dilation?[axis] ?? 1,
                    isCausal: isCausal?[axis] ?? false))
        }
        try self.init(axes)
    }

    /// The number of tokens.
    public var tokens: Int { axes.reduce(1) { $0 * $1.length } }

    /// Pairs of a query and a key that it sees.
    public var visiblePairs: Int { axes.reduce(1) { $0 * $1.visiblePairs } }

    /// The fraction of all pairs that are visible.
    public var density: Double { fraction(visiblePairs, of: tokens * tokens) }

    /// Whether a query token sees a key token.
    public func isNeighbor(query: Int, key: Int) -> Bool {
        var (query, key) = (query, key)
        for axis in axes.reversed() {
            if !axis.isNeighbor(query: query % axis.length, key: key % axis.length) { return false }
            (query, key) = (query / axis.length, key / axis.length)
        }
        precondition(query == 0 && key == 0, "a token outside the neighbourhood")
        return true
    }

    /// The tokens that a query sees, ascending.
    public func neighbors(of query: Int) -> [Int] {
        precondition(query >= 0 && query < tokens, "token \(query) outside a neighbourhood of \(tokens)")
        var (rest, step, keys) = (query, 1, [0])
        for axis in axes.reversed() {
            let coordinates = axis.neighbors(of: rest % axis.length)
            keys = coordinates.flatMap { coordinate in keys.map { coordinate * step + $0 } }
            (rest, step) = (rest / axis.length, step * axis.length)
        }
        return keys
    }

    /// 1 where a query sees a key and 0 elsewhere, `[tokens, tokens]`, for tests and pictures.
    /// - Throws: `.invalidShape` for a size that overflows.
    /// - Complexity: O(tokens²), in memory too. Attention does not need it.
    public func mask() throws(SparseKernelsError) -> Tensor<UInt8> {
        let tokens = tokens
        var mask = try Tensor<UInt8>(zeros: [tokens, tokens])
        var elements = mask.mutableSpan
        for query in 0..<tokens { for key in neighbors(of: query) { elements[query * tokens + key] = 1 } }
        return mask
    }
}
