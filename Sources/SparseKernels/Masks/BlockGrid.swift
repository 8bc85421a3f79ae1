/// The attention matrix cut into blocks: block (row, column) is a rectangle of (query, key) pairs.
///
/// A causal grid hides pairs after the diagonal. Query *i* has key position *i* + `keyLength` − `queryLength`, so that the
/// sequences end together. Blocks without a visible pair are unreachable: masks ignore them and densities do not count them.
/// With more queries than keys the first queries are before key 0, and a causal grid hides every key from them.
public struct BlockGrid: Hashable, Sendable {
    /// Rows: the queries.
    public let query: BlockPartition
    /// Columns: the keys.
    public let key: BlockPartition
    public let isCausal: Bool

    /// A number at least as large as the number of pairs and of blocks.
    let extent: Int
    /// Below this, no sum over pairs or blocks overflows.
    static let extentLimit = 1 << 60

    /// - Throws: `.invalidShape` for 2³¹ key blocks or more (columns are 32-bit), or 2⁶⁰ pairs or more.
    public init(query: BlockPartition, key: BlockPartition, isCausal: Bool) throws(SparseKernelsError) {
        try require(
            key.count <= Int(Int32.max), .invalidShape, "key", expected: "fewer than 2³¹ blocks", actual: "\(key.count)")
        // Partitions with empty blocks may have more blocks than tokens. An empty side counts as one block, because the rows or
        // columns of the other side must not overflow either.
        let (extent, overflow) = max(1, query.length, query.count).multipliedReportingOverflow(
            by: max(1, key.length, key.count))
        try require(
            !overflow && extent < Self.extentLimit, .invalidShape, "queryLength",
            expected: "such that queryLength · keyLength is below 2⁶⁰", actual: "\(query.length) · \(key.length)")
        self.query = query
        self.key = key
        self.isCausal = isCausal
        self.extent = extent
    }

    /// Makes a grid of equal blocks, with a ragged last row and column.
    /// - Throws: `.invalidShape` for a negative length, a block size below 1, or an extent that is too large.
    public init(
        queryLength: Int, keyLength: Int, queryBlockSize: Int = 128, keyBlockSize: Int = 128, isCausal: Bool
    ) throws(SparseKernelsError) {
        for (name, extent, least) in [
            ("queryLength", queryLength, 0), ("keyLength", keyLength, 0), ("queryBlockSize", queryBlockSize, 1),
            ("keyBlockSize", keyBlockSize, 1),
        ] {
            try require(
                extent >= least && extent < BlockPartition.limit, .invalidShape, name,
                expected: "at least \(least) and below 2⁶⁰", actual: "\(extent)")
        }
        try self.init(
            query: BlockPartition(length: queryLength, blockSize: queryBlockSize),
            key: BlockPartition(length: keyLength, blockSize: keyBlockSize), isCausal: isCausal)
    }

    /// The grid of an attention call.
    /// - Throws: the errors of `init(queryLength:keyLength:queryBlockSize:keyBlockSize:isCausal:)`.
    public init(_ shape: AttentionShape, blockSize: Int = 128, isCausal: Bool) throws(SparseKernelsError) {
        try self.init(
            queryLength: shape.queryLength, keyLength: shape.keyLength, queryBlockSize: blockSize, keyBlockSize: blockSize,
            isCausal: isCausal)
    }

    /// The number of block rows, and of block columns.
    public var blockRows: Int { query.count }
    public var blockColumns: Int { key.count }

    /// Key position of query 0.
    public var queryOffset: Int { key.length - query.length }

    /// Key positions of the row's queries, which are negative for queries before the first key.
    func positions(ofRow row: Int) -> Range<Int> {
        let queries = query[row]
        return queries.lowerBound + queryOffset..<queries.upperBound + queryOffset
    }

    /// Columns in which some query of the row sees some key: all columns, or those up to the diagonal.
    ///
    /// An empty row reaches no column, and neither does a causal row whose queries are all before the first key. An empty
    /// column among reached ones counts as reached, although it has no pair.
    public func reachableColumns(ofRow row: Int) -> Range<Int> {
        let queries = query[row]
        if queries.isEmpty || key.length == 0 { return 0..<0 }
        if !isCausal { return 0..<blockColumns }
        if queries.upperBound + queryOffset <= 0 { return 0..<0 }
        return 0..<key.block(of: queries.upperBound - 1 + queryOffset) + 1
    }

    /// Columns with the positions of the row's own queries: the diagonal blocks. A row before the first key has none.
    public func diagonalColumns(ofRow row: Int) -> Range<Int> {
        let positions = positions(ofRow: row)
        if positions.isEmpty || positions.upperBound <= 0 { return 0..<0 }
        return key.block(of: positions.lowerBound)..<key.block(of: positions.upperBound - 1) + 1
    }

    /// The number of reachable blocks of the whole grid.
    /// - Complexity: O(rows).
    public var reachableBlocks: Int { (0..<blockRows).reduce(0) { $0 + reachableColumns(ofRow: $1).count } }

    /// The number of pairs of block (row, column) that the causal limit leaves.
    public func visiblePairs(row: Int, column: Int) -> Int {
        let (queries, keys) = (query[row], key[column])
        if !isCausal { return queries.count * keys.count }
        return pairsBelowDiagonal(
            rows: queries.count, columns: keys.count, offset: queries.lowerBound + queryOffset + 1 - keys.lowerBound)
    }

    /// A short description of the grid for messages and pictures.
    var summary: String {
        let sizes: String
        if let rows = query.blockSize, let columns = key.blockSize {
            sizes = "blocks of \(rows) × \(columns) tokens"
        } else {
            sizes = "blocks of varying sizes over \(query.length) × \(key.length) tokens"
        }
        return "\(blockRows) × \(blockColumns) \(sizes), \(isCausal ? "causal" : "not causal")"
    }
}
