// How much of the score matrix a rank computes with the keys of another one.

/// Query-key pairs of two lists of token ranges, of which causal attention sees those whose key is not after the query.
///
/// - Complexity: O(queries.count · keys.count).
func visiblePairs(_ queries: [Range<Int>], _ keys: [Range<Int>], isCausal: Bool) -> Int {
    var sum = 0
    for query in queries {
        for key in keys {
            sum +=
                isCausal
                ? pairs(before: query.upperBound, key) - pairs(before: query.lowerBound, key) : query.count * key.count
        }
    }
    return sum
}

/// The pairs of all queries before a position with some keys.
private func pairs(before query: Int, _ keys: Range<Int>) -> Int {
    if query <= keys.lowerBound { return 0 }
    let inside = min(query, keys.upperBound) - keys.lowerBound
    return inside * (inside + 1) / 2 + max(0, query - keys.upperBound) * keys.count
}
