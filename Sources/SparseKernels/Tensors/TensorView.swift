/// The order of the two outer axes of an attention operand in memory. The channels of a token are always adjacent.
public enum TensorLayout: String, Sendable, CaseIterable {
    /// `[heads, tokens, headDim]`: the tokens of a head are adjacent.
    case hnd
    /// `[tokens, heads, headDim]`: the heads of a token are adjacent.
    case nhd
}

/// The geometry of a view: the extents of its axes (head, token, channel) and the strides of the first two, in elements.
///
/// A view may have no tokens or no channels, like the operand of an empty sequence. It then needs no memory.
public struct TensorGeometry: Hashable, Sendable {
    public let heads: Int
    public let tokens: Int
    public let channels: Int
    public let headStride: Int
    public let tokenStride: Int
    /// The first token of a view of cached rows, whose memory has no rows that a stride could skip. 0 otherwise.
    let firstToken: Int

    /// - Throws: `.invalidShape` for no heads, a negative extent or a size that overflows, `.invalidStride` for overlapping rows.
    public init(
        heads: Int, tokens: Int, channels: Int, headStride: Int, tokenStride: Int, named name: String = "tensor"
    ) throws(SparseKernelsError) {
        // Loops over lists of the axes would allocate, and operators make views while they run.
        try require(heads >= 1, .invalidShape, "\(name).heads", expected: "at least 1", actual: "\(heads)")
        try require(tokens >= 0, .invalidShape, "\(name).tokens", expected: "at least 0", actual: "\(tokens)")
        try require(channels >= 0, .invalidShape, "\(name).channels", expected: "at least 0", actual: "\(channels)")
        // The stride of an axis of extent 1 is never used, so it is free. So are both strides of a view without elements.
        let isEmpty = tokens == 0 || channels == 0
        try require(
            tokens == 1 || isEmpty || tokenStride >= channels, .invalidStride, "\(name).tokenStride",
            expected: "at least the \(channels) channels of a row", actual: "\(tokenStride)")
        try require(
            heads == 1 || isEmpty || headStride >= channels, .invalidStride, "\(name).headStride",
            expected: "at least the \(channels) channels of a row", actual: "\(headStride)")
        self.heads = heads
        self.tokens = tokens
        self.channels = channels
        self.headStride = headStride
        self.tokenStride = tokenStride
        firstToken = 0
        try require(
            elementSpan != nil, .invalidShape, name, expected: "a size that fits 63 bits",
            actual: "[\(heads), \(tokens), \(channels)] with strides \(headStride), \(tokenStride)")
    }

    /// The geometry of adjacent rows in the given order.
    public init(
        heads: Int, tokens: Int, channels: Int, layout: TensorLayout, named name: String = "tensor"
    ) throws(SparseKernelsError) {
        let (perHead, overflow) = max(0, tokens).multipliedReportingOverflow(by: max(0, channels))
        let (perToken, overflowToken) = max(0, heads).multipliedReportingOverflow(by: max(0, channels))
        try require(
            !overflow && !overflowToken, .invalidShape, name, expected: "a size that fits 63 bits",
            actual: "[\(heads), \(tokens), \(channels)]")
        switch layout {
        case .hnd:
            try self.init(
                heads: heads, tokens: tokens, channels: channels, headStride: perHead, tokenStride: channels, named: name)
        case .nhd:
            try self.init(
                heads: heads, tokens: tokens, channels: channels, headStride: channels, tokenStride: perToken, named: name)
        }
    }

    /// The geometry of a matrix `[tokens, heads · headDim]`.
    init(matrix shape: [Int], headDim: Int, named name: String) throws(SparseKernelsError) {
        try require(
            shape.count == 2 && headDim >= 1 && shape[1] >= headDim && shape[1] % headDim == 0, .invalidShape, name,
            expected: "[tokens, heads · \(headDim)]", actual: "\(abbreviated(shape))")
        try self.init(heads: shape[1] / headDim, tokens: shape[0], channels: headDim, layout: .nhd, named: name)
    }

    /// The geometry of a tensor with adjacent rows. Rank 3, with the axes in the order of `layout`; rank 2 is one head.
    init(shape: [Int], layout: TensorLayout, named name: String) throws(SparseKernelsError) {
        try require(
            shape.count == 2 || shape.count == 3, .invalidShape, name,
            expected: "rank 3, [heads, tokens, channels] or [tokens, heads, channels], or rank 2 for one head",
            actual: "rank \(shape.count), \(abbreviated(shape))")
        if shape.count == 2 {
            try self.init(heads: 1, tokens: shape[0], channels: shape[1], layout: .hnd, named: name)
        } else {
            let (heads, tokens) = layout == .hnd ? (shape[0], shape[1]) : (shape[1], shape[0])
            try self.init(heads: heads, tokens: tokens, channels: shape[2], layout: layout, named: name)
        }
    }

    /// The same extents in adjacent rows `[heads, tokens, channels]`. They take no more memory, so they are valid.
    var withAdjacentRows: TensorGeometry {
        TensorGeometry(
            checkedHeads: heads, tokens: tokens, channels: channels, headStride: tokens * channels, tokenStride: channels)
    }

    /// The same strides with at most as many tokens. Views in memory move their first element; cached rows count from `first`.
    func withTokens(_ count: Int, first: Int = 0) -> TensorGeometry {
        TensorGeometry(
            checkedHeads: heads, tokens: count, channels: channels, headStride: headStride, tokenStride: tokenStride,
            firstToken: firstToken + first)
    }

    /// The same strides with some of the heads.
    func withHeads(_ count: Int) -> TensorGeometry {
        TensorGeometry(
            checkedHeads: count, tokens: tokens, channels: channels, headStride: headStride, tokenStride: tokenStride,
            firstToken: firstToken)
    }

    func requireHeads(_ range: Range<Int>) {
        precondition(
            !range.isEmpty && range.lowerBound >= 0 && range.upperBound <= heads,
            "heads \(range) are none, or outside a view of \(heads) heads")
    }

    func requireRow(head: Int, token: Int) {
        precondition(
            head >= 0 && head < heads && token >= 0 && token < tokens,
            "row (\(head), \(token)) outside \(heads) heads × \(tokens) tokens")
    }

    /// The extents of cached rows. Their memory has one element per head, whatever the other extents are.
    static func cachedRows(heads: Int, tokens: Int, channels: Int) -> TensorGeometry {
        TensorGeometry(checkedHeads: heads, tokens: tokens, channels: channels, headStride: 1, tokenStride: 0)
    }

    private init(
        checkedHeads heads: Int, tokens: Int, channels: Int, headStride: Int, tokenStride: Int, firstToken: Int = 0
    ) {
        (self.heads, self.tokens, self.channels) = (heads, tokens, channels)
        (self.headStride, self.tokenStride) = (headStride, tokenStride)
        self.firstToken = firstToken
    }

    /// Throws `.invalidShape` unless the operand called `name` has these extents.
    package func requireExtents(
        _ name: String, heads: Int, tokens: Int, channels: Int
    ) throws(SparseKernelsError) {
        try require(
            self.heads == heads && self.tokens == tokens && self.channels == channels, .invalidShape, name,
            expected: "\(heads) heads × \(tokens) tokens × \(channels) channels",
            actual: "\(self.heads) × \(self.tokens) × \(self.channels)")
    }

    /// The number of elements from the first to the last one, both included; nil when that overflows.
    var elementSpan: Int? {
        if tokens == 0 || channels == 0 { return 0 }
        let (last, overflow) = (heads - 1).multipliedReportingOverflow(by: heads == 1 ? 0 : headStride)
        let (row, overflowOfRow) = (tokens - 1).multipliedReportingOverflow(by: tokens == 1 ? 0 : tokenStride)
        let (distance, overflowOfDistance) = last.addingReportingOverflow(row)
        let (span, overflowOfSpan) = distance.addingReportingOverflow(channels)
        return overflow || overflowOfRow || overflowOfDistance || overflowOfSpan ? nil : span
    }

    /// Whether two different (head, token) pairs could share an element, so that writing through the view would race.
    var overlaps: Bool {
        if heads == 1 || tokens <= 1 || channels == 0 { return false }
        let (inner, innerCount, outer) =
            headStride < tokenStride ? (headStride, heads, tokenStride) : (tokenStride, tokens, headStride)
        return outer < (innerCount - 1) * inner + channels
    }

    /// The offset of a row's first channel.
    @inlinable
    public func offset(head: Int, token: Int) -> Int { head * headStride + token * tokenStride }
}

/// A read-only view of an attention operand in the caller's memory, with the axes (head, token, channel).
///
/// Nothing is copied. The view cannot outlive its memory, and the initialisers check that every element is inside that memory.
public struct TensorView<Element: TensorElement>: ~Escapable {
    public let geometry: TensorGeometry
    let span: Span<Element>

    /// - Throws: `.invalidShape` when the geometry needs more elements than `span` has.
    @_lifetime(copy span)
    public init(
        _ span: Span<Element>, geometry: TensorGeometry, named name: String = "tensor"
    ) throws(SparseKernelsError) {
        let needed = geometry.elementSpan ?? .max
        try require(
            needed <= span.count, .invalidShape, name, expected: "\(needed) elements or more of memory",
            actual: "\(span.count)")
        self.geometry = geometry
        self.span = span
    }

    /// Makes a view of adjacent rows in the given order.
    @_lifetime(copy span)
    public init(
        _ span: Span<Element>, heads: Int, tokens: Int, channels: Int, layout: TensorLayout = .hnd,
        named name: String = "tensor"
    ) throws(SparseKernelsError) {
        let geometry = try TensorGeometry(
            heads: heads, tokens: tokens, channels: channels, layout: layout, named: name)
        try self.init(span, geometry: geometry, named: name)
    }

    public var heads: Int { geometry.heads }
    public var tokens: Int { geometry.tokens }
    public var channels: Int { geometry.channels }

    /// The view of some tokens of all heads.
    @_lifetime(copy self)
    public func tokens(_ range: Range<Int>) -> TensorView {
        precondition(
            range.lowerBound >= 0 && range.upperBound <= tokens, "tokens \(range) outside a view of \(tokens) tokens")
        if Element.self == CachedElement.self {
            return TensorView(checked: span, geometry.withTokens(range.count, first: range.lowerBound))
        }
        // A view without elements may have no memory.
        let first = range.isEmpty || channels == 0 ? 0 : range.lowerBound * geometry.tokenStride
        return TensorView(checked: span.extracting(droppingFirst: first), geometry.withTokens(range.count))
    }

    /// The view of some heads, such as the keys of queries, keys and values that lie side by side.
    @_lifetime(copy self)
    public func heads(_ range: Range<Int>) -> TensorView {
        geometry.requireHeads(range)
        let first = tokens == 0 || channels == 0 ? 0 : range.lowerBound * geometry.headStride
        return TensorView(checked: span.extracting(droppingFirst: first), geometry.withHeads(range.count))
    }

    /// The channels of a token of one head, which are adjacent in memory.
    @_lifetime(copy self)
    public func row(head: Int, token: Int) -> Span<Element> {
        geometry.requireRow(head: head, token: token)
        precondition(
            Element.self != CachedElement.self, "cached rows have no elements in memory; `keys` and `values` copy them")
        let first = channels == 0 ? 0 : geometry.offset(head: head, token: token)
        return span.extracting(first..<first + channels)
    }

    @_lifetime(copy span)
    init(checked span: Span<Element>, _ geometry: TensorGeometry) {
        self.geometry = geometry
        self.span = span
    }

    public subscript(head: Int, token: Int, channel: Int) -> Element {
        precondition(
            head >= 0 && head < heads && token >= 0 && token < tokens && channel >= 0 && channel < channels,
            "index (\(head), \(token), \(channel)) outside [\(heads), \(tokens), \(channels)]")
        precondition(
            Element.self != CachedElement.self, "cached rows have no elements in memory; `keys` and `values` copy them")
        return span[geometry.offset(head: head, token: token) + channel]
    }
}

/// A writable view of an attention operand in the caller's memory, with the axes (head, token, channel).
public struct MutableTensorView<Element: TensorElement>: ~Copyable, ~Escapable {
    public let geometry: TensorGeometry
    var span: MutableSpan<Element>

    /// - Throws: `.invalidShape` when the geometry needs more elements than `span` has, `.invalidStride` when two rows share
    ///   elements.
    @_lifetime(copy span)
    public init(
        _ span: consuming MutableSpan<Element>, geometry: TensorGeometry, named name: String = "tensor"
    ) throws(SparseKernelsError) {
        let needed = geometry.elementSpan ?? .max
        try require(
            needed <= span.count, .invalidShape, name, expected: "\(needed) elements or more of memory",
            actual: "\(span.count)")
        try require(
            !geometry.overlaps, .invalidStride, "\(name).headStride, \(name).tokenStride",
            expected: "such that no two rows share elements",
            actual: "\(geometry.headStride), \(geometry.tokenStride) for [\(geometry.heads), \(geometry.tokens), "
                + "\(geometry.channels)]")
        self.geometry = geometry
        self.span = span
    }

    /// Makes a view of adjacent rows in the given order.
    @_lifetime(copy span)
    public init(
        _ span: consuming MutableSpan<Element>, heads: Int, tokens: Int, channels: Int, layout: TensorLayout = .hnd,
        named name: String = "tensor"
    ) throws(SparseKernelsError) {
        let geometry = try TensorGeometry(
            heads: heads, tokens: tokens, channels: channels, layout: layout, named: name)
        try self.init(span, geometry: geometry, named: name)
    }

    public var heads: Int { geometry.heads }
    public var tokens: Int { geometry.tokens }
    public var channels: Int { geometry.channels }

    /// The view of some heads, such as queries and keys of queries, keys and values that lie side by side.
    @_lifetime(copy self)
    public consuming func heads(_ range: Range<Int>) -> MutableTensorView {
        geometry.requireHeads(range)
        let first = tokens == 0 || channels == 0 ? 0 : range.lowerBound * geometry.headStride
        return MutableTensorView(geometry.withHeads(range.count), span._consumingExtracting(first...))
    }

    /// The view of some tokens of all heads.
    @_lifetime(copy self)
    public consuming func tokens(_ range: Range<Int>) -> MutableTensorView {
        precondition(
            range.lowerBound >= 0 && range.upperBound <= tokens, "tokens \(range) outside a view of \(tokens) tokens")
        // A view without elements may have no memory.
        let first = range.isEmpty || channels == 0 ? 0 : range.lowerBound * geometry.tokenStride
        return MutableTensorView(geometry.withTokens(range.count), span._consumingExtracting(first...))
    }

    /// The channels of a token of one head, which are adjacent in memory, to be written.
    @_lifetime(&self)
    public mutating func mutableRow(head: Int, token: Int) -> MutableSpan<Element> {
        geometry.requireRow(head: head, token: token)
        let first = channels == 0 ? 0 : geometry.offset(head: head, token: token)
        return span._mutatingExtracting(first..<first + channels)
    }

    @_lifetime(copy span)
    private init(_ geometry: TensorGeometry, _ span: consuming MutableSpan<Element>) {
        self.geometry = geometry
        self.span = span
    }
}
