internal import KernelInterface

/// What resizing and pooling share: two axes of taps, checks of operands, and calls.
struct GridSampling: Sendable {
    let source: GridSize
    let target: GridSize
    let instructionSet: InstructionSet
    private let takesMaximum: Bool
    private let rows: ResizeAxis
    private let columns: ResizeAxis
    private let planeColumns: Int
    private let cellColumns: Int
    private let kernels: any KernelTable.Type

    init(
        from source: GridSize, to target: GridSize, filter: ImageResize.Filter, antialias: Bool = false,
        takesMaximum: Bool = false,
        instructionSet: InstructionSet?
    ) throws(SparseKernelsError) {
        try source.validate("source")
        try target.validate("target")
        self.source = source
        self.target = target
        self.takesMaximum = takesMaximum
        rows = try ResizeAxis(from: source.rows, to: target.rows, filter: filter, antialias: antialias)
        columns =
            source.rows == source.columns && target.rows == target.columns
            ? rows : try ResizeAxis(from: source.columns, to: target.columns, filter: filter, antialias: antialias)
        planeColumns = columns.widestStretch(ResizeScratch.planeStretch)
        cellColumns = columns.widestStretch(ResizeScratch.cellStretch)
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Bytes of scratch per thread, for any layout.
    var scratchByteCount: Int {
        4 * max(ResizeScratch.planeFloats(columns: planeColumns), ResizeScratch.cellFloats(columns: cellColumns))
    }

    // MARK: - Operands

    /// - Throws: `.invalidShape` that names the tensor whose extents are others.
    func run(
        _ x: Tensor<Float>, into y: inout Tensor<Float>, layout: ImageLayout, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let rank = x.shape.count
        let first = try firstAxis("x", x.shape, source, layout)
        let firstOfY = try firstAxis("y", y.shape, target, layout)
        var agrees = y.shape.count == rank
        for axis in 0..<rank where agrees && (axis < first || axis >= first + 2) {
            agrees = x.shape[axis] == y.shape[axis]
        }
        try require(
            agrees && first == firstOfY, .invalidShape, "y", expected: "\(shape(of: x.shape, layout))", actual: "\(y.shape)")
        let channels = layout == .planar ? 1 : x.shape[rank - 1]
        var pictures = 1
        for axis in 0..<first { pictures *= x.shape[axis] }
        if pictures == 0 || channels == 0 { return }
        run(
            Operands(
                source: UnsafePointer(x.storage.pointer.assumingMemoryBound(to: Float.self)),
                sourceRowStride: source.columns * channels, sourceCellStride: channels,
                sourceStride: source.count * channels, target: y.uniqueAddress(), targetRowStride: target.columns * channels,
                targetCellStride: channels, targetStride: target.count * channels, pictures: pictures, channels: channels),
            on: pool)
    }

    /// The shape of the result for a tensor whose shape was checked.
    func shape(of source: [Int], _ layout: ImageLayout) -> [Int] {
        var shape = source
        let first = shape.count - (layout == .planar ? 2 : 3)
        (shape[first], shape[first + 1]) = (target.rows, target.columns)
        return shape
    }

    /// The axis of rows.
    @discardableResult
    func firstAxis(
        _ name: String, _ shape: [Int], _ size: GridSize, _ layout: ImageLayout
    ) throws(SparseKernelsError) -> Int {
        let trailing = layout == .planar ? 2 : 3
        let first = shape.count - trailing
        try require(
            first >= 0 && shape[max(first, 0)] == size.rows && shape[max(first, 0) + 1] == size.columns, .invalidShape, name,
            expected: layout == .planar ? "[…, \(size.rows), \(size.columns)]" : "[…, \(size.rows), \(size.columns), channels]",
            actual: "\(shape)")
        return first
    }

    func run(
        plane x: MatrixView<Float>, into y: consuming MutableMatrixView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try requireMatrix("x", rows: x.rows, columns: x.columns, expected: (source.rows, source.columns))
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (target.rows, target.columns))
        let targetStride = y.rowStride
        // Pointers are used only until this call returns, which borrows or owns the views.
        run(
            Operands(
                source: x.span.withUnsafeBufferPointer { $0.baseAddress! }, sourceRowStride: x.rowStride, sourceCellStride: 1,
                sourceStride: 0, target: y.span.withUnsafeMutableBufferPointer { $0.baseAddress! },
                targetRowStride: targetStride, targetCellStride: 1, targetStride: 0, pictures: 1, channels: 1),
            on: pool)
    }

    func run(
        picture x: PictureView<Float>, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try require(
            x.size == source, .invalidShape, "x", expected: "a picture of \(source)", actual: "\(x.size)")
        let isRight =
            y.shape.count == 3 && y.shape[0] == x.channels && y.shape[1] == target.rows && y.shape[2] == target.columns
        try require(
            isRight, .invalidShape, "y", expected: "\([x.channels, target.rows, target.columns])", actual: "\(y.shape)")
        if x.channels == 0 { return }
        run(
            Operands(
                source: x.address, sourceRowStride: x.rowStride, sourceCellStride: 1, sourceStride: x.planeStride,
                target: y.uniqueAddress(), targetRowStride: target.columns, targetCellStride: 1, targetStride: target.count,
                pictures: x.channels, channels: 1),
            on: pool)
    }

    func run(
        tokens x: MatrixView<Float>, into y: consuming MutableMatrixView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try require(
            x.rows % source.count == 0, .invalidShape, "x", expected: "whole grids of \(source.count) rows", actual: "\(x.rows)"
        )
        let pictures = x.rows / source.count
        let (rows, overflow) = pictures.multipliedReportingOverflow(by: target.count)
        try requireMatrix(
            "y", rows: y.rows, columns: y.columns, expected: (overflow ? .max : rows, x.columns))
        if pictures == 0 || x.columns == 0 { return }
        let targetStride = y.rowStride
        run(
            Operands(
                source: x.span.withUnsafeBufferPointer { $0.baseAddress! }, sourceRowStride: source.columns * x.rowStride,
                sourceCellStride: x.rowStride, sourceStride: source.count * x.rowStride,
                target: y.span.withUnsafeMutableBufferPointer { $0.baseAddress! },
                targetRowStride: target.columns * targetStride, targetCellStride: targetStride,
                targetStride: target.count * targetStride, pictures: pictures, channels: x.columns),
            on: pool)
    }

    // MARK: - Calls

    /// Pictures of one kind in memory, one after the other. Strides count elements.
    private struct Operands {
        var source: UnsafePointer<Float>
        var sourceRowStride: Int
        var sourceCellStride: Int
        var sourceStride: Int
        var target: UnsafeMutablePointer<Float>
        var targetRowStride: Int
        var targetCellStride: Int
        var targetStride: Int
        var pictures: Int
        var channels: Int
    }

    private func run(_ operands: Operands, on pool: WorkerPool) {
        // Lanes are rows of a plane. A row of cells is much work by itself, if there are many channels.
        let isPlane = operands.channels == 1 && operands.sourceCellStride == 1 && operands.targetCellStride == 1
        let floats = (source.columns / target.rows + target.columns) * operands.channels
        let atLeast = max(1, (1 << 14) / max(1, floats))
        let taskRows = isPlane ? (atLeast + 15) / 16 * 16 : atLeast
        let arguments = ResizeArguments(
            source: operands.source, sourceRowStride: operands.sourceRowStride, sourceCellStride: operands.sourceCellStride,
            target: operands.target, targetRowStride: operands.targetRowStride, targetCellStride: operands.targetCellStride,
            channels: operands.channels, rows: rows.taps, columns: columns.taps, columnCount: target.columns,
            copiesColumns: columns.isCopy, firstRow: 0, endRow: 0, takesMaximum: takesMaximum,
            // Scratch comes with the task.
            scratch: operands.target, scratchColumns: isPlane ? planeColumns : cellColumns)
        let call = Call(
            arguments: arguments, sourceStride: operands.sourceStride, targetStride: operands.targetStride, rows: target.rows,
            taskRows: taskRows, tasksPerPicture: (target.rows + taskRows - 1) / taskRows, kernels: kernels)
        let cost = rows.largestCount * min(source.columns, 4 * target.columns) + columns.largestCount * target.columns
        let (work, overflow) = (operands.pictures * operands.channels).multipliedReportingOverflow(by: target.rows * cost)
        pool.run(
            call, tasks: operands.pictures * call.tasksPerPicture, work: overflow ? .max : work,
            scratchByteCount: scratchByteCount)
    }

    private struct Call: PoolCall {
        let arguments: ResizeArguments
        let sourceStride: Int
        let targetStride: Int
        let rows: Int
        let taskRows: Int
        let tasksPerPicture: Int
        let kernels: any KernelTable.Type

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let picture = task / tasksPerPicture
            var part = arguments
            part.source += picture * sourceStride
            part.target += picture * targetStride
            part.firstRow = (task - picture * tasksPerPicture) * taskRows
            part.endRow = min(rows, part.firstRow + taskRows)
            part.scratch = scratch.assumingMemoryBound(to: Float.self)
            kernels.resizeRows(&part)
        }
    }
}
