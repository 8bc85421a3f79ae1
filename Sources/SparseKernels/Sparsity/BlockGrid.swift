/// The attention matrix cut into blocks: which rectangle of (query, key) pairs block (row, column) is.
///
/// A causal grid hides pairs after the diagonal, query *i* standing at key position *i* + `keyLength` − `queryLength` (the
/// sequences end together). Blocks that the diagonal leaves without a pair are unreachable: masks ignore them and densities do
/// not count them.
public struct BlockGrid: Hashable, Sendable {
    /// Rows: the queries.
    public let query: BlockPartition
    /// Columns: the keys.
    public let key: BlockPartition
    public let isCausal: Bool

    /// - Throws: `.invalidShape` for a causal grid with more queries than keys.
    public init(query: BlockPartition, key: BlockPartition, isCausal: Bool) throws(SparseKernelsError) {
        try require(
            !isCausal || query.length <= key.length, .invalidShape, "queryLength",
            expected: "at most keyLength (\(key.length)) when causal", actual: "\(query.length)")
        self.query = query
        self.key = key
        self.isCausal = isCausal
    }

    /// Equal blocks, the last row and column ragged.
    /// - Throws: `.invalidShape` for an extent below 1, or a causal grid with more queries than keys.
    public init(
        queryLength: Int, keyLength: Int, queryBlockSize: Int = 128, keyBlockSize: Int = 128, isCausal: Bool
    ) throws(SparseKernelsError) {
        for (name, extent) in [
            ("queryLength", queryLength), ("keyLength", keyLength), ("queryBlockSize", queryBlockSize),
            ("keyBlockSize", keyBlockSize),
        ] {
            try require(extent >= 1, .invalidShape, name, expected: "at least 1", actual: "\(extent)")
        }
        try self.init(
            query: BlockPartition(length: queryLength, blockSize: queryBlockSize),
            key: BlockPartition(length: keyLength, blockSize: keyBlockSize), isCausal: isCausal)
    }

    /// The grid of an attention call.
    /// - Throws: as above.
    public init(_ shape: AttentionShape, blockSize: Int = 128, isCausal: Bool) throws(SparseKernelsError) {
        try self.init(
            queryLength: shape.queryLength, keyLength: shape.keyLength, queryBlockSize: blockSize, keyBlockSize: blockSize,
            isCausal: isCausal)
    }

    /// Block rows and block columns.
    public var blockRows: Int { query.count }
    public var blockColumns: Int { key.count }

    /// Key position of query 0.
    public var queryOffset: Int { key.length - query.length }

    /// Columns in which some query of the row sees some key: all of them, or those up to the diagonal.
    ///
    /// An empty row of a variable partition reaches none.
    public func reachableColumns(ofRow row: Int) -> Range<Int> {
        let queries = query[row]
        if queries.isEmpty { return 0..<0 }
        if !isCausal { return 0..<blockColumns }
        return 0..<key.block(of: queries.upperBound - 1 + queryOffset) + 1
    }

    /// Columns that hold the positions of the row's own queries: the diagonal blocks.
    public func diagonalColumns(ofRow row: Int) -> Range<Int> {
        let queries = query[row]
        if queries.isEmpty { return 0..<0 }
        return key.block(of: queries.lowerBound + queryOffset)..<key.block(of: queries.upperBound - 1 + queryOffset) + 1
    }

    /// Reachable blocks of the whole grid.
    public var reachableBlocks: Int { (0..<blockRows).reduce(0) { $0 + reachableColumns(ofRow: $1).count } }

    /// Pairs of block (row, column) that the diagonal leaves.
    public func visiblePairs(row: Int, column: Int) -> Int {
        let (queries, keys) = (query[row], key[column])
        if !isCausal { return queries.count * keys.count }
        return pairsBelowDiagonal(
            rows: queries.count, columns: keys.count, offset: queries.lowerBound + queryOffset + 1 - keys.lowerBound)
    }
}
