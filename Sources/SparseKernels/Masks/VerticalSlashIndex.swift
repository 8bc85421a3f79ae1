/// The keys that each block of queries reads in a vertical-slash head: runs where diagonals pass, and single keys between.
///
/// A block of `blockSize` queries that ends before position e meets the diagonal of distance t in a square of pairs. The run
/// [e − t − `blockSize`, e − t), moved to start at or after key 0, covers its keys. Runs that touch are merged in whole blocks,
/// so a run may extend up to `blockSize` keys further than its diagonals. Kept keys outside of runs are single keys.
///
/// The starts of runs are arbitrary, not multiples of `blockSize`. The last run may extend beyond the diagonal and beyond the
/// last key; `keyRuns` clips it, and attention applies the causal limit token by token.
///
/// With more queries than keys, blocks whose queries are all before key 0 read nothing.
///
/// - Source: `convert_vertical_slash_indexes_kernel` (microsoft/MInference, csrc/vertical_slash_index.cu), for lengths that may
///   differ: query 0 has position `keyLength` − `queryLength`.
/// - Complexity: O(query blocks · lines).
public struct VerticalSlashIndex: Hashable, Sendable {
    /// The blocks of queries.
    public let query: BlockPartition
    public let keyLength: Int
    public let blockSize: Int
    /// Single keys of query block b: `columns[columnOffsets[b]..<columnOffsets[b + 1]]`, ascending.
    public let columnOffsets: [Int]
    public let columns: [Int32]
    /// First keys of the key blocks of query block b: `blockStarts[blockOffsets[b]..<blockOffsets[b + 1]]`, ascending. Each
    /// key block has `blockSize` keys.
    public let blockOffsets: [Int]
    public let blockStarts: [Int32]

    /// The block size of the released kernels.
    public static let releasedBlockSize = 64

    /// - Parameters:
    ///   - lines: keys below `keyLength`, and distances below `keyLength`, 0 among them unless there are no keys.
    ///   - queryLength: tokens of the query side.
    ///   - blockSize: queries per query block, and keys per key block.
    ///   - keyLength: tokens of the key side.
    /// - Throws: `.invalidShape` for negative lengths, a block size below 1, or 2³⁰ keys; `.invalidArgument` for lines out of
    ///   range, or without distance 0, because the queries' own keys must be in a run.
    public init(
        _ lines: VerticalSlashLines, queryLength: Int, keyLength: Int, blockSize: Int = releasedBlockSize
    ) throws(SparseKernelsError) {
        query = try BlockPartition(length: queryLength, blockSize: blockSize)
        // Runs end at most two blocks after the last key, and must fit in 32 bits.
        try require(
            keyLength >= 0 && keyLength < 1 << 30, .invalidShape, "keyLength", expected: "at least 0 and below 2³⁰",
            actual: "\(keyLength)")
        try require(blockSize < 1 << 29, .invalidShape, "blockSize", expected: "below 2²⁹", actual: "\(blockSize)")
        for (name, values) in [("lines.keys", lines.keys), ("lines.distances", lines.distances)] {
            for value in [values.first, values.last] {
                guard let value else { continue }
                try require(
                    value >= 0 && value < keyLength, .invalidArgument, name,
                    expected: "numbers from 0 on, below keyLength (\(keyLength))",
                    actual: "\(value)"
                )
            }
        }
        try require(
            keyLength == 0 || lines.distances.first == 0, .invalidArgument, "lines.distances",
            expected: "distances with 0 among them",
            actual: lines.distances.first.map { "distances from \($0) on" } ?? "none")
        var builder = VerticalSlashBuilder(lines: lines, blockSize: blockSize)
        for block in 0..<query.count {
            builder.append(end: keyLength - queryLength + (block + 1) * blockSize)
        }
        self.keyLength = keyLength
        self.blockSize = blockSize
        (columnOffsets, columns) = (builder.columnOffsets, builder.columns)
        (blockOffsets, blockStarts) = (builder.blockOffsets, builder.blockStarts)
    }

    /// Single keys of a block of queries.
    public func columns(block: Int) -> ArraySlice<Int32> { columns[columnOffsets[block]..<columnOffsets[block + 1]] }

    /// First keys of the key blocks of a block of queries.
    public func blockStarts(block: Int) -> ArraySlice<Int32> { blockStarts[blockOffsets[block]..<blockOffsets[block + 1]] }

    /// The runs of a block of queries, clipped to the keys. Runs that touch are merged.
    private func runs(block: Int) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        for start in blockStarts(block: block) where start < keyLength {
            let run = Int(start)..<min(keyLength, Int(start) + blockSize)
            if let last = runs.last, last.upperBound == run.lowerBound {
                runs[runs.count - 1] = last.lowerBound..<run.upperBound
            } else {
                runs.append(run)
            }
        }
        return runs
    }

    /// The same keys in the form that attention reads.
    public var keyRuns: KeyRuns {
        var runs: [Range<Int>] = []
        var offsets = [0]
        for block in 0..<query.count {
            runs += self.runs(block: block)
            offsets.append(runs.count)
        }
        // By construction runs ascend without touching, and columns are between them.
        return try! KeyRuns(
            query: query, keyLength: keyLength, runOffsets: offsets, runs: runs, keyOffsets: columnOffsets, keys: columns)
    }

    /// The pattern in blocks: every block of a grid with a kept key of its row's queries.
    ///
    /// - Parameter grid: a causal grid over the same tokens, with blocks of any size.
    /// - Throws: `.invalidShape` for a grid over other lengths, `.invalidArgument` for one that is not causal.
    public func blockCover(_ grid: BlockGrid) throws(SparseKernelsError) -> BlockMask {
        try require(
            grid.query.length == query.length && grid.key.length == keyLength, .invalidShape, "grid",
            expected: "over \(query.length) × \(keyLength) tokens", actual: "\(grid.query.length) × \(grid.key.length)")
        try require(grid.isCausal, .invalidArgument, "grid", expected: "causal", actual: "not causal")
        var builder = BlockMaskBuilder(grid: grid, heads: 1)
        var isKept = [Bool](repeating: false, count: grid.blockColumns)
        for row in 0..<grid.blockRows {
            let reachable = grid.reachableColumns(ofRow: row)
            for column in reachable { isKept[column] = false }
            if !reachable.isEmpty {
                let queries = grid.query[row]
                for block in query.block(of: queries.lowerBound)...query.block(of: queries.upperBound - 1) {
                    for run in runs(block: block) {
                        for column in grid.key.block(of: run.lowerBound)...grid.key.block(of: run.upperBound - 1) {
                            isKept[column] = true
                        }
                    }
                    for key in columns(block: block) { isKept[grid.key.block(of: Int(key))] = true }
                }
            }
            for column in reachable where isKept[column] && !grid.key[column].isEmpty { builder.keep(column) }
            builder.endRow()
        }
        return builder.mask
    }
}

/// Merges the lines of one block of queries after the other, as the released kernel does with one thread per block.
private struct VerticalSlashBuilder {
    let lines: VerticalSlashLines
    let blockSize: Int
    var columnOffsets = [0]
    var columns: [Int32] = []
    var blockOffsets = [0]
    var blockStarts: [Int32] = []
    /// The number of distances below the end of the block, whose diagonals reach key 0 or later inside the full block.
    private var reaching = 0

    init(lines: VerticalSlashLines, blockSize: Int) {
        self.lines = lines
        self.blockSize = blockSize
    }

    /// - Parameter end: one past the position of the last query of the full block. Ends ascend from call to call.
    mutating func append(end: Int) {
        while reaching < lines.distances.count && Int(lines.distances[reaching]) < end { reaching += 1 }
        defer {
            columnOffsets.append(columns.count)
            blockOffsets.append(blockStarts.count)
        }
        // Every query of the block is before the first key.
        if reaching == 0 { return }
        // From the largest distance down, the ends of the squares' keys ascend. If any distance is reached, distance 0 is.
        var distance = reaching - 1
        var range = run(end, distance)
        var vertical = 0
        while true {
            while vertical < lines.keys.count && lines.keys[vertical] < range.upperBound {
                if lines.keys[vertical] < range.lowerBound { columns.append(lines.keys[vertical]) }
                vertical += 1
            }
            distance -= 1
            if distance < 0 { break }
            let next = run(end, distance)
            if next.upperBound > range.upperBound + blockSize {
                flush(range)
                range = next
            } else if next.upperBound > range.upperBound {
                range = range.lowerBound..<range.upperBound + blockSize
            }
        }
        flush(range)
    }

    /// The keys that the diagonal of a distance covers.
    private func run(_ end: Int, _ distance: Int) -> Range<Int> {
        let upper = max(end - Int(lines.distances[distance]), blockSize)
        return upper - blockSize..<upper
    }

    private mutating func flush(_ range: Range<Int>) {
        for start in stride(from: range.lowerBound, to: range.upperBound, by: blockSize) {
            blockStarts.append(Int32(truncatingIfNeeded: start))
        }
    }
}
