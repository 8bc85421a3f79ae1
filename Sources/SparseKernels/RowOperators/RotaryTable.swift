internal import KernelInterface

/// Cosines and sines of some positions, which rotate queries and keys of every layer. `RotaryEmbedding.table` makes it.
///
/// - Results are bitwise equal for every number of threads, and those of a token depend on its position only.
/// - Complexity: O(heads · tokens · rotated channels), in place.
/// - Scratch: none.
public struct RotaryTable: Sendable {
    public let headDim: Int
    private let layout: RotationLayout
    private let values: Tensor<Float>
    private let kernels: any KernelTable.Type

    init(headDim: Int, layout: RotationLayout, values: Tensor<Float>, kernels: any KernelTable.Type) {
        self.headDim = headDim
        self.layout = layout
        self.values = values
        self.kernels = kernels
    }

    /// The number of positions.
    public var count: Int { values.shape[0] }

    /// Bytes of the table.
    public var byteCount: Int { values.count * 4 }

    /// The cosine and the sine by which a pair of channels of a token is rotated, with the attention factor.
    public func rotation(token: Int, pair: Int) -> (cosine: Float, sine: Float) {
        precondition(
            token >= 0 && token < count && pair >= 0 && pair < layout.pairs,
            "(\(token), \(pair)) outside \(count) tokens × \(layout.pairs) pairs")
        // Of two interleaved sines, the first is negated.
        let column = layout.isInterleaved ? 2 * pair + 1 : pair
        let row = token * layout.stride
        return (values[flat: row + column], values[flat: row + layout.width + column])
    }

    /// Rotates every head of every token in place: token t by the t-th position of the table.
    ///
    /// - Parameters:
    ///   - x: heads × positions × `headDim`, in any layout; of a matrix of queries, keys and values side by side, a view of the heads.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for another number of tokens or channels; nothing is written then.
    public func rotate<Element: AttentionElement>(
        _ x: consuming MutableTensorView<Element>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try rotate(x, direction: 1, on: pool)
    }

    /// Rotates by the angles, or by their negatives for a `direction` of −1.
    package func rotate<Element: AttentionElement>(
        _ x: consuming MutableTensorView<Element>, direction: Float, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try require(
            x.tokens == count && x.channels == headDim, .invalidShape, "x",
            expected: "\(count) tokens × \(headDim) channels", actual: "\(x.tokens) × \(x.channels)")
        if x.tokens == 0 { return }
        let operand = MutableAttentionOperand(addressing: &x)
        let lines = RowLines(operand.geometry)
        let call = RotateCall(
            kernels: kernels, operand: operand, lines: lines, layout: layout, direction: direction,
            table: UnsafePointer(values.storage.pointer.assumingMemoryBound(to: Float.self)))
        pool.run(call, tasks: lines.taskCount, work: lines.work(bytesPerRow: headDim * 2 * operand.type.byteCount))
    }
}

private struct RotateCall: PoolCall {
    let kernels: any KernelTable.Type
    let operand: MutableAttentionOperand
    let lines: RowLines
    let layout: RotationLayout
    let direction: Float
    let table: UnsafePointer<Float>

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let part = lines.part(task)
        var arguments = RotateArguments(
            x: RowTarget(base: operand.row(head: part.head, token: part.token), stride: lines.rowStride, type: operand.type),
            rows: part.rows, layout: layout, table: table + part.token * layout.stride,
            tableStride: lines.isOverHeads ? 0 : layout.stride)
        arguments.direction = direction
        kernels.rotateRows(&arguments)
    }
}
