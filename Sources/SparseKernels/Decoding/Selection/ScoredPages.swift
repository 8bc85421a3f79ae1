/// The pages of some sequences that selection scores and ranks, at addresses for its tasks.
struct ScoredPages {
    /// A page by its position in the page table and in the pool.
    struct Page {
        let position: Int32
        let index: Int32
    }

    struct Sequence {
        /// The sequence's query token.
        let row: Int
        /// Tokens in the layer.
        let length: Int
        /// A range of `entries`, in ascending positions without discarded pages.
        let pages: Range<Int>
        /// The index of the first key of its scores, which are pages within lists. Unused for sequences that are not scored.
        var firstKey = 0
    }

    /// Pages of a sequence that one task scores.
    struct Chunk {
        let sequence: Int
        let pages: Range<Int>
    }

    /// The addresses that scoring and ranking read.
    struct Addresses {
        let sequences: UnsafeBufferPointer<Sequence>
        let entries: UnsafePointer<Page>?
        let chunks: UnsafeBufferPointer<Chunk>
    }

    private(set) var sequences: [Sequence] = []
    private var entries: [Page] = []
    private var chunks: [Chunk] = []
    /// Pages of the longest sequence.
    private(set) var maximumPages = 0
    /// The number of keys of all scores.
    private(set) var keyCount = 0

    /// The pages of some sequences of a step, by the rows of their query tokens, without those that were discarded.
    init(_ tables: PageTables, rows: [Int]) {
        for row in rows {
            let sequence = tables.sequences[row]
            let first = entries.count
            for (position, index) in tables.pages[sequence.table].enumerated() where index >= 0 {
                entries.append(Page(position: Int32(truncatingIfNeeded: position), index: index))
            }
            sequences.append(Sequence(row: row, length: sequence.length, pages: first..<entries.count))
            maximumPages = max(maximumPages, entries.count - first)
        }
    }

    /// Cuts the pages of the sequences to score into chunks, and assigns the positions of their keys.
    mutating func cut(chunkPages: Int, lists: Int, scored: (Sequence) -> Bool) {
        for index in sequences.indices where scored(sequences[index]) {
            let count = sequences[index].pages.count
            sequences[index].firstKey = keyCount
            keyCount += lists * count
            for first in stride(from: 0, to: count, by: chunkPages) {
                chunks.append(Chunk(sequence: index, pages: first..<min(count, first + chunkPages)))
            }
        }
    }

    /// The positions of a sequence's pages.
    func positions(of sequence: Sequence) -> [Int32] { entries[sequence.pages].map(\.position) }

    /// Calls `body` with the addresses of sequences and pages, which are valid until it returns.
    func withPointers(_ body: (UnsafeBufferPointer<Sequence>, UnsafePointer<Page>?) -> Void) {
        sequences.withUnsafeBufferPointer { sequences in
            entries.withUnsafeBufferPointer { body(sequences, $0.baseAddress) }
        }
    }

    /// As `withPointers`, with the chunks of `cut`.
    func withAddresses(_ body: (Addresses) -> Void) {
        withPointers { sequences, entries in
            chunks.withUnsafeBufferPointer { body(Addresses(sequences: sequences, entries: entries, chunks: $0)) }
        }
    }
}
