/// Resizes pictures, and grids of features, to another extent, as PyTorch does.
///
/// ```swift
/// let resize = try ImageResize(GridSize(rows: 480, columns: 640), to: GridSize(side: 378), filter: .bicubic)
/// let small = try resize(picture)                              // [3, 480, 640] → [3, 378, 378]
/// let coarse = try ImageResize(grid, to: half, filter: .area)(features, layout: .interleaved)   // [rows, columns, channels]
/// ```
///
/// The taps of both axes are found when the plan is made. They are those of `torch.nn.functional.interpolate` with
/// `align_corners=False`, places included: PyTorch computes them in single precision, and so does this.
///
/// | Filter | Cell i of m, from n | `antialias` |
/// |---|---|---|
/// | `nearest` | the cell ⌊i·(n/m)⌋ | no |
/// | `area` | the mean of ⌊i·n/m⌋ …< ⌈(i+1)·n/m⌉, which is adaptive average pooling | no |
/// | `bilinear` | 2 cells about (i+½)·n/m − ½ | the filter is n/m times as wide when that is above 1, and sums to 1 |
/// | `bicubic` | 4 cells, with a = −0.75; beyond an edge stands the edge | the same, with a = −0.5 and nothing beyond the edge |
///
/// - Exactness: sums in `Float`, rows first, from the first tap on: within 10⁻⁵ of PyTorch's for data of magnitude 1. Extents that
///   stay are copied.
/// - Non-finite input reaches the cells whose taps it is, and no others; also with a weight of 0, as in PyTorch.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: O(taps of rows · columns read + taps of columns · columns made) per row made. The plan has O(n + m) numbers.
/// - Scratch: `scratchByteCount` per thread: about 24 KiB when extents are about equal, and 128 bytes per column that a column, or 128
///   of them, are made from.
/// - Source: PyTorch's conventions; Keys, "Cubic convolution interpolation for digital image processing" (1981).
public struct ImageResize: Sendable {
    /// How cells become others.
    public enum Filter: String, Hashable, Sendable, CaseIterable {
        case nearest
        case area
        case bilinear
        case bicubic
    }

    public let filter: Filter
    public let antialias: Bool
    private let sampling: GridSampling

    /// - Parameters:
    ///   - source: the extent of pictures that come.
    ///   - target: the extent of pictures that are made.
    ///   - filter: how.
    ///   - antialias: widens the filter where the picture shrinks. For `bilinear` and `bicubic` only.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for an extent below 1 × 1 or with more than 2²⁴ cells along an axis, `.invalidArgument` for
    ///   antialiasing of another filter, `.unsupportedInstructionSet`.
    public init(
        _ source: GridSize, to target: GridSize, filter: Filter, antialias: Bool = false, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            !antialias || filter == .bilinear || filter == .bicubic, .invalidArgument, "antialias",
            expected: "false, but for bilinear and bicubic", actual: "true for \(filter)")
        self.filter = filter
        self.antialias = antialias
        sampling = try GridSampling(
            from: source, to: target, filter: filter, antialias: antialias, instructionSet: instructionSet)
    }

    /// The extent of pictures that come.
    public var source: GridSize { sampling.source }
    /// The extent of pictures that are made.
    public var target: GridSize { sampling.target }
    /// The instruction set that calls execute.
    public var instructionSet: InstructionSet { sampling.instructionSet }
    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { sampling.scratchByteCount }

    /// Resizes pictures with any number of axes before their own.
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

    /// Resizes a picture, or a part of one, into a tensor `[channels, rows, columns]`.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run(
        _ x: PictureView<Float>, into y: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try sampling.run(picture: x, into: &y, on: pool)
    }

    /// Resizes one plane: rows × columns.
    /// - Throws: `.invalidShape` naming the matrix of other extents; nothing is written then.
    public func run(
        plane x: MatrixView<Float>, into y: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try sampling.run(plane: x, into: y, on: pool)
    }

    /// Resizes grids of tokens, one after the other: cells in raster order × channels. Columns of a wider matrix do as well.
    /// - Throws: `.invalidShape` for rows that are not whole grids, or naming the matrix of other extents; nothing is written then.
    public func run(
        tokens x: MatrixView<Float>, into y: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try sampling.run(tokens: x, into: y, on: pool)
    }

    /// The resized pictures in a new tensor. See `run`.
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
