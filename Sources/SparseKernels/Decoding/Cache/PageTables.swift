/// The page tables of some sequences in one layer, copied from the cache once per step: selection, pruning and attention read them.
package struct PageTables: Sendable {
    /// One sequence.
    struct Sequence {
        /// Tokens in the layer.
        let length: Int
        /// The part of `pages` that is its table.
        let table: Range<Int>
    }

    let sequences: [Sequence]
    /// Pages of the pool by position in the sequence, sequence by sequence; −1 for discarded ones.
    let pages: [Int32]

    /// - Throws: `.unknownSequence`, and `.invalidArgument` for a layer that the cache does not have.
    package init(
        of names: [PagedKVCache.SequenceID], in cache: PagedKVCache, layer: Int
    ) throws(SparseKernelsError) {
        let pageSize = cache.configuration.pageSize
        var sequences: [Sequence] = []
        var pages: [Int32] = []
        sequences.reserveCapacity(names.count)
        for name in names {
            let length = try cache.length(of: name, layer: layer)
            // The cache's table is that of its longest layer.
            let first = pages.count
            pages += try cache.pageTable(of: name)[..<((length + pageSize - 1) / pageSize)]
            sequences.append(Sequence(length: length, table: first..<pages.count))
        }
        self.sequences = sequences
        self.pages = pages
    }

    /// Tokens of every sequence in the layer.
    package var lengths: [Int] { sequences.map(\.length) }
}
