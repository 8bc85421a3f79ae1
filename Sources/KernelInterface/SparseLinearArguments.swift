/// Which way columns move, and what becomes of columns that are not listed.
public enum ColumnDirection: UInt8, Sendable {
    /// target[:, t] = source[:, columns[t]].
    case gather
    /// target[:, columns[t]] = source[:, t]; other columns of the target become 0.
    case scatter
    /// The same; other columns of the target stay.
    case scatterAmongOthers
}

/// Moves listed columns of rows between a wide matrix and a compact one. Strides count elements.
public struct MoveColumnsArguments {
    public var source: UnsafePointer<Float>
    public var sourceStride: Int
    public var target: UnsafeMutablePointer<Float>
    public var targetStride: Int
    public var rows: Int
    /// Ascending, without repetition, below `width`.
    public var columns: UnsafePointer<Int32>
    public var count: Int
    /// Columns of the wide matrix.
    public var width: Int
    public var direction: ColumnDirection

    public init(
        source: UnsafePointer<Float>, sourceStride: Int, target: UnsafeMutablePointer<Float>, targetStride: Int, rows: Int,
        columns: UnsafePointer<Int32>, count: Int, width: Int, direction: ColumnDirection
    ) {
        self.source = source
        self.sourceStride = sourceStride
        self.target = target
        self.targetStride = targetStride
        self.rows = rows
        self.columns = columns
        self.count = count
        self.width = width
        self.direction = direction
    }
}

/// One block of C = A·B[I]ᵀ or A·B[I], or of what is added to C, for rows I of B that are numbers of 8, 16 or 32 bits. Strides count
/// elements.
///
/// `multiplyPicked` takes at most `PickedScratch.rows(depthBlock:)` rows.
public struct PickedProductArguments {
    public var a: UnsafePointer<Float>
    public var aStride: Int
    /// The first row of B and, for A·B[I], the first of its columns that take part.
    public var b: UnsafeRawPointer
    public var bStride: Int
    public var type: WeightType
    /// The rows of B, in the order of their columns of C for A·B[I]ᵀ, and of the depth for A·B[I]; nil for rows from the first on.
    public var list: UnsafePointer<Int32>?
    /// Whether a row of B belongs to a column of C.
    public var isTransposed: Bool
    public var c: UnsafeMutablePointer<Float>
    public var cStride: Int
    public var rows: Int
    public var columns: Int
    public var depth: Int
    /// The depth of a packed block, at most `PickedScratch.deepest`.
    public var depthBlock = PickedScratch.deepest
    /// What the product is multiplied by, before anything is added.
    public var factor: Float = 1
    /// Whether the product is added to C.
    public var accumulates = false
    /// Added to every row of C: that of column *x*, or, for A·B[I]ᵀ, of the row of B that belongs to it.
    public var bias: UnsafePointer<Float>?
    /// `PickedScratch.byteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        a: UnsafePointer<Float>, aStride: Int, b: UnsafeRawPointer, bStride: Int, type: WeightType,
        list: UnsafePointer<Int32>?, isTransposed: Bool, c: UnsafeMutablePointer<Float>, cStride: Int, rows: Int, columns: Int,
        depth: Int, scratch: UnsafeMutableRawPointer
    ) {
        self.a = a
        self.aStride = aStride
        self.b = b
        self.bStride = bStride
        self.type = type
        self.list = list
        self.isTransposed = isTransposed
        self.c = c
        self.cStride = cStride
        self.rows = rows
        self.columns = columns
        self.depth = depth
        self.scratch = scratch
    }
}

/// The cache blocks of products with picked rows, and the scratch that they need, in floats.
public enum PickedScratch {
    /// The deepest block of a product with many rows.
    public static let deepest = 256
    /// Floats of packed A, which comes first.
    public static let packedA = GEMMScratch.packedA + deepest * AttentionScratch.maximumTileRows
    /// A packed panel of B, and its rows as floats.
    public static let panel = packedA
    public static let stage = panel + 3 * AttentionScratch.maximumLanes * deepest
    /// A tile at the edge of C, and a row of starting values.
    public static let edge = stage + 3 * AttentionScratch.maximumLanes * deepest
    public static let tileFloats = AttentionScratch.maximumTileRows * 3 * AttentionScratch.maximumLanes
    public static let byteCount = (edge + tileFloats + 3 * AttentionScratch.maximumLanes) * 4
    /// The most columns of a task of A·B[I]. A is packed once per task; packing B costs little, since its rows are copied.
    public static let wideColumns = 4128

    /// The depth of the blocks of a product: equal blocks, since a thin last one would pay for a pass over C and multiply little
    /// (430 picked rows are 3 blocks of 144, and not 192 + 192 + 46).
    ///
    /// A·B[I]ᵀ has few columns and a deep sum, so deeper blocks save passes over C; A·B[I] is as fast with either, and leaves more
    /// rows to a block with the smaller one.
    public static func depthBlock(_ depth: Int, isTransposed: Bool) -> Int {
        Swift.max(2, GEMMScratch.block(Swift.max(depth, 1), limit: isTransposed ? deepest : GEMMScratch.depthBlock, unit: 2))
    }

    /// The most rows of a block, of at most `limit` rows where blocks are `GEMMScratch.depthBlock` deep: packed A stays as large.
    public static func rows(depthBlock: Int, limit: Int) -> Int {
        Swift.max(AttentionScratch.maximumTileRows, Swift.min(limit, limit * GEMMScratch.depthBlock / depthBlock))
    }

    // MARK: - Few rows

    /// Floats of the sums of A·B[I]: 32 KiB, which stay in the first-level cache of cores with wide vectors, or come from the second.
    public static let rowSums = 8192
    /// Bytes between what is multiplied and what is prefetched, in each of four rows of B.
    public static let bytesAhead = 2048
    /// Bytes of scratch: the sums, a row of zeros, and what they need besides, which is more than dots need.
    public static let rowByteCount = (2 * rowSums + 4 * AttentionScratch.maximumLanes + 16) * 4

    /// The columns of a task of A·B[I] with few rows. Its sums, in whole vectors, fit.
    public static func stretch(rows: Int) -> Int { rowSums / rows / 48 * 48 }
}

/// Adds the sums of parts of a list of rows: C (+)= factor · (part 0 + part 1 + …) + bias. Strides count floats.
public struct PickedPartsArguments {
    public var parts: UnsafePointer<Float>
    public var rowStride: Int
    public var partStride: Int
    /// Parts, at least one.
    public var count: Int
    public var c: UnsafeMutablePointer<Float>
    public var cStride: Int
    public var rows: Int
    public var columns: Int
    public var factor: Float = 1
    public var bias: UnsafePointer<Float>?
    public var accumulates = false

    public init(
        parts: UnsafePointer<Float>, rowStride: Int, partStride: Int, count: Int, c: UnsafeMutablePointer<Float>, cStride: Int,
        rows: Int, columns: Int
    ) {
        self.parts = parts
        self.rowStride = rowStride
        self.partStride = partStride
        self.count = count
        self.c = c
        self.cStride = cStride
        self.rows = rows
        self.columns = columns
    }
}
