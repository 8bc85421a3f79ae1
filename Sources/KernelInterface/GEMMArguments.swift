/// One block of C = A·B (or A·Bᵀ), float32, row-major; strides count elements.
public struct GEMMArguments {
    public var a: UnsafePointer<Float>
    public var aStride: Int
    public var b: UnsafePointer<Float>
    public var bStride: Int
    /// B is stored [columns][depth] and used transposed.
    public var bIsTransposed: Bool
    public var c: UnsafeMutablePointer<Float>
    public var cStride: Int
    public var rows: Int
    public var columns: Int
    public var depth: Int
    /// `GEMMScratch.byteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        a: UnsafePointer<Float>, aStride: Int, b: UnsafePointer<Float>, bStride: Int, bIsTransposed: Bool,
        c: UnsafeMutablePointer<Float>, cStride: Int, rows: Int, columns: Int, depth: Int, scratch: UnsafeMutableRawPointer
    ) {
        self.a = a
        self.aStride = aStride
        self.b = b
        self.bStride = bStride
        self.bIsTransposed = bIsTransposed
        self.c = c
        self.cStride = cStride
        self.rows = rows
        self.columns = columns
        self.depth = depth
        self.scratch = scratch
    }
}

/// Cache blocks of the matrix product and the scratch they need, in floats.
public enum GEMMScratch {
    /// Depth of a packed block. A panel of B, 256 × 24 floats, is 24 KiB and stays in the first-level cache of 32 KiB; with 48
    /// columns it is 48 KiB and streams from the second level, which still has to deliver one line per 3 cycles only.
    public static let depthBlock = 256
    /// Most rows of a block: 384 × 256 floats of packed A are 384 KiB, which leaves a quarter of a 512 KiB second-level cache to
    /// B and C. Every block of B is packed once per row block, at 0.2 cycles (0.7 when transposed) per element against the
    /// 384 / 16 = 24 cycles that AVX2 multiplies with it.
    public static let rowBlock = 384
    /// Most columns of a block: 256 × 768 floats of packed B are 768 KiB, read once per `rowBlock` rows from the third level.
    public static let columnBlock = 768

    /// Floats of packed A, which comes first; packed B follows.
    public static let packedA = (rowBlock + AttentionScratch.maximumTileRows) * depthBlock
    /// Where a tile at the edge of C is kept before its valid part is copied.
    public static let edge = packedA + (columnBlock + 3 * AttentionScratch.maximumLanes) * depthBlock
    public static let byteCount = (edge + AttentionScratch.maximumTileRows * 3 * AttentionScratch.maximumLanes) * 4

    /// Equal blocks of at most `limit`, each but the last a multiple of `unit`: what one block of `extent` spans.
    public static func block(_ extent: Int, limit: Int, unit: Int) -> Int {
        let blocks = (extent + limit - 1) / limit
        return min(limit, ((extent + blocks - 1) / blocks + unit - 1) / unit * unit)
    }
}
