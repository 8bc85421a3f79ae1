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
    /// Most rows of a block: 192 × 256 floats of packed A are 192 KiB, under half of a 512 KiB second-level cache.
    public static let rowBlock = 192
    /// Most columns of a block: 256 × 768 floats of packed B are 768 KiB, read once per `rowBlock` rows from the third level.
    public static let columnBlock = 768

    /// Floats of packed A; the rest of the scratch is packed B.
    public static let packedA = (rowBlock + AttentionScratch.maximumTileRows) * depthBlock
    public static let byteCount = (packedA + (columnBlock + 3 * AttentionScratch.maximumLanes) * depthBlock) * 4
}
