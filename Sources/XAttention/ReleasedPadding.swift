/// The lengths to which the released code pads sequences with zeros at the end.
struct ReleasedPadding {
    let chunkSize: Int
    let queryLength: Int
    let keyLength: Int

    /// - Throws: `.invalidArgument` for a chunk that is not a positive multiple of the block, `.invalidShape` for lengths that
    ///   overflow or for which the released code would misalign the queries.
    init(grid: BlockGrid, blockSize: Int, chunkSize: Int?) throws(SparseKernelsError) {
        let chunkSize = chunkSize ?? XAttentionPrefill.releasedChunkSize(keyLength: grid.key.length)
        try require(
            chunkSize >= 1 && chunkSize % blockSize == 0, .invalidArgument, "chunkSize",
            expected: "a positive multiple of blockSize (\(blockSize))", actual: "\(chunkSize)")
        // The released code aligns the padded ends. They are the true ends only when both sequences have the same padding.
        try require(
            grid.queryOffset >= 0 && grid.queryOffset % chunkSize == 0, .invalidShape, "queryLength",
            expected: "keyLength (\(grid.key.length)) less a multiple of the chunk (\(chunkSize)) in the released mode, "
                + "which would misalign the queries otherwise",
            actual: "\(grid.query.length)")
        let padding = (chunkSize - grid.key.length % chunkSize) % chunkSize
        let (length, overflow) = grid.key.length.addingReportingOverflow(padding)
        try require(!overflow, .invalidShape, "chunkSize", expected: "a padded length of 63 bits", actual: "\(chunkSize)")
        self.chunkSize = chunkSize
        queryLength = grid.query.length + padding
        keyLength = length
    }
}

extension XAttentionPrefill {
    /// The chunk size that the released code chooses.
    ///
    /// It is 2048 up to 2048 keys, grows to 16384 at 16384 keys, and falls back to 2048 from 65537 keys on, so that chunk ×
    /// keys stays at or below 2²⁸.
    /// - Source: `Xattention_prefill` in `xattn/src/Xattention.py`, called without `chunk_size`.
    public static func releasedChunkSize(keyLength: Int) -> Int {
        var power = 1
        while power < keyLength { power *= 2 }
        return max(min(max(2048, power), (1 << 28) / power), 2048)
    }
}
