internal import KernelInterface

/// One product with picked rows: C (+)= A · B[I]ᵀ (+ bias) or A · B[I] (+ bias).
struct PickedProductCall {
    let layer: SparseLinear
    let a: UnsafePointer<Float>
    let aStride: Int
    let c: UnsafeMutablePointer<Float>
    let cStride: Int
    let rows: Int
    /// The number of rows of B that take part.
    let picked: Int
    let isTransposed: Bool
    let accumulates: Bool
    let addsBias: Bool

    var columns: Int { isTransposed ? picked : layer.depth }
    var depth: Int { isTransposed ? layer.depth : picked }

    /// - Parameter list: the rows of B; nil means all.
    func run(_ list: UnsafePointer<Int32>?, on pool: WorkerPool) {
        if columns == 0 { return }
        if layer.type == .float32 && list == nil {
            multiply(layer.weights.pointer.assumingMemoryBound(to: Float.self), list, on: pool)
            return
        }
        pool.withWorkspace(byteCount: max(1, picked * layer.depth * 4)) { workspace in
            let gathered = workspace.assumingMemoryBound(to: Float.self)
            let gather = PickedRows(call: self, list: list, target: gathered)
            pool.run(gather, tasks: (picked + PickedRows.taskRows - 1) / PickedRows.taskRows, work: picked * layer.depth)
            multiply(gathered, list, on: pool)
        }
    }

    private func multiply(_ b: UnsafePointer<Float>, _ list: UnsafePointer<Int32>?, on pool: WorkerPool) {
        let blocks = PickedBlocks(call: self, b: b, list: list)
        pool.run(
            blocks, tasks: blocks.count, work: max(rows, 4) * columns * max(depth, 1),
            scratchByteCount: GEMM.taskScratchByteCount + PickedBlocks.rows * PickedBlocks.columns * 4)
    }
}

/// Copies picked rows as floats.
private struct PickedRows: PoolCall {
    let call: PickedProductCall
    let list: UnsafePointer<Int32>?
    let target: UnsafeMutablePointer<Float>

    static let taskRows = 16

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (layer, first) = (call.layer, task * Self.taskRows)
        let count = min(Self.taskRows, call.picked - first)
        let source = RowOperand(base: UnsafeRawPointer(layer.weights.pointer), stride: layer.depth, type: layer.type)
        let target = target + first * layer.depth
        if let list {
            layer.kernels.gatherRows(source, order: list + first, count: count, channels: layer.depth, into: target)
        } else {
            layer.kernels.stageRows(source, first: first, count: count, channels: layer.depth, into: target)
        }
    }
}

/// Blocks of C.
private struct PickedBlocks: PoolCall {
    let call: PickedProductCall
    let b: UnsafePointer<Float>
    let list: UnsafePointer<Int32>?

    static let rows = 192
    static let columns = 384

    private var columnBlocks: Int { (call.columns + Self.columns - 1) / Self.columns }
    var count: Int { (call.rows + Self.rows - 1) / Self.rows * columnBlocks }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (row, column) = (task / columnBlocks * Self.rows, task % columnBlocks * Self.columns)
        let (rows, columns) = (min(Self.rows, call.rows - row), min(Self.columns, call.columns - column))
        let stride = call.layer.depth
        let sums = (scratch + GEMM.taskScratchByteCount).assumingMemoryBound(to: Float.self)
        GEMM.multiply(
            rows: rows, columns: columns, depth: call.depth, a: call.a + row * call.aStride, aStride: call.aStride,
            b: call.isTransposed ? b + column * stride : b + column, bStride: stride, transposesB: call.isTransposed,
            c: sums, cStride: columns, scratch: scratch, instructionSet: call.layer.instructionSet)
        for r in 0..<rows {
            let target = call.c + (row + r) * call.cStride + column
            for x in 0..<columns {
                var sum = sums[r * columns + x]
                if call.addsBias, let bias = call.layer.bias {
                    sum += bias[flat: call.isTransposed ? list.map { Int($0[column + x]) } ?? column + x : column + x]
                }
                target[x] = call.accumulates ? target[x] + sum : sum
            }
        }
    }
}
