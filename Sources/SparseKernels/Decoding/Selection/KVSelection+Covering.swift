extension KVSelection {
    /// This selection, with the pages or tokens that contain given positions added to every list.
    ///
    /// A selection made before tokens were appended lacks the page that they began. Without that page, the newest tokens would
    /// be hidden from the query.
    ///
    /// - Parameter positions: token positions per sequence. Empty ranges add nothing. Their pages must be in the page table.
    /// - Throws: `.invalidShape` unless there is one range per sequence, `.invalidArgument` for negative positions and
    ///   positions of 2³¹ or more.
    /// - Complexity: O(indices). A selection that has the positions already is returned unchanged.
    public func covering(_ positions: [Range<Int>]) throws(SparseKernelsError) -> KVSelection {
        try require(
            positions.count == sequences, .invalidShape, "positions", expected: "one range per sequence (\(sequences))",
            actual: "\(positions.count)")
        for (index, range) in positions.enumerated() {
            try require(
                range.lowerBound >= 0 && range.upperBound <= 1 << 31, .invalidArgument, "positions[\(index)]",
                expected: "within 0..<2³¹", actual: "\(range)")
        }
        var result = KVSelectionLists()
        var isChanged = false
        for sequence in 0..<sequences {
            let added = positions[sequence].isEmpty ? 0..<0 : positions[sequence].units(of: unit)
            for head in 0..<heads {
                let list = self.list(sequence: sequence, head: head)
                let before = list.prefix { Int($0) < added.lowerBound }
                let after = added.isEmpty ? list.dropFirst(before.count) : list.drop { Int($0) < added.upperBound }
                isChanged = isChanged || before.count + added.count + after.count != list.count
                result.append(before)
                result.append(added.lazy.map { Int32(truncatingIfNeeded: $0) })
                result.append(after)
                result.endList()
            }
        }
        return isChanged ? result.selection(unit: unit, sequences: sequences, heads: heads) : self
    }
}

extension Range<Int> {
    /// The units of the given size that overlap a range, which must not be empty.
    func units(of size: Int) -> Range<Int> { lowerBound / size..<(upperBound - 1) / size + 1 }
}

/// The lists of a selection, concatenated.
struct KVSelectionLists {
    private var offsets = [0]
    private var indices: [Int32] = []

    mutating func append(_ part: some Sequence<Int32>) { indices.append(contentsOf: part) }
    mutating func endList() { offsets.append(indices.count) }

    func selection(unit: Int, sequences: Int, heads: Int) -> KVSelection {
        KVSelection(unchecked: unit, sequences: sequences, heads: heads, offsets: offsets, indices: indices)
    }
}
