/// Sequences whose page tables begin with the same pages, whose tokens are attended for all of them at once.
struct SharedPrefix {
    /// The indices of the sequences in the new order.
    let members: Range<Int>
    /// A multiple of the chunk length, so that the chunks, and hence the bits of the results, are those of a single sequence.
    let length: Int

    /// Finds groups of sequences with common pages. Returns the order in which groups are adjacent.
    ///
    /// Each sequence is in one group at most; trees of prefixes are cut at one level. The first sequence without a group is
    /// joined by those with which it saves the most reading, (members − 1)·length.
    static func find(
        among sequences: [PagedBatch.Sequence], tables: [Int32], pageSize: Int, _ prefixes: inout [SharedPrefix]
    ) -> [Int] {
        var order: [Int] = []
        var rest = Array(sequences.indices)
        while let leader = rest.first {
            let lengths = rest.map { commonLength(sequences[leader], sequences[$0], tables, pageSize) }
            // Candidates by length, longest first; equal ones in the order of the call.
            let candidates = lengths.indices.dropFirst().sorted { (lengths[$0], $1) > (lengths[$1], $0) }
            var (best, size) = (0, 0)
            for (count, candidate) in candidates.enumerated() where (count + 1) * lengths[candidate] > best {
                (best, size) = ((count + 1) * lengths[candidate], count + 1)
            }
            let members = [0] + candidates.prefix(size).sorted()
            if size > 0 {
                let length = members.map { lengths[$0] }.min() ?? 0
                prefixes.append(SharedPrefix(members: order.count..<order.count + members.count, length: length))
            }
            order += members.map { rest[$0] }
            rest = rest.indices.filter { !members.contains($0) }.map { rest[$0] }
        }
        return order
    }

    /// The number of first tokens that two sequences share and that all of their queries see, in whole chunks.
    private static func commonLength(
        _ a: PagedBatch.Sequence, _ b: PagedBatch.Sequence, _ tables: [Int32], _ pageSize: Int
    ) -> Int {
        let limit = max(0, min(a.position(ofQuery: 0), b.position(ofQuery: 0))) / PagedBatch.chunk * PagedBatch.chunk
        var pages = 0
        while pages * pageSize < limit && tables[a.table + pages] == tables[b.table + pages] { pages += 1 }
        return min(limit, pages * pageSize) / PagedBatch.chunk * PagedBatch.chunk
    }
}
