/// The merges of byte-pair encoding: which two neighbouring tokens become one, and in which order.
struct MergeTable: Sendable {
    private struct Merge {
        let rank: UInt32
        let result: Int32
    }

    private var merges: [UInt64: Merge] = [:]

    mutating func add(_ left: Int, _ right: Int, result: Int, rank: Int) {
        merges[Self.key(Int32(left), Int32(right))] = Merge(rank: UInt32(rank), result: Int32(result))
    }

    mutating func reserve(_ count: Int) { merges.reserveCapacity(count) }

    private static func key(_ left: Int32, _ right: Int32) -> UInt64 { UInt64(UInt32(left)) << 32 | UInt64(UInt32(right)) }

    /// Merges the pair of the lowest rank, the leftmost of several, as long as there is one.
    ///
    /// - Complexity: O(n log n) for n tokens: a heap of pairs over a linked list. Pairs that are gone stay in the heap until
    ///   they are popped, and each merge adds two.
    func merge(_ tokens: [Int32]) -> [Int32] {
        let count = tokens.count
        guard count > 1 else { return tokens }
        var tokens = tokens
        // The token before and after each. A token that was merged into the one before it is −1.
        var before = (0..<count).map { Int32($0 - 1) }
        var after = (0..<count).map { Int32($0 + 1) }
        var heap = Heap()
        func push(_ position: Int) {
            guard Int(after[position]) < count, let merge = merges[Self.key(tokens[position], tokens[Int(after[position])])]
            else { return }
            heap.push(UInt64(merge.rank) << 32 | UInt64(position))
        }
        for position in 0..<count - 1 { push(position) }
        while let top = heap.pop() {
            let (rank, position) = (UInt32(top >> 32), Int(top & 0xffff_ffff))
            guard tokens[position] >= 0, Int(after[position]) < count else { continue }
            let next = Int(after[position])
            // A rank belongs to one pair, so another rank is another pair than the one that was pushed.
            guard let merge = merges[Self.key(tokens[position], tokens[next])], merge.rank == rank else { continue }
            tokens[position] = merge.result
            tokens[next] = -1
            after[position] = after[next]
            if Int(after[position]) < count { before[Int(after[position])] = Int32(position) }
            push(position)
            if before[position] >= 0 { push(Int(before[position])) }
        }
        return tokens.filter { $0 >= 0 }
    }
}

/// A binary heap with the least value on top.
private struct Heap {
    private var values: [UInt64] = []

    mutating func push(_ value: UInt64) {
        var index = values.count
        values.append(value)
        while index > 0, values[(index - 1) / 2] > value {
            values[index] = values[(index - 1) / 2]
            index = (index - 1) / 2
        }
        values[index] = value
    }

    mutating func pop() -> UInt64? {
        guard let top = values.first else { return nil }
        let value = values.removeLast()
        guard !values.isEmpty else { return top }
        var index = 0
        while true {
            var child = 2 * index + 1
            guard child < values.count else { break }
            if child + 1 < values.count, values[child + 1] < values[child] { child += 1 }
            guard values[child] < value else { break }
            values[index] = values[child]
            index = child
        }
        values[index] = value
        return top
    }
}
