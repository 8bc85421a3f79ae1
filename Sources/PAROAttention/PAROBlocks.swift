public import SparseKernels

/// The blocks of a permuted video with its text, and which of them a plan may leave out.
///
/// Blocks are equal and start at the first token, so that with text first the last text tokens share a block with the first
/// tokens of the video. Blocks with a text token are *text blocks*, the others *image blocks*. Text rows and columns are
/// dense, and so are the last row and column, because the released kernel handles the end of the sequence there.
public struct PAROBlocks: Hashable, Sendable {
    public let geometry: VideoGeometry
    /// Tokens per block.
    public let blockSize: Int
    /// The blocks of all tokens.
    public let grid: BlockGrid
    /// Rows, and columns, without a text token.
    public let image: Range<Int>

    /// The block size of the released kernel.
    public static let releasedBlockSize = 64

    /// - Throws: `.invalidShape` naming a block size below 1 or 2⁶⁰ or more.
    public init(_ geometry: VideoGeometry, blockSize: Int = releasedBlockSize) throws(SparseKernelsError) {
        grid = try BlockGrid(
            query: BlockPartition(length: geometry.tokens, blockSize: blockSize),
            key: BlockPartition(length: geometry.tokens, blockSize: blockSize), isCausal: false)
        self.geometry = geometry
        self.blockSize = blockSize
        switch geometry.textPlacement {
        case .before:
            image = min(grid.blockRows, (geometry.textTokens + blockSize - 1) / blockSize)..<grid.blockRows
        case .after:
            image = 0..<(geometry.textTokens == 0 ? grid.blockRows : geometry.videoTokens / blockSize)
        }
    }

    /// Image blocks that a mask may leave out: those before the last row and column.
    var free: Range<Int> { image.lowerBound..<max(image.lowerBound, min(image.upperBound, grid.blockRows - 1)) }

    /// The mask of all blocks from one of image blocks: text rows and columns, and the last row and column, are kept.
    ///
    /// - Parameter imageMask: 1 for kept blocks, `[heads, image blocks, image blocks]`.
    /// - Throws: `.invalidShape` for another shape or no heads.
    /// - Source: padding of `sparse` in `example/pipeline_cogvideox.py` of jamescsq47/PAROAtten.
    public func mask(padding imageMask: Tensor<UInt8>) throws(SparseKernelsError) -> BlockMask {
        let shape = imageMask.shape
        try require(
            shape.count == 3 && shape[1] == image.count && shape[2] == image.count, .invalidShape, "imageMask",
            expected: "[heads, \(image.count), \(image.count)]", actual: "\(shape)")
        let entries = imageMask.span
        return try mask(heads: shape[0]) { head, row, column in
            entries[(head * image.count + row - image.lowerBound) * image.count + column - image.lowerBound] != 0
        }
    }

    /// The mask whose free blocks are those that `isKept(head, row, column)` names.
    func mask(heads: Int, _ isKept: (Int, Int, Int) -> Bool) throws(SparseKernelsError) -> BlockMask {
        let free = free
        return try BlockMask(grid: grid, heads: heads) { head, row, column in
            !free.contains(row) || !free.contains(column) || isKept(head, row, column)
        }
    }
}
