/// The pages that some sequences hold in one layer, copied from the cache so that tasks can read them by address.
struct PageTables {
    /// A page: where it lies in the page table, and in the pool.
    struct Page {
        let position: Int32
        let index: Int32
    }

    struct Sequence {
        /// The sequence's query token.
        let row: Int
        /// Tokens in the layer.
        let length: Int
        /// In `entries`, ascending positions; discarded pages are left out.
        let pages: Range<Int>
    }

    private(set) var sequences: [Sequence] = []
    private var entries: [Page] = []
    private(set) var maximumPages = 0

    /// - Throws: `.unknownSequence`, and `.invalidArgument` for a layer that the cache does not have.
    mutating func append(
        _ sequence: PagedKVCache.SequenceID, row: Int, of cache: PagedKVCache, layer: Int
    ) throws(SparseKernelsError) {
        let length = try cache.length(of: sequence, layer: layer)
        let pageSize = cache.configuration.pageSize
        let table = try cache.pageTable(of: sequence)
        let first = entries.count
        // The table is that of the longest layer.
        for position in 0..<(length + pageSize - 1) / pageSize where table[position] >= 0 {
            entries.append(Page(position: Int32(truncatingIfNeeded: position), index: table[position]))
        }
        sequences.append(Sequence(row: row, length: length, pages: first..<entries.count))
        maximumPages = max(maximumPages, entries.count - first)
    }

    /// The positions of a sequence's pages.
    func positions(of sequence: Sequence) -> [Int32] { entries[sequence.pages].map(\.position) }

    /// Calls `body` with the addresses of sequences and pages, which are valid until it returns.
    func withPointers(_ body: (UnsafeBufferPointer<Sequence>, UnsafePointer<Page>?) -> Void) {
        sequences.withUnsafeBufferPointer { sequences in
            entries.withUnsafeBufferPointer { body(sequences, $0.baseAddress) }
        }
    }
}
