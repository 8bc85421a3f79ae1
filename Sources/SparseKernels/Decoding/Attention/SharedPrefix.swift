/// Tokens that several sequences of a batch have in the same pages, which are attended for all of them at once.
///
/// The prefixes of a batch form a tree: sequences that share one may share another one behind it in smaller groups, as branches of
/// branches do. Each is a group of its own with its own range of tokens.
struct SharedPrefix {
    /// The indices of the sequences in the new order.
    let members: Range<Int>
    /// Positions from one multiple of the chunk length to another, so that the chunks, and hence the bits of the results, are those
    /// of a single sequence.
    let tokens: Range<Int>
    /// The number of prefixes of the same members before this one.
    let level: Int

    /// Finds groups of sequences with common pages. Returns the order in which groups are adjacent; prefixes of more members come
    /// before the ones behind them.
    ///
    /// - Complexity: O(sequences · pages · branches at a level).
    static func find(
        among sequences: [PagedBatch.Sequence], tables: [Int32], pageSize: Int, _ prefixes: inout [SharedPrefix]
    ) -> [Int] {
        var order: [Int] = []
        let search = Search(sequences: sequences, tables: tables, pageSize: pageSize)
        search.divide(Array(sequences.indices), from: 0, level: 0, &order, &prefixes)
        return order
    }

    private struct Search {
        let sequences: [PagedBatch.Sequence]
        let tables: [Int32]
        let pageSize: Int

        /// Divides sequences that have the same pages before `start` by what follows, in the order of the first of each group.
        func divide(_ members: [Int], from start: Int, level: Int, _ order: inout [Int], _ prefixes: inout [SharedPrefix]) {
            var rest = members
            while let leader = rest.first {
                var (group, length) = ([leader], Int.max)
                for other in rest.dropFirst() {
                    let common = commonLength(leader, other, from: start)
                    if common > start {
                        group.append(other)
                        length = min(length, common)
                    }
                }
                if group.count == 1 {
                    order.append(leader)
                } else {
                    prefixes.append(
                        SharedPrefix(
                            members: order.count..<order.count + group.count, tokens: start..<length, level: level))
                    divide(group, from: length, level: level + 1, &order, &prefixes)
                }
                rest.removeAll { group.contains($0) }
            }
        }

        /// The number of first tokens that two sequences share and that all of their queries see, in whole chunks.
        private func commonLength(_ first: Int, _ second: Int, from start: Int) -> Int {
            let (a, b) = (sequences[first], sequences[second])
            let limit = max(0, min(a.position(ofQuery: 0), b.position(ofQuery: 0))) / PagedBatch.chunk * PagedBatch.chunk
            var pages = start / pageSize
            while pages * pageSize < limit && tables[a.table + pages] == tables[b.table + pages] { pages += 1 }
            return min(limit, pages * pageSize) / PagedBatch.chunk * PagedBatch.chunk
        }
    }
}
