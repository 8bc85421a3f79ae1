internal import KernelInterface

/// Rows of a task. The panels of both factors pass through the second-level cache once per strip of the register tile in any case, so that
/// a task only has to be long compared with drawing it.
private let rowsPerTask = 64

/// Both factors, packed as panels. Two tasks.
struct LoRAPackCall: PoolCall {
    let kernels: any KernelTable.Type
    let first: PackPanelsArguments
    let second: PackPanelsArguments?

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        guard var arguments = task == 0 ? first : second else { return }
        kernels.packPanels(&arguments)
    }

    func run(on pool: WorkerPool) {
        // An element that is transposed takes about as long as eight multiply-adds.
        let elements = first.depth * first.columns + (second.map { $0.depth * $0.columns } ?? 0)
        pool.run(self, tasks: second == nil ? 1 : 2, work: 8 * elements)
    }
}

/// narrow = wide · first, and, unless there is no target, target += narrow · second, for some rows.
struct LoRARowsCall: PoolCall {
    let kernels: any KernelTable.Type
    let rank: Int
    let rows: Int
    let wide: RowOperand
    let wideColumns: Int
    /// Panels of [wideColumns, rank].
    let first: UnsafePointer<Float>
    /// [rows, rank].
    let narrow: UnsafeMutablePointer<Float>
    /// Panels of [rank, targetColumns].
    let second: UnsafePointer<Float>
    let target: RowTarget?
    let targetColumns: Int

    static let scratchByteCount = PanelLayout.edgeFloats * 4

    func run(on pool: WorkerPool) {
        pool.run(
            self, tasks: (rows + rowsPerTask - 1) / rowsPerTask,
            work: rows * rank * (wideColumns + (target == nil ? 0 : targetColumns)), scratchByteCount: Self.scratchByteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let row = task * rowsPerTask
        let edge = scratch.assumingMemoryBound(to: Float.self)
        var arguments = PanelProductArguments(
            a: wide.from(row).base.assumingMemoryBound(to: Float.self), aStride: wide.stride, panels: first,
            c: narrow + row * rank, cStride: rank, rows: min(rowsPerTask, rows - row), columns: rank, depth: wideColumns,
            accumulates: false, edge: edge)
        kernels.multiplyPanels(&arguments)
        guard let target else { return }
        arguments = PanelProductArguments(
            a: narrow + row * rank, aStride: rank, panels: second,
            c: target.from(row).base.assumingMemoryBound(to: Float.self), cStride: target.stride, rows: arguments.rows,
            columns: targetColumns, depth: rank, accumulates: true, edge: edge)
        kernels.multiplyPanels(&arguments)
    }
}

/// The gradients of both factors: a += dtᵀ · x and b += scale · (tᵀ · dy)ᵀ, for some columns of x or of dy.
struct LoRAFactorCall: PoolCall {
    let kernels: any KernelTable.Type
    let rank: Int
    let rows: Int
    let x: RowOperand
    let inFeatures: Int
    let dt: UnsafePointer<Float>
    let a: UnsafeMutablePointer<Float>
    let dy: RowOperand
    let outFeatures: Int
    let t: UnsafePointer<Float>
    let b: UnsafeMutablePointer<Float>
    let scale: Float

    /// The most columns of a task. Rows are far apart, and memory delivers longer stretches of them faster: at 2048 × 4096 and rank 32, one
    /// core reaches 35% of its roof with 192 columns, 45% with 384 and 56% with 768.
    private static let mostColumns = 768

    /// Columns of a task: about a quarter of them in whole panels of 48, which every level divides; fewer would pack `t` too often.
    private static func block(_ columns: Int) -> Int { min(mostColumns, max(96, (columns / 4 + 47) / 48 * 48)) }

    private static func tasks(_ columns: Int) -> Int { (columns + block(columns) - 1) / block(columns) }

    static func scratchByteCount(rank: Int) -> Int {
        (ThinProductScratch.floats(rank: rank) + 2 * mostColumns * rank) * 4
    }

    func run(on pool: WorkerPool) {
        pool.run(
            self, tasks: Self.tasks(inFeatures) + Self.tasks(outFeatures), work: rows * rank * (inFeatures + outFeatures),
            scratchByteCount: Self.scratchByteCount(rank: rank))
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let memory = scratch.assumingMemoryBound(to: Float.self)
        let own = Self.tasks(inFeatures)
        if task < own {
            let column = task * Self.block(inFeatures)
            add(
                dt, x, column: column, columns: min(Self.block(inFeatures), inFeatures - column), to: a + column,
                stride: inFeatures, memory)
        } else {
            let column = (task - own) * Self.block(outFeatures)
            addTransposed(column: column, columns: min(Self.block(outFeatures), outFeatures - column), memory)
        }
    }

    private func add(
        _ thin: UnsafePointer<Float>, _ wide: RowOperand, column: Int, columns: Int, to target: UnsafeMutablePointer<Float>,
        stride: Int, _ scratch: UnsafeMutablePointer<Float>
    ) {
        var arguments = ThinProductArguments(
            t: thin, tStride: rank, x: wide.base.assumingMemoryBound(to: Float.self) + column, xStride: wide.stride,
            c: target, cStride: stride, rank: rank, columns: columns, depth: rows, scratch: scratch)
        kernels.addThinProduct(&arguments)
    }

    private func addTransposed(column: Int, columns: Int, _ scratch: UnsafeMutablePointer<Float>) {
        let product = scratch + ThinProductScratch.floats(rank: rank)
        let transposed = product + rank * columns
        clear(product, rank * columns)
        add(t, dy, column: column, columns: columns, to: product, stride: columns, scratch)
        var transpose = TransposeArguments(
            source: product, stride: columns, rows: rank, columns: columns, target: transposed, targetStride: rank)
        kernels.transposeRows(&transpose)
        var sum = AddRowsArguments(
            x: transposed, xStride: rank, y: b + column * rank, yStride: rank, rows: columns, columns: rank, scale: scale)
        kernels.addScaledRows(&sum)
    }
}
