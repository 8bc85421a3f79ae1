// The operands of kernels on pictures and grids of tokens: resizing and pooling, depthwise convolution, patches. Strides count
// elements.

/// Which cells of an axis make an output cell, and with which weights.
///
/// Output i reads the cells `first[i]` … `first[i] + count[i] − 1`, at least one of them, with the weights from `offset[i]` on. Both
/// ends never decrease with i.
public struct ResizeTaps {
    public var first: UnsafePointer<Int32>
    public var count: UnsafePointer<Int32>
    public var offset: UnsafePointer<Int32>
    /// Not read for maxima.
    public var weights: UnsafePointer<Float>

    public init(
        first: UnsafePointer<Int32>, count: UnsafePointer<Int32>, offset: UnsafePointer<Int32>, weights: UnsafePointer<Float>
    ) {
        self.first = first
        self.count = count
        self.offset = offset
        self.weights = weights
    }
}

/// Rows of a picture to make from those of another one: y[i][j] = Σ_a Σ_b row weight · column weight · x[a][b], or the largest
/// x[a][b], NaN if one is NaN.
public struct ResizeArguments {
    /// Cell (0, 0), whose channels are adjacent.
    public var source: UnsafePointer<Float>
    public var sourceRowStride: Int
    public var sourceCellStride: Int
    /// Cell (0, 0) of all rows.
    public var target: UnsafeMutablePointer<Float>
    public var targetRowStride: Int
    public var targetCellStride: Int
    /// 1 with both cell strides 1 is a plane.
    public var channels: Int
    public var rows: ResizeTaps
    public var columns: ResizeTaps
    /// Columns of the target.
    public var columnCount: Int
    /// Whether every column is itself, with weight 1. `columns` is not read then.
    public var copiesColumns: Bool
    /// The rows of the target to make, `firstRow..<endRow`.
    public var firstRow: Int
    public var endRow: Int
    public var takesMaximum: Bool
    /// The numbers of `ResizeScratch` of this layout.
    public var scratch: UnsafeMutablePointer<Float>
    public var scratchColumns: Int

    public init(
        source: UnsafePointer<Float>, sourceRowStride: Int, sourceCellStride: Int, target: UnsafeMutablePointer<Float>,
        targetRowStride: Int, targetCellStride: Int, channels: Int, rows: ResizeTaps, columns: ResizeTaps, columnCount: Int,
        copiesColumns: Bool, firstRow: Int, endRow: Int, takesMaximum: Bool, scratch: UnsafeMutablePointer<Float>,
        scratchColumns: Int
    ) {
        self.source = source
        self.sourceRowStride = sourceRowStride
        self.sourceCellStride = sourceCellStride
        self.target = target
        self.targetRowStride = targetRowStride
        self.targetCellStride = targetCellStride
        self.channels = channels
        self.rows = rows
        self.columns = columns
        self.columnCount = columnCount
        self.copiesColumns = copiesColumns
        self.firstRow = firstRow
        self.endRow = endRow
        self.takesMaximum = takesMaximum
        self.scratch = scratch
        self.scratchColumns = scratchColumns
    }
}

/// The scratch of `resizeRows`, in floats.
///
/// A row of the target is made in stretches of columns. A plane goes by as many rows as a vector has lanes: rows of sums over rows,
/// [lanes][columns], the same transposed, [columns][lanes], and the results, [stretch][lanes]. Cells with channels go by one row
/// and a block of channels: [columns][block].
public enum ResizeScratch {
    /// Columns of the target in a stretch of a plane. 128 columns of 16 rows are 8 KiB in each of the three parts, which stay in the
    /// first-level cache when the extents are about equal; the columns that two stretches both read are few then.
    public static let planeStretch = 128
    /// The same of cells. With blocks of 128 channels they are 16 KiB.
    public static let cellStretch = 32
    public static let channelBlock = 128

    /// Floats for stretches that read up to `columns` columns of a plane, a multiple of 16.
    public static func planeFloats(columns: Int) -> Int {
        (2 * columns + planeStretch) * AttentionScratch.maximumLanes
    }

    /// Floats for stretches that read up to `columns` columns of cells, and a vector that is read past the end.
    public static func cellFloats(columns: Int) -> Int { columns * channelBlock + AttentionScratch.maximumLanes }
}

/// A part of a grid of cells to convolve channel by channel with a square of odd side k, centred, with zeros outside the grid:
/// y[r][c] = bias + Σ_i Σ_j w[i][j] · x[r + i − k/2][c + j − k/2].
public struct DepthwiseArguments {
    /// Cell (0, 0) of the grid, at the first channel.
    public var source: UnsafePointer<Float>
    public var sourceRowStride: Int
    public var sourceCellStride: Int
    /// Cell (0, 0) of the grid, at the first channel. Not the memory of the source.
    public var target: UnsafeMutablePointer<Float>
    public var targetRowStride: Int
    public var targetCellStride: Int
    /// Extents of the grid.
    public var rows: Int
    public var columns: Int
    /// The cells to make.
    public var firstRow: Int
    public var endRow: Int
    public var firstColumn: Int
    public var endColumn: Int
    /// 1…`DepthwiseScratch.vectors` · `laneCount`.
    public var channels: Int
    /// k, odd.
    public var side: Int
    /// Per vector of channels `[k][k][laneCount]`, and then `[laneCount]` of the bias; zeros in lanes without channels.
    public var weights: UnsafePointer<Float>
    /// `DepthwiseScratch.floats` floats.
    public var scratch: UnsafeMutablePointer<Float>

    public init(
        source: UnsafePointer<Float>, sourceRowStride: Int, sourceCellStride: Int, target: UnsafeMutablePointer<Float>,
        targetRowStride: Int, targetCellStride: Int, rows: Int, columns: Int, firstRow: Int, endRow: Int, firstColumn: Int,
        endColumn: Int, channels: Int, side: Int, weights: UnsafePointer<Float>, scratch: UnsafeMutablePointer<Float>
    ) {
        self.source = source
        self.sourceRowStride = sourceRowStride
        self.sourceCellStride = sourceCellStride
        self.target = target
        self.targetRowStride = targetRowStride
        self.targetCellStride = targetCellStride
        self.rows = rows
        self.columns = columns
        self.firstRow = firstRow
        self.endRow = endRow
        self.firstColumn = firstColumn
        self.endColumn = endColumn
        self.channels = channels
        self.side = side
        self.weights = weights
        self.scratch = scratch
    }
}

/// The cut of a grid for `convolveDepthwise`, and its scratch: the cells that a part reads,
/// [vectors][rows + k − 1][columns + k − 1][lanes].
public enum DepthwiseScratch {
    /// The most vectors of channels of a part: 256 adjacent bytes of a cell with 16 lanes.
    public static let vectors = 4
    /// The most columns of a part. Seven rows of 60 + 6 cells with 16 channels are 29 KiB, of a first-level cache of 48 KiB.
    public static let columns = 60
    /// The most rows of a part. With 60 columns and k = 7 the scratch is 594 KiB of a second-level cache of a MiB or more; with eight
    /// lanes it is half of that.
    public static let rows = 30

    public static func floats(rows: Int, columns: Int, side: Int, laneCount: Int) -> Int {
        vectors * (rows + side - 1) * (columns + side - 1) * laneCount
    }
}

/// Patches of a picture in planes to copy to rows: p × p elements of every channel, [channels][p][p], one patch after the other.
public struct PatchArguments {
    /// Element (0, 0) of plane 0: floats, or bytes.
    public var picture: UnsafeRawPointer
    public var isBytes: Bool
    public var rowStride: Int
    public var planeStride: Int
    public var channels: Int
    /// p.
    public var side: Int
    /// Patches of a row of the picture.
    public var gridColumns: Int
    /// Numbers of the patches in raster order, or nil for `first`, `first + 1`, …
    public var patches: UnsafePointer<Int32>?
    public var first: Int
    public var count: Int
    /// What becomes of a byte b: scale[channel] · b + offset[channel]. Not read for floats.
    public var scale: UnsafePointer<Float>
    public var offset: UnsafePointer<Float>
    public var rows: UnsafeMutablePointer<Float>
    public var stride: Int

    public init(
        picture: UnsafeRawPointer, isBytes: Bool, rowStride: Int, planeStride: Int, channels: Int, side: Int, gridColumns: Int,
        patches: UnsafePointer<Int32>?, first: Int, count: Int, scale: UnsafePointer<Float>, offset: UnsafePointer<Float>,
        rows: UnsafeMutablePointer<Float>, stride: Int
    ) {
        self.picture = picture
        self.isBytes = isBytes
        self.rowStride = rowStride
        self.planeStride = planeStride
        self.channels = channels
        self.side = side
        self.gridColumns = gridColumns
        self.patches = patches
        self.first = first
        self.count = count
        self.scale = scale
        self.offset = offset
        self.rows = rows
        self.stride = stride
    }
}
