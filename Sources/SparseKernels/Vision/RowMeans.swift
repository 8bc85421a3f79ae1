internal import KernelInterface

/// Means of listed rows of a matrix: y[target of list i] = mean of x[row] over the rows of list i.
///
/// A plan of lists serves every pooling and gathering of tokens: squares of a grid, the same cell of adjacent frames, tiles that become
/// one map. Lists may share rows, leave rows out, and be of any length.
///
/// ```swift
/// let pairs = try RowMeans(of: 4, lists: [[0, 1], [2, 3]])
/// let y = try pairs(x)  // [4, channels] → [2, channels]
/// ```
///
/// - Exactness: the rows of a list are added in its order, in `Float`, and the sum is divided by their number; a list of one row is a
///   copy. A list without rows gives zeros.
/// - Non-finite elements stay in their channel of the lists that name their row.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: every listed row is read once per list, O(listed rows · channels).
/// - Scratch: none.
public struct RowMeans: Sendable {
    /// Rows of x.
    public let sourceRows: Int
    /// Rows of y.
    public let targetRows: Int
    /// Lists, and with them rows of y that are written.
    public let count: Int
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet

    private let offsets: Tensor<Int32>
    private let rows: Tensor<Int32>
    private let targets: Tensor<Int32>?
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - sourceRows: rows of x.
    ///   - offsets: where the lists begin in `rows`, and the number of all rows at the end.
    ///   - rows: the rows of list after list, each below `sourceRows`.
    ///   - targets: the row of y for each list, no two alike; nil means one after the other.
    ///   - targetRows: rows of y; nil means as many as lists. Rows that no list has as its target are left as they are.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` for numbers that break these rules, naming the first; `.unsupportedInstructionSet`.
    public init(
        of sourceRows: Int, offsets: [Int32], rows: [Int32], targets: [Int32]? = nil, targetRows: Int? = nil,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let lists = offsets.count - 1
        try require(
            offsets.first == 0 && offsets.last.map(Int.init) == rows.count, .invalidArgument, "offsets",
            expected: "from 0 to the \(rows.count) rows", actual: "\(offsets.first ?? 0) to \(offsets.last ?? 0)")
        for list in 0..<lists where offsets[list] > offsets[list + 1] {
            throw SparseKernelsError(
                .invalidArgument, "offsets[\(list + 1)]", expected: "at least \(offsets[list])",
                actual: "\(offsets[list + 1])")
        }
        for index in rows.indices where rows[index] < 0 || Int(rows[index]) >= sourceRows {
            throw SparseKernelsError(
                .invalidArgument, "rows[\(index)]", expected: "0 to \(sourceRows - 1)", actual: "\(rows[index])")
        }
        let height = targetRows ?? lists
        try Self.check(targets, lists: lists, height: height)
        self.sourceRows = sourceRows
        self.targetRows = height
        count = lists
        self.offsets = try Tensor([offsets.count], offsets)
        self.rows = try Tensor([rows.count], rows)
        if let targets { self.targets = try Tensor([targets.count], targets) } else { self.targets = nil }
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// - Parameters:
    ///   - sourceRows: rows of x.
    ///   - lists: the rows of each list.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` for a row that x does not have, `.unsupportedInstructionSet`.
    public init(
        of sourceRows: Int, lists: [[Int32]], instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        var offsets: [Int32] = [0]
        for list in lists { offsets.append(offsets[offsets.count - 1] + Int32(list.count)) }
        try self.init(of: sourceRows, offsets: offsets, rows: lists.flatMap { $0 }, instructionSet: instructionSet)
    }

    private static func check(_ targets: [Int32]?, lists: Int, height: Int) throws(SparseKernelsError) {
        guard let targets else {
            try require(
                height >= lists, .invalidArgument, "targetRows", expected: "at least \(lists), one per list",
                actual: "\(height)")
            return
        }
        try require(
            targets.count == lists, .invalidArgument, "targets", expected: "\(lists), one per list",
            actual: "\(targets.count)")
        var isTaken = [Bool](repeating: false, count: max(0, height))
        for (index, target) in targets.enumerated() {
            try require(
                target >= 0 && Int(target) < height && !isTaken[Int(target)], .invalidArgument, "targets[\(index)]",
                expected: "0 to \(height - 1), and no row twice", actual: "\(target)")
            isTaken[Int(target)] = true
        }
    }

    /// Computes the means.
    ///
    /// - Parameters:
    ///   - x: `sourceRows` × channels.
    ///   - y: `targetRows` × channels; the rows of lists are overwritten. It may be some columns of a wider matrix.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(x.rows == sourceRows, .invalidShape, "x", expected: "\(sourceRows) rows", actual: "\(x.rows)")
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (targetRows, x.columns))
        if count == 0 || x.columns == 0 { return }
        let perList = (rows.count + count - 1) / count
        let tasks = RowTasks(
            rows: count, bytesPerRow: x.columns * (perList * X.storageType.byteCount + Y.storageType.byteCount))
        // The lists are properties of the plan, which outlives the call.
        let arguments = AverageRowsArguments(
            x: RowOperand(x), rows: UnsafePointer(rows.storage.pointer.assumingMemoryBound(to: Int32.self)),
            offsets: UnsafePointer(offsets.storage.pointer.assumingMemoryBound(to: Int32.self)), count: 0,
            channels: x.columns,
            targets: targets.map { UnsafePointer($0.storage.pointer.assumingMemoryBound(to: Int32.self)) },
            y: RowTarget(&y))
        pool.run(AverageRowsCall(kernels: kernels, arguments: arguments, tasks: tasks), tasks)
    }

    /// Computes the means into a tensor that is reused from call to call. All axes but the last are rows.
    /// - Throws: the errors of `run` with views.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(x.rowsView(named: "x"), into: y.mutableRowsView(named: "y"), on: pool)
    }

    /// The means, `[targetRows, channels]`, in a new tensor. All axes of x but the last are rows. Rows without a list are zeros.
    /// - Throws: `.invalidShape` for other rows.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try require(x.shape.count >= 1, .invalidShape, "x", expected: "at least one axis", actual: "\(x.shape)")
        var y = try Tensor<Float>(zeros: [targetRows, x.shape[x.shape.count - 1]])
        try run(x, into: &y, on: pool)
        return y
    }
}

private struct AverageRowsCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: AverageRowsArguments
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        var part = arguments
        part.offsets = arguments.offsets + first
        part.count = tasks.count(task)
        if let targets = arguments.targets {
            part.targets = targets + first
        } else {
            part.y = arguments.y.from(first)
        }
        kernels.averageRows(&part)
    }
}
