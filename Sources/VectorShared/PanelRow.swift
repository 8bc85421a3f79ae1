// One row of a panel: up to three vectors side by side, and the arithmetic on them.
//
// `width` is the number of vectors in use, and must be a literal 1, 2 or 3 after inlining. Arithmetic is written for all three;
// the optimiser removes what a narrower panel computes beyond its width, because that is never stored.
//
// Rows, masks and tiles are tuples. An InlineArray that the optimiser fails to split stays in memory, which halved the speed of
// the tile, and its generic initialisers would be weak symbols compiled for this instruction set. A struct would emit weak
// functions: the copies of its value witnesses, which all types of that size in the program share.

/// Vectors across a full panel.
@_alwaysEmitIntoClient @_transparent
public var panelVectors: Int { 3 }

/// Floats across a full panel.
@_alwaysEmitIntoClient @_transparent
public var panelWidth: Int { panelVectors * laneCount }

/// Cuts a row of vectors into panels of three, ending in 2 + 2 rather than 3 + 1: a tile of two vectors still has `2·tileRows`
/// independent chains, and a tile of one vector only half of the chains that the FMA units need.
@_alwaysEmitIntoClient @_transparent
public func forEachPanel(vectors: Int, _ body: (_ row: Int, _ width: Int) -> Void) {
    var done = 0
    while done < vectors {
        let left = vectors - done
        let width = left == 4 ? 2 : minimum(left, panelVectors)
        body(done * laneCount, width)
        done += width
    }
}

/// A row of up to three registers.
public typealias PanelRow = (x0: Vector, x1: Vector, x2: Vector)

/// Repeats one value in all lanes.
@_alwaysEmitIntoClient @_transparent
public func splatRow(_ value: Float) -> PanelRow { (splat(value), splat(value), splat(value)) }

/// Loads `width` vectors.
@_alwaysEmitIntoClient @_transparent
public func loadRow(_ pointer: UnsafePointer<Float>, width: Int) -> PanelRow {
    let x0 = load(pointer)
    let x1 = width > 1 ? load(pointer + laneCount) : x0
    let x2 = width > 2 ? load(pointer + 2 * laneCount) : x0
    return (x0, x1, x2)
}

/// Stores `width` vectors.
@_alwaysEmitIntoClient @_transparent
public func store(_ row: PanelRow, _ pointer: UnsafeMutablePointer<Float>, width: Int) {
    store(row.x0, pointer)
    if width > 1 { store(row.x1, pointer + laneCount) }
    if width > 2 { store(row.x2, pointer + 2 * laneCount) }
}

@_alwaysEmitIntoClient @_transparent
public func + (a: PanelRow, b: PanelRow) -> PanelRow { (a.x0 + b.x0, a.x1 + b.x1, a.x2 + b.x2) }

@_alwaysEmitIntoClient @_transparent
public func - (a: PanelRow, b: PanelRow) -> PanelRow { (a.x0 - b.x0, a.x1 - b.x1, a.x2 - b.x2) }

@_alwaysEmitIntoClient @_transparent
public func * (a: PanelRow, b: PanelRow) -> PanelRow { (a.x0 * b.x0, a.x1 * b.x1, a.x2 * b.x2) }

/// Lane-wise a·b + c, with one rounding where the level has fused multiply-adds.
@_alwaysEmitIntoClient @_transparent
public func multiplyAdd(_ a: PanelRow, _ b: PanelRow, _ c: PanelRow) -> PanelRow {
    (multiplyAdd(a.x0, b.x0, c.x0), multiplyAdd(a.x1, b.x1, c.x1), multiplyAdd(a.x2, b.x2, c.x2))
}

/// c + a·b with one value of a in every lane.
@_alwaysEmitIntoClient @_transparent
public func multiplyAdd(_ a: Float, _ b: PanelRow, _ c: PanelRow) -> PanelRow {
    let a = splat(a)
    return (multiplyAdd(a, b.x0, c.x0), multiplyAdd(a, b.x1, c.x1), multiplyAdd(a, b.x2, c.x2))
}

/// Lane-wise `a > b ? a : b`.
@_alwaysEmitIntoClient @_transparent
public func maximum(_ a: PanelRow, _ b: PanelRow) -> PanelRow {
    (maximum(a.x0, b.x0), maximum(a.x1, b.x1), maximum(a.x2, b.x2))
}

/// Lane-wise eˣ.
@_alwaysEmitIntoClient @_transparent
public func exp(_ x: PanelRow) -> PanelRow { (exp(x.x0), exp(x.x1), exp(x.x2)) }

/// Lane-wise x, with −∞ replaced by 0.
@_alwaysEmitIntoClient @_transparent
public func zeroingNegativeInfinity(_ x: PanelRow) -> PanelRow {
    let infinity = splat(-.infinity)
    return (
        x.x0.replacing(with: splat(0), where: x.x0 .== infinity), x.x1.replacing(with: splat(0), where: x.x1 .== infinity),
        x.x2.replacing(with: splat(0), where: x.x2 .== infinity)
    )
}

/// A choice of lanes of a row, one mask per vector.
public typealias PanelMask = (x0: SIMDMask<IntVector>, x1: SIMDMask<IntVector>, x2: SIMDMask<IntVector>)

/// The lanes i with `from` ≥ i > `to`.
@_alwaysEmitIntoClient @_transparent
public func panelMask(lanesUpTo from: Int32, above to: Int32) -> PanelMask {
    var lane = IntVector()
    for i in 0..<laneCount { lane[i] = Int32(truncatingIfNeeded: i) }
    let step = Int32(truncatingIfNeeded: laneCount)
    let (upper, lower) = (IntVector(repeating: from), IntVector(repeating: to))
    return (
        (lane .<= upper) .& (lane .> lower), (lane &+ step .<= upper) .& (lane &+ step .> lower),
        (lane &+ (2 * step) .<= upper) .& (lane &+ (2 * step) .> lower)
    )
}

/// The lanes i with `from[i]` ≤ `key` < `to[i]`.
@_alwaysEmitIntoClient @_transparent
public func panelMask(from: UnsafePointer<Int32>, to: UnsafePointer<Int32>, holding key: Int32, width: Int) -> PanelMask {
    let (first, end) = (UnsafeRawPointer(from), UnsafeRawPointer(to))
    let key = IntVector(repeating: key)
    let bytes = 4 * laneCount
    let x0 = (first.loadUnaligned(as: IntVector.self) .<= key) .& (end.loadUnaligned(as: IntVector.self) .> key)
    let x1 =
        width > 1
        ? ((first + bytes).loadUnaligned(as: IntVector.self) .<= key)
            .& ((end + bytes).loadUnaligned(as: IntVector.self) .> key)
        : x0
    let x2 =
        width > 2
        ? ((first + 2 * bytes).loadUnaligned(as: IntVector.self) .<= key)
            .& ((end + 2 * bytes).loadUnaligned(as: IntVector.self) .> key) : x0
    return (x0, x1, x2)
}

/// Selects `kept` in the lanes of the mask, and `other` elsewhere.
@_alwaysEmitIntoClient @_transparent
public func select(_ mask: PanelMask, _ kept: PanelRow, else other: PanelRow) -> PanelRow {
    (
        other.x0.replacing(with: kept.x0, where: mask.x0), other.x1.replacing(with: kept.x1, where: mask.x1),
        other.x2.replacing(with: kept.x2, where: mask.x2)
    )
}
