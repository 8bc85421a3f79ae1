internal import KernelInterface

/// One product with picked rows: C (+)= A · B[I]ᵀ (+ bias) or A · B[I] (+ bias). Its tasks are blocks of C, which are independent: the
/// sum of an element depends on neither its block nor the number of threads. Few rows times many picked ones are summed in parts of the
/// list, which depend on its length and the weight alone.
struct PickedProductCall: PoolCall {
    private let layer: SparseLinear
    private let a: UnsafePointer<Float>
    private let aStride: Int
    private let c: UnsafeMutablePointer<Float>
    private let cStride: Int
    private let rows: Int
    private let columns: Int
    private let depth: Int
    /// The rows of B that take part; nil for all, in order.
    private let list: UnsafePointer<Int32>?
    private let isTransposed: Bool
    private let accumulates: Bool
    private let bias: UnsafePointer<Float>?
    private var blocks = PickedBlocks(rows: 1, columns: 1, rowBlocks: 1, columnBlocks: 1)
    private var depthBlock = PickedScratch.deepest

    /// - Parameters:
    ///   - a: `rows` rows of floats.
    ///   - list: `picked` rows of B in ascending order, for as long as the call runs; nil for all.
    ///   - isTransposed: whether a row of B belongs to a column of C.
    ///   - bias: one number per row of B if transposed, or else per column of B.
    init(
        _ layer: SparseLinear, a: RowOperand, rows: Int, list: UnsafePointer<Int32>?, picked: Int,
        isTransposed: Bool,
        bias: UnsafePointer<Float>?, c: RowTarget, accumulates: Bool
    ) {
        self.layer = layer
        self.a = a.base.assumingMemoryBound(to: Float.self)
        aStride = a.stride
        self.c = c.base.assumingMemoryBound(to: Float.self)
        cStride = c.stride
        self.rows = rows
        columns = isTransposed ? picked : layer.depth
        depth = isTransposed ? layer.depth : picked
        self.list = list
        self.isTransposed = isTransposed
        self.accumulates = accumulates
        self.bias = bias
    }

    private var hasFewRows: Bool { rows <= GEMMScratch.fewRows }

    mutating func run(on pool: WorkerPool) {
        if rows == 0 || columns == 0 { return }
        // With few rows the product is bound by memory, so the work is counted by the bytes of B.
        let work = (hasFewRows ? max(rows, 4) : rows) * columns * max(depth, 1)
        if hasFewRows {
            blocks = PickedBlocks(
                rows: rows, columns: columns, rowByteCount: rowByteCount, isTransposed: isTransposed)
            if !isTransposed {
                let partRows = PickedBlocks.partRows(depth, rowByteCount: rowByteCount)
                if partRows < depth { return runParts(of: partRows, work: work, on: pool) }
            }
        } else {
            depthBlock = PickedScratch.depthBlock(depth, isTransposed: isTransposed)
            blocks = PickedBlocks(
                rows: rows, columns: columns, depthBlock: depthBlock, isTransposed: isTransposed,
                threads: work < WorkerPool.workCutoff ? 1 : pool.threads, sizes: layer.kernels.sizes)
        }
        pool.run(self, tasks: blocks.count, work: work, scratchByteCount: layer.scratchByteCount)
    }

    private var rowByteCount: Int { layer.depth * layer.type.byteCount }

    /// Sums parts of the list on their own, so that tasks read whole rows of B, and adds the sums.
    private func runParts(of partRows: Int, work: Int, on pool: WorkerPool) {
        // Whole cache lines, so that no two tasks write to the same one.
        let stride = (columns + 15) / 16 * 16
        let parts = (depth + partRows - 1) / partRows
        pool.withWorkspace(byteCount: parts * rows * stride * 4) { workspace in
            let sums = workspace.assumingMemoryBound(to: Float.self)
            let call = Part(call: self, partRows: partRows, sums: sums, stride: stride)
            pool.run(
                call, tasks: parts * blocks.columnBlocks, work: work,
                scratchByteCount: layer.scratchByteCount)
            let total = PartSums(call: self, parts: parts, sums: sums, stride: stride)
            pool.run(
                total, tasks: (columns + PartSums.taskColumns - 1) / PartSums.taskColumns,
                work: parts * rows * columns)
        }
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let row = task % blocks.rowBlocks * blocks.rows
        var arguments = block(
            row: row, column: task / blocks.rowBlocks * blocks.columns, scratch: scratch)
        arguments.depthBlock = depthBlock
        arguments.factor = layer.factor
        arguments.accumulates = accumulates
        if hasFewRows {
            layer.kernels.multiplyPickedRows(&arguments)
        } else {
            layer.kernels.multiplyPicked(&arguments)
        }
    }

    /// The operands of a block of C.
    private func block(row: Int, column: Int, scratch: UnsafeMutableRawPointer)
        -> PickedProductArguments
    {
        // The first column of the block is a row of B, which the list names, or a column of it.
        let bytes = layer.type.byteCount
        let first = !isTransposed ? column * bytes : list == nil ? column * layer.depth * bytes : 0
        var arguments = PickedProductArguments(
            a: a + row * aStride, aStride: aStride, b: UnsafeRawPointer(layer.weights.pointer) + first,
            bStride: layer.depth,
            type: layer.type, list: list.map { isTransposed ? $0 + column : $0 },
            isTransposed: isTransposed,
            c: c + row * cStride + column, cStride: cStride, rows: min(blocks.rows, rows - row),
            columns: min(blocks.columns, columns - column), depth: depth, scratch: scratch)
        arguments.bias = bias.map { isTransposed && list != nil ? $0 : $0 + column }
        return arguments
    }

    /// A part of the list times a stretch of columns. A task is one of both.
    private struct Part: PoolCall {
        let call: PickedProductCall
        let partRows: Int
        /// `[parts, rows, stride]`.
        let sums: UnsafeMutablePointer<Float>
        let stride: Int

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let (part, block) = task.quotientAndRemainder(dividingBy: call.blocks.columnBlocks)
            let (first, column) = (part * partRows, block * call.blocks.columns)
            var arguments = call.block(row: 0, column: column, scratch: scratch)
            arguments.a += first
            arguments.depth = min(partRows, call.depth - first)
            if let list = arguments.list {
                arguments.list = list + first
            } else {
                arguments.b += first * call.rowByteCount
            }
            arguments.bias = nil
            arguments.c = sums + part * call.rows * stride + column
            arguments.cStride = stride
            call.layer.kernels.multiplyPickedRows(&arguments)
        }
    }

    /// Adds the sums of all parts in order. A task is a stretch of columns.
    private struct PartSums: PoolCall {
        let call: PickedProductCall
        let parts: Int
        let sums: UnsafeMutablePointer<Float>
        let stride: Int

        static let taskColumns = 2048

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let column = task * Self.taskColumns
            var arguments = PickedPartsArguments(
                parts: sums + column, rowStride: stride, partStride: call.rows * stride, count: parts,
                c: call.c + column,
                cStride: call.cStride, rows: call.rows,
                columns: min(Self.taskColumns, call.columns - column))
            arguments.factor = call.layer.factor
            arguments.bias = call.bias.map { $0 + column }
            arguments.accumulates = call.accumulates
            call.layer.kernels.addPickedParts(&arguments)
        }
    }
}

/// The cut of a product with picked rows into blocks of C of equal size.
struct PickedBlocks {
    let rows: Int
    let columns: Int
    let rowBlocks: Int
    let columnBlocks: Int

    /// Bytes of B per task of a product of few rows. A third of a layer of 14336 × 4096 numbers of 16 bits is over a hundred tasks, so
    /// that sixteen threads end at nearly the same time, and each task still takes far longer than drawing it.
    private static let taskBytes = 1 << 18
    /// The most parts of a list of rows, two for each of sixteen threads. Their sums are added at the end, so that a task reads whole
    /// rows of B.
    private static let mostParts = 32

    /// The rows of B in each part of a list: by the size of the product alone, since they set the order of sums.
    static func partRows(_ count: Int, rowByteCount: Int) -> Int {
        let rows = max((count + mostParts - 1) / mostParts, taskBytes / rowByteCount)
        return (max(rows, 1) + 3) / 4 * 4
    }

    var count: Int { rowBlocks * columnBlocks }

    init(rows: Int, columns: Int, rowBlocks: Int, columnBlocks: Int) {
        (self.rows, self.columns, self.rowBlocks, self.columnBlocks) = (
            rows, columns, rowBlocks, columnBlocks
        )
    }

    /// Cuts a product of few rows into blocks of columns, by its shape alone.
    ///
    /// A block of A · B[I]ᵀ reads whole rows of B, groups of four. One of A · B[I] reads a stretch of every picked row, and memory
    /// delivers longer stretches faster.
    init(rows: Int, columns: Int, rowByteCount: Int, isTransposed: Bool) {
        var block: Int
        if isTransposed {
            block = max(1, Self.taskBytes / rowByteCount + 3) / 4 * 4
        } else {
            block = GEMMScratch.block(columns, limit: PickedScratch.stretch(rows: rows), unit: 48)
        }
        block = max(1, min(block, columns))
        self.init(rows: rows, columns: block, rowBlocks: 1, columnBlocks: (columns + block - 1) / block)
    }

    /// Cuts a product of many rows as `GEMM` cuts its own.
    init(rows: Int, columns: Int, depthBlock: Int, isTransposed: Bool, threads: Int, sizes: TileSizes) {
        let rowLimit = PickedScratch.rows(
            depthBlock: depthBlock,
            limit: sizes.laneCount >= 16 ? GEMMScratch.wideRowBlock : GEMMScratch.rowBlock)
        let blocks = GEMMBlocks(
            m: rows, n: columns, threads: threads, sizes: sizes,
            rowLimit: rowLimit / sizes.tileRows * sizes.tileRows,
            columnLimit: isTransposed ? GEMMScratch.taskColumns : PickedScratch.wideColumns)
        self.init(
            rows: blocks.rows, columns: blocks.columns, rowBlocks: blocks.rowBlocks,
            columnBlocks: blocks.columnBlocks)
    }
}
