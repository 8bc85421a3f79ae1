/// How many keys a query sees on either side of its own position. It always sees the key at that position.
///
/// Query *i* has key position *i* + `keyLength` − `queryLength` and sees the keys from `left` before that position to `right`
/// after it, both included, as with `window_size` of FlashAttention. A causal limit applies on top and makes `right` 0.
public struct AttentionWindow: Hashable, Sendable {
    /// Keys before the query's own position that it sees; nil means all of them.
    public let left: Int?
    /// Keys after the query's own position that it sees; nil means all of them.
    public let right: Int?

    /// No limit on either side: every key is seen.
    public static let unlimited = AttentionWindow(left: nil, right: nil)

    /// A window of `left` + 1 + `right` keys. Both nil and FlashAttention's −1 mean no limit; operators refuse other negative
    /// numbers.
    public init(left: Int?, right: Int?) {
        self.left = left == -1 ? nil : left
        self.right = right == -1 ? nil : right
    }

    /// Throws `.invalidArgument` naming the side that is negative.
    package func validate(named name: @autoclosure () -> String) throws(SparseKernelsError) {
        for (side, keys) in [("left", left), ("right", right)] {
            guard let keys else { continue }
            try require(
                keys >= 0, .invalidArgument, "\(name()).\(side)", expected: "0 or more keys, or nil or −1 for no limit",
                actual: "\(keys)")
        }
    }

    /// Limits for query 0: query i sees keys j with i + from ≤ j < i + to. Unlimited sides are ∓2⁶⁰, which cannot overflow.
    package func limits(queryLength: Int, keyLength: Int, isCausal: Bool) -> (from: Int, to: Int) {
        let position = keyLength - queryLength
        // A side longer than the sequences hides nothing; clamping it avoids overflow.
        let reach = queryLength + keyLength
        let from = left.map { position - min($0, reach) } ?? -(1 << 60)
        let to = isCausal ? position + 1 : right.map { position + min($0, reach) + 1 } ?? 1 << 60
        return (from, to)
    }
}

/// The keys that a query may see, by position.
///
/// Query *i* has key position *i* + `keyLength` − `queryLength`: the two sequences are aligned at their ends, as when new
/// tokens are appended to a cache.
public struct AttentionMask: Sendable {
    /// Keys after the query's position are hidden.
    public let isCausal: Bool
    /// The argument of `causal(window:)` and `full(window:)`: keys at this distance or more are hidden. Nil for other masks.
    public let window: Int?
    /// The window on either side, before the causal limit is applied.
    let sides: AttentionWindow

    /// Keys before the query's own position that it sees; nil means all of them.
    public var left: Int? { sides.left }
    /// Keys after the query's own position that it sees; nil means all of them. A causal mask has 0.
    public var right: Int? { isCausal ? 0 : sides.right }

    /// A mask that shows the keys of a window; if causal, none after the query's own position.
    public init(isCausal: Bool = false, window: AttentionWindow) {
        self.isCausal = isCausal
        self.window = nil
        sides = window
    }

    private init(isCausal: Bool, distanceBelow window: Int) {
        self.isCausal = isCausal
        self.window = window
        // `validate` refuses windows below 1.
        let side = max(0, window &- 1)
        sides = AttentionWindow(left: side, right: isCausal ? nil : side)
    }

    /// Every key.
    public static let full = AttentionMask(isCausal: false, window: .unlimited)
    /// Keys up to the query's own position.
    public static let causal = AttentionMask(isCausal: true, window: .unlimited)
    /// The `window` keys that end at the query's own position.
    public static func causal(window: Int) -> AttentionMask { AttentionMask(isCausal: true, distanceBelow: window) }
    /// Keys at a distance below `window` on either side of the query's position.
    public static func full(window: Int) -> AttentionMask { AttentionMask(isCausal: false, distanceBelow: window) }
    /// The query's own position, `left` keys before it and `right` keys after it; nil and −1 mean no limit. With `isCausal` no
    /// key after the query's position is seen.
    ///
    /// This is FlashAttention's `window_size=(left, right)`: `.causal(window: w)` is `.window(left: w - 1, right: 0)`.
    public static func window(left: Int?, right: Int?, isCausal: Bool = false) -> AttentionMask {
        AttentionMask(isCausal: isCausal, window: AttentionWindow(left: left, right: right))
    }

    /// Throws `.invalidArgument` naming the property that is out of range.
    package func validate() throws(SparseKernelsError) {
        if let window {
            try require(window >= 1, .invalidArgument, "mask.window", expected: "at least 1", actual: "\(window)")
        }
        try sides.validate(named: "mask")
    }

    /// Whether query `query` of `queryLength` may see key `key` of `keyLength`.
    public func isVisible(query: Int, key: Int, queryLength: Int, keyLength: Int) -> Bool {
        let limits = sides.limits(queryLength: queryLength, keyLength: keyLength, isCausal: isCausal)
        return key >= query + limits.from && key < query + limits.to
    }

    /// Limits for query 0: query i sees keys j with i + from ≤ j < i + to.
    package func limits(_ shape: AttentionShape) -> (from: Int, to: Int) {
        sides.limits(queryLength: shape.queryLength, keyLength: shape.keyLength, isCausal: isCausal)
    }
}

extension AttentionMask: Hashable {
    /// Masks are equal when they show the same keys on either side of a position.
    public static func == (a: AttentionMask, b: AttentionMask) -> Bool {
        a.isCausal == b.isCausal && a.left == b.left && a.right == b.right && a.isValid == b.isValid
    }

    public func hash(into hasher: inout Hasher) {
        hasher.combine(isCausal)
        hasher.combine(left)
        hasher.combine(right)
    }

    private var isValid: Bool { window.map { $0 >= 1 } ?? true }
}
