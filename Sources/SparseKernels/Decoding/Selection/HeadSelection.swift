/// The heads of a layer that attend for each of some sequences. Heads that are not listed are skipped: no task reads their keys.
///
/// ```swift
/// let heads = try HeadSelection.strongest(scores, count: 4)                  // scores: [sequences, kvHeads]
/// try attention.run(query: q, cache: cache, sequences: sequences, heads: heads, into: &output)
/// ```
///
/// The lists are in compressed rows: that of sequence s is `indices[offsets[s]..<offsets[s + 1]]`, in ascending order.
///
/// - Source: Polar Sparsity (arXiv 2505.14884), whose selected pairs of a sequence and a head are those of a batch.
public struct HeadSelection: Hashable, Sendable {
    public let sequences: Int
    /// The number of key/value heads, whose query heads are selected together, or of query heads.
    public let heads: Int
    public let offsets: [Int]
    public let indices: [Int32]

    /// - Throws: `.invalidShape` when the offsets do not cut the indices into a list per sequence; `.invalidArgument` for fewer heads
    ///   than 1, and for a list that is not ascending or has a head that there is not.
    public init(sequences: Int, heads: Int, offsets: [Int], indices: [Int32]) throws(SparseKernelsError) {
        try Self.requireHeads(heads)
        try require(
            sequences >= 0 && offsets.count - 1 == sequences, .invalidShape, "offsets",
            expected: "sequences + 1 entries for \(sequences)", actual: "\(offsets.count)")
        try require(
            offsets.first == 0 && offsets.last == indices.count, .invalidShape, "offsets",
            expected: "from 0 to the \(indices.count) indices", actual: "\(offsets.first ?? 0) to \(offsets.last ?? 0)")
        for sequence in 0..<sequences {
            let (start, end) = (offsets[sequence], offsets[sequence + 1])
            try require(
                start <= end && end <= indices.count, .invalidShape, "offsets[\(sequence + 1)]",
                expected: "at least \(start), and at most the \(indices.count) indices", actual: "\(end)")
            var previous: Int32 = -1
            for position in start..<end {
                try require(
                    indices[position] > previous && Int(indices[position]) < heads, .invalidArgument, "indices[\(position)]",
                    expected: "above \(previous) and below \(heads)", actual: "\(indices[position])")
                previous = indices[position]
            }
        }
        self.init(unchecked: sequences, heads: heads, offsets: offsets, indices: indices)
    }

    /// A selection of all heads.
    /// - Throws: `.invalidShape` for a negative number of sequences, `.invalidArgument` for fewer heads than 1.
    public init(all heads: Int, sequences: Int) throws(SparseKernelsError) {
        try Self.requireHeads(heads)
        let (count, overflow) = heads.multipliedReportingOverflow(by: sequences)
        try require(
            sequences >= 0 && !overflow, .invalidShape, "sequences", expected: "0 or more, of a size that does not overflow",
            actual: "\(sequences)")
        self.init(
            unchecked: sequences, heads: heads, offsets: (0...sequences).map { $0 * heads },
            indices: (0..<count).map { Int32($0 % heads) })
    }

    private init(unchecked sequences: Int, heads: Int, offsets: [Int], indices: [Int32]) {
        self.sequences = sequences
        self.heads = heads
        self.offsets = offsets
        self.indices = indices
    }

    /// The heads of the largest scores of every sequence. Of equal scores that of the lower head counts as larger; −0 equals 0.
    ///
    /// - Parameters:
    ///   - scores: `[sequences, heads]`; infinities are scores like others.
    ///   - count: heads of each sequence, from 0 to all.
    /// - Throws: `.invalidShape` for no heads; `.invalidArgument` for a count out of range and for a score that is NaN.
    /// - Complexity: O(sequences · heads · log heads).
    public static func strongest(_ scores: MatrixView<Float>, count: Int) throws(SparseKernelsError) -> HeadSelection {
        let (sequences, heads) = (scores.rows, scores.columns)
        try require(
            heads >= 1 && heads <= Int(Int32.max), .invalidShape, "scores", expected: "one column per head, 1 to 2³¹ − 1",
            actual: "\(heads)")
        try require(
            count >= 0 && count <= heads, .invalidArgument, "count", expected: "0 to \(heads), the number of heads",
            actual: "\(count)")
        var indices: [Int32] = []
        indices.reserveCapacity(sequences * count)
        var (row, order) = ([Float](repeating: 0, count: heads), [Int](repeating: 0, count: heads))
        for sequence in 0..<sequences {
            for head in 0..<heads {
                row[head] = scores[sequence, head]
                try require(
                    !row[head].isNaN, .invalidArgument, "scores[\(sequence), \(head)]", expected: "not NaN", actual: "nan")
                order[head] = head
            }
            order.sort { (row[$1], $0) < (row[$0], $1) }
            indices += order.prefix(count).sorted().map { Int32($0) }
        }
        return HeadSelection(
            unchecked: sequences, heads: heads, offsets: (0...sequences).map { $0 * count }, indices: indices)
    }

    /// The heads of the largest scores of every sequence; scores are `[sequences, heads]`.
    /// - Throws: the errors of the call with a view, and `.invalidShape` for another rank.
    public static func strongest(_ scores: Tensor<Float>, count: Int) throws(SparseKernelsError) -> HeadSelection {
        try strongest(scores.matrixView(named: "scores"), count: count)
    }

    /// The heads of a sequence.
    public func list(sequence: Int) -> ArraySlice<Int32> {
        precondition(sequence >= 0 && sequence < sequences, "sequence \(sequence) outside \(sequences)")
        return indices[offsets[sequence]..<offsets[sequence + 1]]
    }

    /// The part of all pairs of a sequence and a head that is selected; 1 when there are none.
    public var density: Double { sequences == 0 ? 1 : Double(indices.count) / (Double(sequences) * Double(heads)) }

    private static func requireHeads(_ heads: Int) throws(SparseKernelsError) {
        try require(
            heads >= 1 && heads <= Int(Int32.max), .invalidArgument, "heads", expected: "1 to 2³¹ − 1", actual: "\(heads)")
    }
}
