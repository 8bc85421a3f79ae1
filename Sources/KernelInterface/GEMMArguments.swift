/// One block of C = A·B (or A·Bᵀ) in float32, row-major, with any number of columns. Strides count elements.
///
/// `multiplyBlock` takes at most `GEMMScratch.wideRowBlock` rows and `multiplyRows` at most `GEMMScratch.fewRows`.
public struct GEMMArguments {
    public var a: UnsafePointer<Float>
    public var aStride: Int
    public var b: UnsafePointer<Float>
    public var bStride: Int
    /// Whether B is stored as [columns][depth] and used transposed.
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

/// The cache blocks of the matrix product and the scratch that they need, in floats.
public enum GEMMScratch {
    /// Depth of a packed block. A panel of B, 192 × 48 floats, is 36 KiB and stays in a first-level cache of 48 KiB beside a
    /// strip of A (6 KiB); with 24 columns it is 18 KiB of 32 KiB. Deeper panels would come from the second-level cache,
    /// which is not slower by itself, but leaves less to the lines of C and of the next panel: 256 loses 5% at 2048³ on AVX-512.
    public static let depthBlock = 192
    /// The most rows of a block. 384 × 192 floats of packed A are 288 KiB, which leaves nearly half of a 512 KiB second-level
    /// cache to B and C. Every block of B is packed once per row block, at 0.2 cycles (0.7 when transposed) per element,
    /// compared with the 384 / 16 = 24 cycles in which AVX2 multiplies with it.
    public static let rowBlock = 384
    /// The most rows of a block where vectors have 16 lanes. Cores with such vectors have 1 MiB of second-level cache or more,
    /// into which 720 KiB fit. They multiply twice as fast, so that 384 rows would hide only half of the packing.
    public static let wideRowBlock = 960
    /// The most columns of a block that operators multiply on their own.
    public static let columnBlock = 768
    /// The most columns of a task of `GEMM`. A block of A is packed once per task, at about a cycle per element, compared with
    /// the 1536 / 32 = 48 cycles in which AVX-512 multiplies with it.
    public static let taskColumns = 1536

    /// The most rows that `multiplyRows` multiplies without packing B. Compared with packing B first, 16 rows take two thirds
    /// of the time, and 32 rows still a little less.
    public static let fewRows = 16
    /// Floats of the sums of `multiplyRows`: 16 KiB, half of a small first-level cache. Whole vectors of rows follow them.
    public static let rowSums = 4096

    /// Floats of packed A, which comes first. A packed panel of B follows.
    public static let packedA = (wideRowBlock + AttentionScratch.maximumTileRows) * depthBlock
    /// The offset of the buffer for a tile at the edge of C, from which the valid part is copied.
    public static let edge = packedA + 3 * AttentionScratch.maximumLanes * depthBlock
    public static let byteCount = (edge + AttentionScratch.maximumTileRows * 3 * AttentionScratch.maximumLanes) * 4

    /// The size of the blocks of `extent` when they are equal, at most `limit`, and each except the last a multiple of `unit`.
    public static func block(_ extent: Int, limit: Int, unit: Int) -> Int {
        min(limit, block(extent, into: (extent + limit - 1) / limit, unit: unit))
    }

    /// The size of each of `blocks` equal blocks of `extent`, each except the last a multiple of `unit`.
    public static func block(_ extent: Int, into blocks: Int, unit: Int) -> Int {
        ((extent + blocks - 1) / blocks + unit - 1) / unit * unit
    }
}
