/// The tokens of their caches that the heads of some sequences attend: a list per sequence and head.
///
/// The lists are in compressed rows, as page tables of FlashInfer are. The list of sequence s and head h is
/// `indices[offsets[s·heads + h]..<offsets[s·heads + h + 1]]`, in ascending order.
public struct KVSelection: Sendable, Equatable {
    /// The number of tokens per index: the page size of the cache, or 1.
    public let unit: Int
    public let sequences: Int
    /// The number of key/value heads, whose query heads share a list, or of query heads.
    public let heads: Int
    public let offsets: [Int]
    /// Positions of pages in the sequence (not in the pool), or positions of tokens.
    public let indices: [Int32]

    /// - Throws: `.invalidShape` when the offsets do not cut the indices into sequences × heads lists; `.invalidArgument` for a
    ///   unit below 1 and for a list that is not ascending or has negative indices.
    public init(
        unit: Int, sequences: Int, heads: Int, offsets: [Int], indices: [Int32]
    ) throws(SparseKernelsError) {
        try require(unit >= 1, .invalidArgument, "unit", expected: "at least 1", actual: "\(unit)")
        let (lists, overflow) = sequences.multipliedReportingOverflow(by: heads)
        try require(
            sequences >= 0 && heads >= 1 && !overflow && offsets.count - 1 == lists, .invalidShape, "offsets",
            expected: "sequences × heads + 1 entries for \(sequences) × \(heads)", actual: "\(offsets.count)")
        try require(
            offsets.first == 0 && offsets.last == indices.count, .invalidShape, "offsets",
            expected: "from 0 to the \(indices.count) indices", actual: "\(offsets.first ?? 0) to \(offsets.last ?? 0)")
        for list in 0..<lists {
            try require(
                offsets[list] <= offsets[list + 1] && offsets[list + 1] <= indices.count, .invalidShape,
                "offsets[\(list + 1)]", expected: "at least \(offsets[list]), and at most the \(indices.count) indices",
                actual: "\(offsets[list + 1])")
            var previous: Int32 = -1
            for position in offsets[list]..<offsets[list + 1] {
                try require(
                    indices[position] > previous, .invalidArgument, "indices[\(position)]",
                    expected: "above \(previous)", actual: "\(indices[position])")
                previous = indices[position]
            }
        }
        self.init(unchecked: unit, sequences: sequences, heads: heads, offsets: offsets, indices: indices)
    }

    /// Creates a selection from valid lists.
    package init(unchecked unit: Int, sequences: Int, heads: Int, offsets: [Int], indices: [Int32]) {
        self.unit = unit
        self.sequences = sequences
        self.heads = heads
        self.offsets = offsets
        self.indices = indices
    }

    /// The list of one sequence and head.
    public func list(sequence: Int, head: Int) -> ArraySlice<Int32> {
        precondition(
            sequence >= 0 && sequence < sequences && head >= 0 && head < heads,
            "list (\(sequence), \(head)) outside \(sequences) × \(heads)")
        let index = sequence * heads + head
        return indices[offsets[index]..<offsets[index + 1]]
    }
}
