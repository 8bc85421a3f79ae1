internal import KernelInterface

/// How the work of a dense plan is cut into tasks. It follows from the shape, the mask and the level, never from the threads.
///
/// The rows of a task are queries of one head, or, when there are few queries, those of all heads that share a KV head, stacked:
/// keys and values are then read, and widened if they must be, once for all of these heads. When this leaves few tasks and the
/// keys are many, the keys are cut into pieces, whose results are merged.
struct DenseTiling {
    /// Query heads of a task: 1, or all of a KV head.
    let heads: Int
    /// Queries of a task; rows are `heads` times as many.
    let queries: Int
    /// Blocks of queries.
    let blocks: Int
    /// The keys of all tasks together. Without pieces, all keys.
    let keys: Range<Int>
    let pieceLength: Int
    let pieces: Int

    /// Tasks that keep 16 threads busy.
    private static let enoughTasks = 16
    /// The least keys of a piece. A partial result of a row takes as long to write and merge as a few keys.
    private static let leastPiece = 2048

    /// - Parameters:
    ///   - shape: the sizes of the call.
    ///   - visible: the keys that some query sees.
    ///   - stacks: whether the scores of the heads of a group are alike but for queries and keys.
    ///   - kernels: the level.
    init(_ shape: AttentionShape, visible: Range<Int>, stacks: Bool, _ kernels: any KernelTable.Type) {
        let (panel, group) = (kernels.sizes.panelWidth, shape.queryHeadsPerKVHead)
        let most = AttentionScratch.maximumQueryRows / panel * panel
        let isLong = visible.count >= 2 * Self.leastPiece
        // With as many queries as a task has rows, stacking has nothing to offer.
        let stacked =
            stacks && group > 1 && group <= most && shape.queryLength < most && shape.keyLength < Int(Int32.max)
        let heads = stacked ? group : 1
        func blocks(_ rows: Int) -> Int {
            let queries = max(1, rows / heads)
            return (shape.queryLength + queries - 1) / queries
        }
        let units = shape.queryHeads / heads
        let rows: Int
        if !stacked {
            rows = DenseAttention.queryBlock(shape, kernels)
        } else if isLong || units * blocks(most) >= Self.enoughTasks {
            rows = most
        } else {
            rows = (units * blocks(96) >= Self.enoughTasks ? 96 : 48) / panel * panel
        }
        self.heads = heads
        self.blocks = blocks(rows)
        // Stacked blocks of the same size, because nothing else evens out a short one.
        queries = stacked ? max(1, (shape.queryLength + blocks(rows) - 1) / max(1, blocks(rows))) : rows

        let tasks = units * self.blocks
        if isLong && tasks > 0 && tasks < Self.enoughTasks {
            let wanted = min(visible.count / Self.leastPiece, (Self.enoughTasks + tasks - 1) / tasks)
            let step = AttentionScratch.keyBlock
            keys = visible
            pieceLength = (visible.count / wanted + step - 1) / step * step
            pieces = (visible.count + pieceLength - 1) / pieceLength
        } else {
            keys = 0..<shape.keyLength
            pieceLength = shape.keyLength
            pieces = 1
        }
    }

    /// The rows of the largest task.
    func rows(_ shape: AttentionShape) -> Int { min(queries, shape.queryLength) * heads }

    /// The keys of a piece.
    func keys(ofPiece piece: Int) -> Range<Int> {
        let first = keys.lowerBound + piece * pieceLength
        return first..<min(first + pieceLength, keys.upperBound)
    }
}
