public import SparseKernels

/// The windows of a video: rectangles of `height` × `width` tokens of a frame, each pooled to one token of the draft.
///
/// Windows are numbered by frame, then by their row, then by their column. A frame whose size is not a multiple of the window's
/// has smaller windows at its lower and right edges, as pooling with `ceil_mode` has them.
///
/// ```
/// frame of 3 × 6 tokens, windows of 2 × 4        0 0 0 0 1 1
///                                                0 0 0 0 1 1
///                                                2 2 2 2 3 3
/// ```
public struct DraftWindows: Hashable, Sendable {
    public let geometry: VideoGeometry
    /// Rows and columns of a window that no edge cuts; at most those of a frame.
    public let height: Int
    public let width: Int
    /// Rows and columns of windows in a frame.
    public let rows: Int
    public let columns: Int

    /// - Parameters:
    ///   - height: at least 1; what exceeds a frame's height counts as that height, and `width` likewise.
    /// - Throws: `.invalidArgument` naming `windowHeight` or `windowWidth`.
    public init(_ geometry: VideoGeometry, height: Int, width: Int) throws(SparseKernelsError) {
        for (name, extent) in [("windowHeight", height), ("windowWidth", width)] {
            try require(extent >= 1, .invalidArgument, name, expected: "at least 1", actual: "\(extent)")
        }
        self.geometry = geometry
        self.height = min(height, geometry.height)
        self.width = min(width, geometry.width)
        rows = (geometry.height + self.height - 1) / self.height
        columns = (geometry.width + self.width - 1) / self.width
    }

    /// The number of windows, which is the length of the draft.
    public var count: Int { geometry.frames * rows * columns }

    /// The tokens of a window as runs of adjacent tokens of the sequence, one per row of the window: `rows` runs of `columns`
    /// tokens, `stride` tokens apart.
    func runs(window: Int) -> (first: Int, rows: Int, columns: Int, stride: Int) {
        let (frame, place) = (window / (rows * columns), window % (rows * columns))
        let (y, x) = (place / columns * height, place % columns * width)
        let first = geometry.video.lowerBound + (frame * geometry.height + y) * geometry.width + x
        return (first, min(height, geometry.height - y), min(width, geometry.width - x), geometry.width)
    }

    /// The number of tokens of every window.
    public var sizes: [Int] {
        (0..<count).map { window in
            let runs = runs(window: window)
            return runs.rows * runs.columns
        }
    }

    /// The order of tokens in which each window's are adjacent: windows by number, and inside a window rows from top to bottom.
    /// Text stays in its place.
    /// - Complexity: O(tokens).
    public func order() throws(SparseKernelsError) -> Permutation {
        var order: [Int32] = []
        order.reserveCapacity(geometry.tokens)
        order.append(contentsOf: (0..<geometry.video.lowerBound).map { Int32($0) })
        for window in 0..<count {
            let runs = runs(window: window)
            for row in 0..<runs.rows {
                let first = runs.first + row * runs.stride
                order.append(contentsOf: (first..<first + runs.columns).map { Int32($0) })
            }
        }
        order.append(contentsOf: (geometry.video.upperBound..<geometry.tokens).map { Int32($0) })
        return try Permutation([order])
    }

    /// The mean token of every window, `[heads, windows, channels]`.
    ///
    /// - Parameter operand: heads × tokens of the geometry × channels, in any layout.
    /// - Throws: `.invalidShape` for another number of tokens, `.unsupportedInstructionSet`.
    /// - Complexity: O(heads · videoTokens · channels). Scratch per thread: 72 bytes per channel.
    public func means<Element: AttentionElement>(
        _ operand: TensorView<Element>, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try require(
            operand.tokens == geometry.tokens, .invalidShape, "operand",
            expected: "\(geometry.tokens) tokens, those of the geometry", actual: "\(operand.tokens)")
        var means = try Tensor<Float>(zeros: [operand.heads, count, operand.channels])
        if means.count == 0 { return means }
        let rows = try CentredRows(
            operand, roundsToElement: false, instructionSet: InstructionSet.resolve(instructionSet))
        var span = means.mutableSpan
        // Pointers are used only until this call returns, and operand and tensor outlive it.
        span.withUnsafeMutableBufferPointer { means in
            PoolingCall(rows: rows, windows: self, means: means.baseAddress!).run(on: pool)
        }
        return means
    }
}

/// One call of `means`. A task is some windows of a head.
private struct PoolingCall: PoolCall {
    let rows: CentredRows
    let windows: DraftWindows
    let means: UnsafeMutablePointer<Float>

    /// Windows per task: a window of 128 tokens takes a few microseconds.
    private static let windowsPerTask = 8

    private var groups: Int { (windows.count + Self.windowsPerTask - 1) / Self.windowsPerTask }

    func run(on pool: WorkerPool) {
        let geometry = rows.geometry
        pool.run(
            self, tasks: geometry.heads * groups, work: 2 * geometry.heads * geometry.tokens * geometry.channels,
            scratchByteCount: 8 * geometry.channels + rows.scratchByteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let channels = rows.geometry.channels
        let totals = scratch.assumingMemoryBound(to: Double.self)
        let (head, first) = (task / groups, task % groups * Self.windowsPerTask)
        for window in first..<min(windows.count, first + Self.windowsPerTask) {
            for channel in 0..<channels { totals[channel] = 0 }
            let runs = windows.runs(window: window)
            for row in 0..<runs.rows {
                let start = runs.first + row * runs.stride
                rows.forEachStage(
                    of: start..<start + runs.columns, head: head, scratch: scratch + 8 * channels
                ) { _, count, rows in
                    for index in 0..<count {
                        for channel in 0..<channels { totals[channel] += Double(rows[index * channels + channel]) }
                    }
                }
            }
            let mean = means + (head * windows.count + window) * channels
            let tokens = Double(runs.rows * runs.columns)
            for channel in 0..<channels { mean[channel] = Float(totals[channel] / tokens) }
        }
    }
}
