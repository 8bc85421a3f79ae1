// LayerNorm of cells of a grid of tokens, as if space-to-channel had put the b × b tokens of each side by side:
//
//     row of cell (i, j)     tokens (b·i + r, b·j + c) for r, c = 0…b−1, with zeros for those outside of the grid
//     y = (row − μ) / √(mean (row − μ)² + ε) · weight + bias
//
// The row is nowhere in memory: a cell is read where its tokens are. Those of one grid row are adjacent, so that a cell is b pieces of
// b tokens; with a stride between tokens it is b² pieces of one. Zeros are not read, but counted: n of them add −n·μ and n·μ² to the
// sums of deviations.
//
// A piece is read from memory once, by the pass that finds the mean; the passes for the deviations and for y find it in a cache (a cell
// of 3 × 3 tokens of 1152 floats is 41 KB). Memory would idle in these two, so each of them asks for a part of the next cell. Sums are
// those of `rowSums`, with one more addition per piece.
//
// Bytes are what this takes. The cells of a large y are out of the caches before anybody reads them, and a store into a line that is
// not there reads it first: a third of all traffic. With `streams` y is stored past the caches.

public import KernelInterface

extension Kernels {
    public static func normalizeCells(_ arguments: UnsafePointer<NormalizeCellsArguments>) {
        let args = arguments.pointee
        for row in 0..<args.count { normalizeCell(args, row) }
        if args.streams { finishStreaming() }
    }
}

/// Pieces of one grid row of a cell, and the elements of a whole one.
@_transparent
private func pieces(_ args: NormalizeCellsArguments) -> (perRow: Int, length: Int) {
    let areAdjacent = args.x.stride == args.channels
    return (areAdjacent ? 1 : args.factor, (areAdjacent ? args.factor : 1) * args.channels)
}

/// Where a piece of a cell begins, and its elements before the zeros.
@inline(never)
private func piece(
    _ args: NormalizeCellsArguments, cell: Int, row: Int, part: Int
) -> (base: UnsafeRawPointer, filled: Int) {
    let (across, down) = (cellsAlong(args.gridColumns, args.factor), cellsAlong(args.gridRows, args.factor))
    let (frame, inFrame) = (cell / (across * down), cell % (across * down))
    let gridRow = inFrame / across * args.factor + row
    let column = inFrame % across * args.factor + part
    if gridRow >= args.gridRows || column >= args.gridColumns { return (args.x.base, 0) }
    let tokens = args.x.stride == args.channels ? minimum(args.factor, args.gridColumns - column) : 1
    let token = (frame * args.gridRows + gridRow) * args.gridColumns + column
    return (args.x.base + token * args.x.stride * byteCount(args.x.type), tokens * args.channels)
}

@_transparent
private func cellsAlong(_ extent: Int, _ factor: Int) -> Int { (extent - 1) / factor + 1 }

@inline(never)
private func normalizeCell(_ args: NormalizeCellsArguments, _ index: Int) {
    let cell = args.first + index
    let (parts, length) = pieces(args)
    let count = Float(args.factor * args.factor * args.channels)
    var sum: Float = 0
    for row in 0..<args.factor {
        for part in 0..<parts {
            let (base, filled) = piece(args, cell: cell, row: row, part: part)
            sum += rowSums(base, args.x.type, filled, minus: 0).plain
        }
    }
    let mean = sum / count
    let isLast = index + 1 == args.count
    var (plain, squares): (Float, Float) = (0, 0)
    for row in 0..<args.factor {
        for part in 0..<parts {
            let (base, filled) = piece(args, cell: cell, row: row, part: part)
            if !isLast {
                let next = piece(args, cell: cell + 1, row: row, part: part)
                prefetchElements(next.base, next.filled / 4 * byteCount(args.x.type))
            }
            let deviations = rowSums(base, args.x.type, filled, minus: mean)
            let zeros = Float(length - filled)
            plain += deviations.plain - zeros * mean
            squares += deviations.squares + zeros * mean * mean
        }
    }
    let correction = plain / count
    let rest = squares / count - correction * correction
    // The difference of two rounded numbers may be a little below 0. NaN passes.
    let variance = rest < 0 ? 0 : rest
    let factor = 1 / (variance + args.epsilon).squareRoot()
    let scale = (mean: mean, correction: correction, factor: factor)
    for row in 0..<args.factor {
        for part in 0..<parts {
            let (base, filled) = piece(args, cell: cell, row: row, part: part)
            let channel = (row * parts + part) * length
            writePiece(args, index, base, filled, at: channel, scale)
            if filled < length { writeZeros(args, index, from: channel + filled, to: channel + length, scale) }
        }
    }
}

/// Asks for adjacent bytes.
@inline(never)
private func prefetchElements(_ base: UnsafeRawPointer, _ bytes: Int) {
    var offset = 0
    while offset < bytes {
        prefetchNear(base + offset)
        offset += 64
    }
}

/// What a row of y is computed with.
private typealias Scale = (mean: Float, correction: Float, factor: Float)

/// y = ((x − mean) − correction) · factor · weight + bias for a piece whose first channel is `channel`.
@inline(never)
private func writePiece(
    _ args: NormalizeCellsArguments, _ row: Int, _ base: UnsafeRawPointer, _ filled: Int, at channel: Int, _ scale: Scale
) {
    let y = args.y.base + (row * args.y.stride + channel) * byteCount(args.y.type)
    let whole = filled / laneCount * laneCount
    let isAligned = Int(bitPattern: y) % (4 * laneCount) == 0
    if args.streams && isAligned && args.y.type == .float32 {
        let target = y.assumingMemoryBound(to: Float.self)
        var index = 0
        while index < whole {
            stream(normalized(args, loadLanes(base, args.x.type, index), channel + index, scale), target + index)
            index += laneCount
        }
    } else {
        var index = 0
        while index < whole {
            storeLanes(
                normalized(args, loadLanes(base, args.x.type, index), channel + index, scale), y, args.y.type, index)
            index += laneCount
        }
    }
    let rest = filled - whole
    if rest > 0 {
        let x = loadLastLanes(base, args.x.type, whole, rest, filler: 0)
        storeLastLanes(lastNormalized(args, x, channel + whole, rest, scale), y, args.y.type, whole, rest)
    }
}

/// The same for zeros.
@inline(never)
private func writeZeros(_ args: NormalizeCellsArguments, _ row: Int, from start: Int, to end: Int, _ scale: Scale) {
    let y = args.y.base + row * args.y.stride * byteCount(args.y.type)
    var channel = start
    while channel + laneCount <= end {
        storeLanes(normalized(args, splat(0), channel, scale), y, args.y.type, channel)
        channel += laneCount
    }
    if channel < end {
        storeLastLanes(lastNormalized(args, splat(0), channel, end - channel, scale), y, args.y.type, channel, end - channel)
    }
}

@_transparent
private func normalized(_ args: NormalizeCellsArguments, _ x: Vector, _ channel: Int, _ scale: Scale) -> Vector {
    var value = ((x - splat(scale.mean)) - splat(scale.correction)) * splat(scale.factor)
    if let weight = args.weight { value = value * load(weight + channel) }
    if let bias = args.bias { value = value + load(bias + channel) }
    return value
}

/// The same for the last channels of a piece, fewer than a vector.
@inline(never)
private func lastNormalized(
    _ args: NormalizeCellsArguments, _ x: Vector, _ channel: Int, _ count: Int, _ scale: Scale
) -> Vector {
    var value = ((x - splat(scale.mean)) - splat(scale.correction)) * splat(scale.factor)
    if let weight = args.weight {
        value = value * loadLastLanes(UnsafeRawPointer(weight), .float32, channel, count, filler: 0)
    }
    if let bias = args.bias { value = value + loadLastLanes(UnsafeRawPointer(bias), .float32, channel, count, filler: 0) }
    return value
}
