// The operands of products with a thin factor, as adapters have: [M, wide] times [wide, rank], [M, rank] times [rank, wide] and
// [rank, M] times [M, wide]. Strides count floats.

/// A matrix to pack as panels, which `multiplyPanels` takes: `PanelLayout`.
public struct PackPanelsArguments {
    public var source: UnsafePointer<Float>
    public var stride: Int
    /// Whether the source is stored as [columns][depth].
    public var isTransposed: Bool
    public var depth: Int
    public var columns: Int
    /// Multiplies the elements.
    public var scale: Float
    /// `PanelLayout.floats` floats.
    public var panels: UnsafeMutablePointer<Float>

    public init(
        source: UnsafePointer<Float>, stride: Int, isTransposed: Bool, depth: Int, columns: Int, scale: Float,
        panels: UnsafeMutablePointer<Float>
    ) {
        self.source = source
        self.stride = stride
        self.isTransposed = isTransposed
        self.depth = depth
        self.columns = columns
        self.scale = scale
        self.panels = panels
    }
}

/// Panels of a matrix, one after the other: each has one to three vectors of adjacent columns, row by row. Columns past the end are 0.
public enum PanelLayout {
    /// Floats of a packed matrix, for vectors of every level.
    public static func floats(depth: Int, columns: Int) -> Int { depth * ((columns + 15) / 16 * 16) }

    /// Floats of the memory for one tile at the edge.
    public static let edgeFloats = AttentionScratch.maximumTileRows * 3 * AttentionScratch.maximumLanes
}

/// C = A·B or C += A·B for a B that is packed, and any number of rows of A, which are read where they are.
public struct PanelProductArguments {
    public var a: UnsafePointer<Float>
    public var aStride: Int
    public var panels: UnsafePointer<Float>
    public var c: UnsafeMutablePointer<Float>
    public var cStride: Int
    public var rows: Int
    public var columns: Int
    /// At least 1.
    public var depth: Int
    public var accumulates: Bool
    /// `PanelLayout.edgeFloats` floats.
    public var edge: UnsafeMutablePointer<Float>

    public init(
        a: UnsafePointer<Float>, aStride: Int, panels: UnsafePointer<Float>, c: UnsafeMutablePointer<Float>, cStride: Int,
        rows: Int, columns: Int, depth: Int, accumulates: Bool, edge: UnsafeMutablePointer<Float>
    ) {
        self.a = a
        self.aStride = aStride
        self.panels = panels
        self.c = c
        self.cStride = cStride
        self.rows = rows
        self.columns = columns
        self.depth = depth
        self.accumulates = accumulates
        self.edge = edge
    }
}

/// C += Tᵀ·X for a thin T.
public struct ThinProductArguments {
    /// [depth][rank].
    public var t: UnsafePointer<Float>
    public var tStride: Int
    /// [depth][columns].
    public var x: UnsafePointer<Float>
    public var xStride: Int
    /// [rank][columns].
    public var c: UnsafeMutablePointer<Float>
    public var cStride: Int
    public var rank: Int
    public var columns: Int
    public var depth: Int
    /// `ThinProductScratch.floats(rank:)` floats, 64-byte aligned.
    public var scratch: UnsafeMutablePointer<Float>

    public init(
        t: UnsafePointer<Float>, tStride: Int, x: UnsafePointer<Float>, xStride: Int, c: UnsafeMutablePointer<Float>,
        cStride: Int, rank: Int, columns: Int, depth: Int, scratch: UnsafeMutablePointer<Float>
    ) {
        self.t = t
        self.tStride = tStride
        self.x = x
        self.xStride = xStride
        self.c = c
        self.cStride = cStride
        self.rank = rank
        self.columns = columns
        self.depth = depth
        self.scratch = scratch
    }
}

/// The scratch of `addThinProduct`: strips of T, a panel of X, and a tile at the edge.
public enum ThinProductScratch {
    /// Rows of T and X that are multiplied at a time. A panel of X, 128 × 48 floats, is 24 KiB, which stays in a first-level cache of 48 KiB
    /// beside a strip of T (4 KiB) and the rows of C.
    public static let depthBlock = 128

    /// Floats of the strips, which come first.
    public static func stripFloats(rank: Int) -> Int {
        let rows = AttentionScratch.maximumTileRows
        return (rank + rows - 1) / rows * rows * depthBlock
    }

    public static func floats(rank: Int) -> Int {
        stripFloats(rank: rank) + 3 * AttentionScratch.maximumLanes * depthBlock + PanelLayout.edgeFloats
    }
}
