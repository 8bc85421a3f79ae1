/// One block of C = A·B (or A·Bᵀ), float32, row-major; strides count elements. At most `GEMMScratch.wideRowBlock` rows for `multiplyBlock`
/// and `GEMMScratch.fewRows` for `multiplyRows`, any number of columns.
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
    /// Depth of a packed block. A panel of B, 192 × 48 floats, is 36 KiB and stays in a first-level cache of 48 KiB beside a strip of A
    /// (6 KiB); with 24 columns it is 18 KiB of 32 KiB. Deeper panels come from the second level, which is no slower by itself, but
    /// leaves less to the lines of C and of the next panel: 256 loses 5% at 2048³ on AVX-512.
    public static let depthBlock = 192
    /// Most rows of a block: 384 × 192 floats of packed A are 288 KiB, which leaves nearly half of a 512 KiB second-level cache to B and
    /// C. Every block of B is packed once per row block, at 0.2 cycles (0.7 when transposed) per element against the
    /// 384 / 16 = 24 cycles that AVX2 multiplies with it.
    public static let rowBlock = 384
    /// Most rows of a block where vectors have 16 lanes. Those cores have 1 MiB of second-level cache or more, and 720 KiB fit; they
    /// multiply twice as fast, so that 384 rows would hide only half of the packing.
    public static let wideRowBlock = 960
    /// Most columns of a block that operators multiply on their own.
    public static let columnBlock = 768
    /// Most columns of a task of `GEMM`. A block of A is packed once per task, at about a cycle per element against the
    /// 1536 / 32 = 48 cycles that AVX-512 multiplies with it.
    public static let taskColumns = 1536

    /// Most rows that are multiplied in place, by `multiplyRows`: with 16 rows that costs two thirds of packing B first, with 32 still a
    /// little less.
    public static let fewRows = 16
    /// Floats of the sums of `multiplyRows`: 16 KiB, half of a small first-level cache. Whole vectors of rows behind them.
    public static let rowSums = 4096

    /// Floats of packed A, which comes first; a packed panel of B follows.
    public static let packedA = (wideRowBlock + AttentionScratch.maximumTileRows) * depthBlock
    /// Where a tile at the edge of C is kept before its valid part is copied.
    public static let edge = packedA + 3 * AttentionScratch.maximumLanes * depthBlock
    public static let byteCount = (edge + AttentionScratch.maximumTileRows * 3 * AttentionScratch.maximumLanes) * 4

    /// Equal blocks of at most `limit`, each but the last a multiple of `unit`: what one block of `extent` spans.
    public static func block(_ extent: Int, limit: Int, unit: Int) -> Int {
        min(limit, block(extent, into: (extent + limit - 1) / limit, unit: unit))
    }

    /// What one of `blocks` equal blocks spans, each but the last a multiple of `unit`.
    public static func block(_ extent: Int, into blocks: Int, unit: Int) -> Int {
        ((extent + blocks - 1) / blocks + unit - 1) / unit * unit
    }
}
