/// The tokens of a sequence that a query at a position sees, and the rows that a rank has of them.
struct VisibleRows {
    let mask: KVMask
    /// Tokens of the sequence in the layer.
    let length: Int
    let tokens: ShardedTokens
    let rank: Int

    /// Rows of the rank, of tokens in the layer.
    var rows: Int { tokens.count(of: rank, below: length) }

    /// The rows that the query at a position sees: two ascending, disjoint ranges.
    func rows(ofQueryAt position: Int) -> (sink: Range<Int>, window: Range<Int>) {
        let (sink, window) = seen(from: position)
        return (tokens.rows(of: rank, in: sink), tokens.rows(of: rank, in: window))
    }

    /// The tokens that the query at a position sees, as `PagedAttention` has them.
    private func seen(from position: Int) -> (sink: Range<Int>, window: Range<Int>) {
        switch mask {
        case .causal: return (0..<0, 0..<min(length, max(0, position + 1)))
        case .full: return (0..<0, 0..<length)
        case .window(let left, let right):
            let sides = AttentionWindow(left: left, right: right)
            // Longer sides hide nothing, and might overflow.
            let most = length + abs(position) + 1
            let first = min(length, max(0, sides.left.map { position - min($0, most) } ?? 0))
            let end = sides.right.map { position + min($0, most) + 1 } ?? length
            return (0..<0, first..<max(first, min(length, end)))
        case .streaming(let sink, let window):
            if position < 0 { return (0..<0, 0..<0) }
            let first = max(0, position - min(window, position + 1) + 1)
            return (0..<min(sink, first), first..<min(length, position + 1))
        }
    }
}
