/// The keys that each block of queries keeps: runs of adjacent keys, which may start anywhere, and single keys.
///
/// Vertical-slash patterns have this form: diagonal bands are runs that start at any token, and verticals are single keys. Both
/// obey the causal limit of the call token by token. A single key costs a copy of its rows per block of queries, which is worth
/// it only where it stands alone; adjacent keys should form a run.
public struct KeyRuns: Hashable, Sendable {
    /// The blocks of queries.
    public let query: BlockPartition
    public let keyLength: Int
    /// Block b has the runs `runs[runOffsets[b]..<runOffsets[b + 1]]`, ascending and disjoint.
    public let runOffsets: [Int]
    public let runs: [Range<Int>]
    /// Block b has the single keys `keys[keyOffsets[b]..<keyOffsets[b + 1]]`, ascending and outside the runs of the block.
    public let keyOffsets: [Int]
    public let keys: [Int32]

    /// - Throws: `.invalidShape` for wrong counts or a negative number of keys, `.invalidArgument` for offsets or keys out of
    ///   order or out of range, empty or overlapping runs, and single keys inside a run.
    public init(
        query: BlockPartition, keyLength: Int, runOffsets: [Int], runs: [Range<Int>], keyOffsets: [Int], keys: [Int32]
    ) throws(SparseKernelsError) {
        try require(keyLength >= 0, .invalidShape, "keyLength", expected: "at least 0", actual: "\(keyLength)")
        try Self.checkOffsets(runOffsets, named: "runOffsets", blocks: query.count, elements: runs.count)
        try Self.checkOffsets(keyOffsets, named: "keyOffsets", blocks: query.count, elements: keys.count)
        for block in 0..<query.count {
            var end = 0
            for index in runOffsets[block]..<runOffsets[block + 1] {
                let run = runs[index]
                try require(
                    run.lowerBound >= end && !run.isEmpty && run.upperBound <= keyLength, .invalidArgument, "runs[\(index)]",
                    expected: "one or more keys, from \(end) on, where the run before ends, and below keyLength (\(keyLength))",
                    actual: "\(run)")
                end = run.upperBound
            }
            var run = runOffsets[block]
            var previous = -1
            for index in keyOffsets[block]..<keyOffsets[block + 1] {
                let key = Int(keys[index])
                while run < runOffsets[block + 1] && runs[run].upperBound <= key { run += 1 }
                let isCovered = run < runOffsets[block + 1] && runs[run].contains(key)
                try require(
                    key > previous && key < keyLength && !isCovered, .invalidArgument, "keys[\(index)]",
                    expected: "ascending, below keyLength (\(keyLength)) and outside the block's runs", actual: "\(key)")
                previous = key
            }
        }
        self.query = query
        self.keyLength = keyLength
        self.runOffsets = runOffsets
        self.runs = runs
        self.keyOffsets = keyOffsets
        self.keys = keys
    }

    private static func checkOffsets(
        _ offsets: [Int], named name: String, blocks: Int, elements: Int
    ) throws(SparseKernelsError) {
        try require(
            offsets.count == blocks + 1, .invalidShape, name,
            expected: "\(blocks + 1) offsets, one per query block and one more",
            actual: "\(offsets.count)")
        try require(
            offsets[0] == 0 && offsets[blocks] == elements, .invalidArgument, name,
            expected: "ascending from 0 to \(elements), the number of elements",
            actual: "from \(offsets[0]) to \(offsets[blocks])")
        for block in 0..<blocks {
            try require(
                offsets[block] <= offsets[block + 1], .invalidArgument, "\(name)[\(block + 1)]",
                expected: "at least \(offsets[block]), the offset before", actual: "\(offsets[block + 1])")
        }
    }

    /// Runs of one block of queries.
    public func runs(block: Int) -> ArraySlice<Range<Int>> { runs[runOffsets[block]..<runOffsets[block + 1]] }

    /// Single keys of one block of queries.
    public func keys(block: Int) -> ArraySlice<Int32> { keys[keyOffsets[block]..<keyOffsets[block + 1]] }
}
