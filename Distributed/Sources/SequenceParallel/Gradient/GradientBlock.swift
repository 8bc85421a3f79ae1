/// Queries of a group and keys of a visiting group whose pairs one backward pass of attention takes, with the mask between them.
struct GradientBlock: Hashable {
    /// Rows of the own group.
    var queries: Range<Int>
    /// Rows of the visiting group.
    var keys: Range<Int>
    /// What queries see of the keys, where both sides end together as in ``AttentionShape``.
    var mask: AttentionMask

    /// Keys that a query sees: those from `left` tokens before it to `right` tokens after it.
    struct Reach {
        let left: Int
        let right: Int
        private let length: Int

        /// Sides without a limit are as long as the sequence.
        init(_ mask: AttentionMask, length: Int) {
            left = min(mask.left ?? length, length)
            right = min(mask.right ?? length, length)
            self.length = length
        }

        /// Whether it is all keys, or all but those that come later.
        var isUnlimited: Bool { left == length && (right == 0 || right == length) }
    }

    /// The blocks of all pairs that queries of a group see, each pair in one.
    ///
    /// Runs of tokens of two ranks are the same or apart, because a token has one owner. Of a run before its own, a query sees a rectangle,
    /// and behind it a triangle where the window ends; with a run after its own it is the same the other way round. Rectangles that touch
    /// become one, so that a zigzag has one block per visiting group.
    ///
    /// - Parameters:
    ///   - isSame: whether the keys are those of the queries' own group.
    ///   - reach: what queries see of the sequence.
    static func blocks(queries: GroupRows, keys: GroupRows, isSame: Bool, _ reach: Reach) -> [GradientBlock] {
        let (left, right) = (reach.left, reach.right)
        let own = AttentionMask(window: AttentionWindow(left: left, right: right))
        if queries.count == 0 || keys.count == 0 { return [] }
        if isSame && queries.segments.count == 1 && reach.isUnlimited {
            // Rows ascend, so that what lies between them does not matter to the mask.
            let mask = right == 0 ? AttentionMask.causal : .full
            return [GradientBlock(queries: 0..<queries.count, keys: 0..<keys.count, mask: mask)]
        }
        var blocks: [GradientBlock] = []
        for query in queries.runs {
            for key in keys.runs {
                if query.tokens == key.tokens {
                    blocks.append(GradientBlock(queries: query.rows, keys: key.rows, mask: own))
                } else {
                    append(query, key, left: left, right: right, to: &blocks)
                }
            }
        }
        return blocks
    }

    /// Whether a query of a group sees a key of another one.
    static func sees(queries: GroupRows, keys: GroupRows, _ reach: Reach) -> Bool {
        for query in queries.runs {
            for key in keys.runs
            where key.tokens.upperBound > query.tokens.lowerBound - reach.left
                && key.tokens.lowerBound < query.tokens.upperBound + reach.right
            {
                return true
            }
        }
        return false
    }

    /// Adds the pairs of two runs that have no token in common.
    private static func append(
        _ query: GroupRows.Run, _ key: GroupRows.Run, left: Int, right: Int, to blocks: inout [GradientBlock]
    ) {
        let (a, b) = (query.tokens.lowerBound, query.tokens.upperBound)
        let (c, d) = (key.tokens.lowerBound, key.tokens.upperBound)
        func rows(_ queries: Range<Int>, _ keys: Range<Int>, _ mask: AttentionMask) -> GradientBlock {
            GradientBlock(
                queries: query.row + queries.lowerBound - a..<query.row + queries.upperBound - a,
                keys: key.row + keys.lowerBound - c..<key.row + keys.upperBound - c, mask: mask)
        }
        if d <= a {
            // Query i sees keys from i − left on: all up to query c + left, and fewer up to d − 1 + left.
            let all = min(b, c + left + 1)
            if a < all { join(rows(a..<all, c..<d, .full), to: &blocks) }
            let (first, end) = (max(a, all), min(b, d + left))
            if first < end {
                let keys = first - left..<d
                // Its last query sees the fewest: counted from the end of both, `left` is what the keys are more than the queries.
                let window = AttentionWindow(left: keys.count - (end - first), right: nil)
                blocks.append(rows(first..<end, keys, AttentionMask(window: window)))
            }
        } else {
            // Query i sees keys up to i + right: some from query c − right on, and all from d − 1 − right on.
            let all = max(a, d - 1 - right)
            let (first, end) = (max(a, c - right), min(b, all))
            if first < end { blocks.append(rows(first..<end, c..<end + right, .causal)) }
            if all < b { join(rows(all..<b, c..<d, .full), to: &blocks) }
        }
    }

    /// Adds a rectangle, as part of one that it touches if there is one.
    private static func join(_ block: GradientBlock, to blocks: inout [GradientBlock]) {
        for index in blocks.indices.reversed() where blocks[index].mask == .full {
            let other = blocks[index]
            if other.queries == block.queries && other.keys.upperBound == block.keys.lowerBound {
                blocks.remove(at: index)
                let keys = other.keys.lowerBound..<block.keys.upperBound
                join(GradientBlock(queries: block.queries, keys: keys, mask: .full), to: &blocks)
                return
            }
            if other.keys == block.keys && other.queries.upperBound == block.queries.lowerBound {
                blocks[index].queries = other.queries.lowerBound..<block.queries.upperBound
                return
            }
        }
        blocks.append(block)
    }
}

extension GroupRows.Run {
    var rows: Range<Int> { row..<row + tokens.count }
}
