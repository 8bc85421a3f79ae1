/// Which tokens of a batch stay when a model drops some, and the moves that follow from it.
///
/// Sequences of any lengths are packed one after the other. One list of kept tokens moves everything that has a row per token: hidden
/// states, keys and values, rotations, positions.
///
/// ```swift
/// let compaction = try TokenCompaction(length: 6, keeping: [0, 1, 4, 5])
/// let fewer = try compaction(hidden)                    // rows 0, 1, 4 and 5
/// let positions = compaction.positions(.renumbered)     // [0, 1, 2, 3]; .kept gives [0, 1, 4, 5]
/// ```
///
/// - Kept rows stay in their order, bit for bit.
/// - Complexity: one copy of the kept rows, at the speed of memory.
/// - Scratch: none.
public struct TokenCompaction: Hashable, Sendable {
    /// The positions of kept tokens, for rotary embedding and masks.
    public enum Positions: Hashable, Sendable {
        /// Adjacent again, from the first position of the sequence on, as in PyramidDrop.
        case renumbered
        /// Those that the tokens had, as in FrameFusion.
        case kept
    }

    /// Tokens of all sequences before.
    public let tokenCount: Int
    /// The rows that stay, ascending, counted over the packed batch.
    public let kept: [Int32]
    /// Where each sequence starts before, and the end.
    public let starts: [Int]
    /// Where each sequence starts after, and the end.
    public let keptStarts: [Int]

    /// - Parameters:
    ///   - lengths: the tokens of each sequence, 0 or more.
    ///   - lists: what each sequence keeps: tokens of the sequence, ascending. May be empty.
    /// - Throws: `.invalidShape` for another number of lists than of lengths, and for 2³¹ tokens or more; `.invalidArgument` for a
    ///   negative length, and for a token that is out of range or not above the one before it.
    public init(lengths: [Int], keeping lists: [[Int]]) throws(SparseKernelsError) {
        try require(
            lists.count == lengths.count, .invalidShape, "lists", expected: "\(lengths.count), one per sequence",
            actual: "\(lists.count)")
        var (starts, keptStarts, kept) = ([0], [0], [Int32]())
        for (sequence, length) in lengths.enumerated() {
            try require(
                length >= 0, .invalidArgument, "lengths[\(sequence)]", expected: "0 or more", actual: "\(length)")
            let (end, overflow) = starts[sequence].addingReportingOverflow(length)
            try require(
                !overflow && end <= Int(Int32.max), .invalidShape, "lengths", expected: "fewer than 2³¹ tokens",
                actual: "\(length) beside \(starts[sequence])")
            var last = -1
            for (index, token) in lists[sequence].enumerated() {
                try require(
                    token > last && token < length, .invalidArgument, "lists[\(sequence)][\(index)]",
                    expected: "above \(last) and below \(length)", actual: "\(token)")
                kept.append(Int32(truncatingIfNeeded: starts[sequence] + token))
                last = token
            }
            starts.append(end)
            keptStarts.append(kept.count)
        }
        (tokenCount, self.kept, self.starts, self.keptStarts) = (starts[lengths.count], kept, starts, keptStarts)
    }

    /// What one sequence keeps.
    /// - Throws: the errors of ``init(lengths:keeping:)``.
    public init(length: Int, keeping tokens: [Int]) throws(SparseKernelsError) {
        try self.init(lengths: [length], keeping: [tokens])
    }

    /// Sequences of the batch.
    public var sequences: Int { starts.count - 1 }

    /// The tokens of a sequence that stay, counted within it.
    public func keptTokens(of sequence: Int) -> [Int] {
        kept[keptStarts[sequence]..<keptStarts[sequence + 1]].map { Int($0) - starts[sequence] }
    }

    /// The positions of the kept tokens, when tokens of a sequence had positions from 0 on.
    public func positions(_ positions: Positions) -> [Int] {
        var result: [Int] = []
        result.reserveCapacity(kept.count)
        for sequence in 0..<sequences {
            for index in keptStarts[sequence]..<keptStarts[sequence + 1] {
                result.append(
                    positions == .kept ? Int(kept[index]) - starts[sequence] : index - keptStarts[sequence])
            }
        }
        return result
    }

    /// The positions of the kept tokens, from those that all tokens had.
    ///
    /// - Parameters:
    ///   - positions: whether positions are made adjacent again, from that of the first token of each sequence on.
    ///   - old: one position per token before.
    /// - Throws: `.invalidShape` for another number of positions.
    public func positions(_ positions: Positions, from old: [Int]) throws(SparseKernelsError) -> [Int] {
        try require(
            old.count == tokenCount, .invalidShape, "old", expected: "\(tokenCount) positions, one per token",
            actual: "\(old.count)")
        if positions == .kept { return kept.map { old[Int($0)] } }
        var result: [Int] = []
        result.reserveCapacity(kept.count)
        for sequence in 0..<sequences {
            for index in 0..<keptStarts[sequence + 1] - keptStarts[sequence] {
                result.append(old[starts[sequence]] + index)
            }
        }
        return result
    }

    // MARK: - Rows

    /// Copies the kept rows of a matrix.
    ///
    /// - Parameters:
    ///   - x: ``tokenCount`` rows of any element type.
    ///   - y: as many rows as are kept, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run<Element: TensorElement>(
        _ x: MatrixView<Element>, into y: consuming MutableMatrixView<Element>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            x.rows == tokenCount, .invalidShape, "x", expected: "\(tokenCount) rows, one per token", actual: "\(x.rows)")
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (kept.count, x.columns))
        let size = MemoryLayout<Element>.stride
        let source = x.span.withUnsafeBufferPointer { UnsafeRawPointer($0.baseAddress) }
        let target = y.span.withUnsafeMutableBufferPointer { UnsafeMutableRawPointer($0.baseAddress) }
        guard let source, let target else { return }
        move(
            from: source, stride: x.rowStride * size, to: target, stride: y.rowStride * size, heads: 1, headStrides: (0, 0),
            rowBytes: x.columns * size, on: pool)
    }

    /// Moves the kept rows of a matrix to its front, where a buffer is kept for all lengths. What is behind them is left as it is.
    ///
    /// - Parameters:
    ///   - x: ``tokenCount`` rows of any element type.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: the number of rows that are kept.
    /// - Throws: `.invalidShape` for other rows; nothing is moved then.
    @discardableResult
    public func compact<Element: TensorElement>(
        _ x: consuming MutableMatrixView<Element>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Int {
        try require(
            x.rows == tokenCount, .invalidShape, "x", expected: "\(tokenCount) rows, one per token", actual: "\(x.rows)")
        let size = MemoryLayout<Element>.stride
        let stride = x.rowStride * size
        let base = x.span.withUnsafeMutableBufferPointer { UnsafeMutableRawPointer($0.baseAddress) }
        if let base {
            move(
                from: UnsafeRawPointer(base), stride: stride, to: base, stride: stride, heads: 1, headStrides: (0, 0),
                rowBytes: x.columns * size, on: pool)
        }
        return kept.count
    }

    /// The kept rows of `[tokens]`, `[tokens, channels]` or `[heads, tokens, channels]`, in a new tensor.
    /// - Throws: `.invalidShape` for another rank or number of tokens.
    public func callAsFunction<Element: TensorElement>(
        _ x: Tensor<Element>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let rank = x.shape.count
        try require(
            (1...3).contains(rank), .invalidShape, "x", expected: "[tokens], [tokens, channels] or [heads, tokens, channels]",
            actual: "\(x.shape)")
        let axis = rank == 3 ? 1 : 0
        try require(
            x.shape[axis] == tokenCount, .invalidShape, "x", expected: "\(tokenCount) tokens", actual: "\(x.shape)")
        var shape = x.shape
        shape[axis] = kept.count
        var y = try Tensor<Element>(zeros: shape)
        let (heads, channels) = (rank == 3 ? shape[0] : 1, rank == 1 ? 1 : shape[rank - 1])
        let bytes = channels * MemoryLayout<Element>.stride
        let target = UnsafeMutableRawPointer(y.uniqueAddress())
        x.span.withUnsafeBufferPointer { source in
            guard let source = source.baseAddress else { return }
            move(
                from: UnsafeRawPointer(source), stride: bytes, to: target, stride: bytes, heads: heads,
                headStrides: (tokenCount * bytes, kept.count * bytes), rowBytes: bytes, on: pool)
        }
        return y
    }

    private func move(
        from source: UnsafeRawPointer, stride sourceStride: Int, to target: UnsafeMutableRawPointer, stride targetStride: Int,
        heads: Int, headStrides: (source: Int, target: Int), rowBytes: Int, on pool: WorkerPool
    ) {
        if kept.isEmpty || rowBytes == 0 || heads == 0 { return }
        kept.withUnsafeBufferPointer { rows in
            let call = RowMoves(
                source: source, sourceStride: sourceStride, target: target, targetStride: targetStride,
                headStrides: headStrides, rowBytes: rowBytes, rows: rows.baseAddress!, count: rows.count)
            pool.run(call, tasks: heads * call.tasksPerHead, work: heads * rows.count * rowBytes)
        }
    }
}

/// Moves listed rows to adjacent ones. Source and target may be the same memory.
private struct RowMoves: PoolCall {
    let source: UnsafeRawPointer
    let sourceStride: Int
    let target: UnsafeMutableRawPointer
    let targetStride: Int
    let headStrides: (source: Int, target: Int)
    let rowBytes: Int
    let rows: UnsafePointer<Int32>
    let count: Int

    /// In place, a row is read before one above it overwrites it, in ascending order; so a task has all rows, and a part of their
    /// bytes. Elsewhere a task has some rows.
    private var isInPlace: Bool { source == UnsafeRawPointer(target) }
    /// 4 KiB of a row are a page, up to which rows are fetched ahead.
    private static let partBytes = 4096
    private var rowsPerTask: Int { max(1, (1 << 17) / rowBytes) }

    var tasksPerHead: Int {
        isInPlace ? (rowBytes + Self.partBytes - 1) / Self.partBytes : (count + rowsPerTask - 1) / rowsPerTask
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (head, part) = (task / tasksPerHead, task % tasksPerHead)
        let from = source + head * headStrides.source
        let to = target + head * headStrides.target
        if isInPlace {
            let first = part * Self.partBytes
            let bytes = min(Self.partBytes, rowBytes - first)
            for index in 0..<count {
                let row = Int(rows[index])
                if row == index { continue }
                (to + index * targetStride + first).copyMemory(from: from + row * sourceStride + first, byteCount: bytes)
            }
            return
        }
        let first = part * rowsPerTask
        for index in first..<min(count, first + rowsPerTask) {
            (to + index * targetStride).copyMemory(from: from + Int(rows[index]) * sourceStride, byteCount: rowBytes)
        }
    }
}
