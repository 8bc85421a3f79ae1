/// Pools grids to a fixed extent: cell i of m, from n, is the mean or the largest of the cells ⌊i·n/m⌋ …< ⌈(i+1)·n/m⌉ of each axis.
///
/// ```swift
/// let pooling = try AdaptivePooling(GridSize(side: 54), to: GridSize(side: 27), .maximum)
/// let pooled = try pooling(features, layout: .interleaved)     // [54, 54, channels] → [27, 27, channels]
/// ```
///
/// Windows overlap where the extents do not divide, and repeat cells where the grid grows.
///
/// - Exactness: maxima are exact, and NaN if a cell of the window is NaN. Means are sums in `Float` over rows and then columns, of
///   cells divided by the extents of the window.
/// - Non-finite input reaches the cells whose windows it is in, and no others.
/// - Results are bitwise equal for every number of threads.
/// - Complexity, scratch: those of ``ImageResize``.
/// - Source: `torch.nn.functional.adaptive_avg_pool2d` and `adaptive_max_pool2d`.
public struct AdaptivePooling: Sendable {
    /// What stands for a window.
    public enum Kind: String, Hashable, Sendable, CaseIterable {
        case average
        case maximum
    }

    public let kind: Kind
    private let sampling: GridSampling

    /// - Parameters:
    ///   - source: the extent of grids that come.
    ///   - target: the extent of grids that are made.
    ///   - kind: mean or largest.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for an extent below 1 × 1 or with more than 2²⁴ cells along an axis, `.unsupportedInstructionSet`.
    public init(
        _ source: GridSize, to target: GridSize, _ kind: Kind, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        self.kind = kind
        sampling = try GridSampling(
            from: source, to: target, filter: .area, takesMaximum: kind == .maximum, instructionSet: instructionSet)
    }

    /// The extent of grids that come.
    public var source: GridSize { sampling.source }
    /// The extent of grids that are made.
    public var target: GridSize { sampling.target }
    /// The instruction set that calls execute.
    public var instructionSet: InstructionSet { sampling.instructionSet }
    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { sampling.scratchByteCount }

    /// Pools grids with any number of axes before their own.
    ///
    /// - Parameters:
    ///   - x: `[…, rows, columns]`, or `[…, rows, columns, channels]` if interleaved, of the extent `source`.
    ///   - y: the same of the extent `target`, overwritten.
    ///   - layout: whether channels are planes, or adjacent.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the tensor of another shape; nothing is written then.
    public func run(
        _ x: Tensor<Float>, into y: inout Tensor<Float>, layout: ImageLayout = .planar, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try sampling.run(x, into: &y, layout: layout, on: pool)
    }

    /// Pools grids of tokens, one after the other: cells in raster order × channels. Columns of a wider matrix do as well.
    /// - Throws: `.invalidShape` for rows that are not whole grids, or naming the matrix of other extents; nothing is written then.
    public func run(
        tokens x: MatrixView<Float>, into y: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try sampling.run(tokens: x, into: y, on: pool)
    }

    /// The pooled grids in a new tensor. See `run`.
    /// - Throws: `.invalidShape` for a tensor of another shape.
    public func callAsFunction(
        _ x: Tensor<Float>, layout: ImageLayout = .planar, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try sampling.firstAxis("x", x.shape, source, layout)
        var y = try Tensor<Float>(zeros: sampling.shape(of: x.shape, layout))
        try run(x, into: &y, layout: layout, on: pool)
        return y
    }
}
