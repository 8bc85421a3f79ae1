public import SparseKernels

/// TODO: one sentence that says what the paper does.
///
/// - Source: TODO: authors, title, year, section; the official function.
/// - Complexity: TODO.
/// - Scratch: TODO.
public struct SparseVideoGenAttention: PredictiveAttention {
    public let shape: AttentionShape
    private let grid: BlockGrid

    /// - Throws: TODO.
    public init(_ shape: AttentionShape) throws(SparseKernelsError) {
        self.shape = shape
        grid = try BlockGrid(shape, blockSize: 128, isCausal: true)
    }

    /// Chooses the blocks that each query block attends. See `SelectiveAttention.select`.
    public func select<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        // TODO: scores from Scoring/, then a selection.
        return BlockMask.full(grid)
    }

    public func attention(over selected: BlockMask) throws(SparseKernelsError) -> BlockSparseAttention {
        try BlockSparseAttention(shape, mask: selected)
    }
}
