internal import KernelInterface

/// One `run` of a layer of numbers: activations of 16 bits are widened, then rows are multiplied with all panels.
struct FloatLinearCall {
    let layer: FloatLinear
    let x: RowOperand
    let y: RowTarget

    func run(rows: Int, on pool: WorkerPool) {
        if x.type == .float32 {
            multiply(x.base.assumingMemoryBound(to: Float.self), stride: x.stride, first: 0, rows: rows, on: pool)
            return
        }
        // Blocks have equal sizes, because a last block of few rows would widen all weights for little.
        let limit = GEMMScratch.block(rows, limit: QuantizedLinear.blockRows, unit: 1)
        // A cache line more than the row: rows a page apart share few cache sets.
        let stride = (layer.inFeatures + 15) / 16 * 16 + 16
        pool.withWorkspace(byteCount: limit * stride * 4) { workspace in
            let values = workspace.assumingMemoryBound(to: Float.self)
            for first in Swift.stride(from: 0, to: rows, by: limit) {
                let count = min(limit, rows - first)
                pool.run(
                    Widening(
                        x: x, first: first, values: values, stride: stride, channels: layer.inFeatures, kernels: layer.kernels),
                    tasks: count, work: count * layer.inFeatures)
                multiply(values, stride: stride, first: first, rows: count, on: pool)
            }
        }
    }

    private func multiply(
        _ values: UnsafePointer<Float>, stride: Int, first: Int, rows: Int, on pool: WorkerPool
    ) {
        let sizes = layer.kernels.sizes
        let taskRows = QuantizedScratch.valueRows(
            rows, depth: layer.inFeatures, tileRows: sizes.tileRows, laneCount: sizes.laneCount)
        let product = Product(
            call: self, weights: PanelProduct(layer), values: values, stride: stride, first: first, rows: rows,
            taskRows: taskRows)
        pool.run(
            product, tasks: (rows + taskRows - 1) / taskRows * product.weights.panels,
            work: QuantizedLinearCall.work(rows, layer.inFeatures, layer.outFeatures),
            scratchByteCount: layer.scratchByteCount)
    }

    /// Copies rows of 16 bits to floats. A task is one row.
    private struct Widening: PoolCall {
        let x: RowOperand
        let first: Int
        let values: UnsafeMutablePointer<Float>
        let stride: Int
        let channels: Int
        let kernels: any KernelTable.Type

        func perform(task row: Int, scratch: UnsafeMutableRawPointer) {
            kernels.stageRows(x, first: first + row, count: 1, channels: channels, into: values + row * stride)
        }
    }

    /// The product of a block of rows. Tasks go row block by row block, so that a thread finds its rows in the second-level cache.
    private struct Product: PoolCall {
        let call: FloatLinearCall
        let weights: PanelProduct
        let values: UnsafePointer<Float>
        let stride: Int
        let first: Int
        let rows: Int
        let taskRows: Int

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let (rowBlock, panel) = task.quotientAndRemainder(dividingBy: weights.panels)
            let row = rowBlock * taskRows
            let y = call.y.from(first + row).from(column: weights.columns(ofPanel: panel).first)
            let activations = ActivationRows(values: values + row * stride, stride: stride)
            var arguments = weights.arguments(
                panel: panel, activations, rows: min(taskRows, rows - row), y: y, scratch: scratch)
            call.layer.kernels.multiplyQuantized(&arguments)
        }
    }
}

/// Reorders the rows of a weight into panels [depth][lanes]. A task is one row.
struct FloatPacking<Element: TensorElement>: PoolCall {
    let source: UnsafePointer<Element>
    let rows: Int
    /// The place of row 0 among all rows of the layer.
    let firstRow: Int
    let target: UnsafeMutablePointer<Element>
    let lanes: Int
    let depth: Int
    let panelWidth: Int

    func run(on pool: WorkerPool) { pool.run(self, tasks: rows, work: rows * depth) }

    func perform(task row: Int, scratch: UnsafeMutableRawPointer) {
        let place = firstRow + row
        let panel = place / panelWidth * panelWidth
        let width = min(panelWidth, lanes - panel)
        let column = target + panel * depth + place - panel
        for k in 0..<depth { column[k * width] = source[row * depth + k] }
    }
}
