// Rows of a picture, made from rows and columns of another one, one axis after the other:
//
//     t[i][b] = Σ_a row weight(i, a) · x[a][b]        y[i][j] = Σ_b column weight(j, b) · t[i][b]
//
// or maxima in the place of weighted sums. Rows come first, so that tasks which make different rows compute nothing twice. Sums go
// from the first tap to the last, so that bits do not depend on how rows are cut.
//
// Along a row of a plane neighbouring results read different places, so lanes are rows there: as many rows as lanes are summed over
// their taps, transposed in small blocks, summed over the columns' taps, and transposed back. With four taps that is a load and a
// multiply-add per tap and `laneCount` results, and about a shuffle per result, where one result at a time would be four loads of
// weights and four of elements each. Cells with channels have their lanes along channels.
//
// A row is made in stretches of columns, so that what stands between the steps stays in the first-level cache.

public import KernelInterface

extension Kernels {
    /// See `ResizeArguments`.
    public static func resizeRows(_ arguments: UnsafePointer<ResizeArguments>) {
        let args = arguments.pointee
        if args.channels == 1 && args.sourceCellStride == 1 && args.targetCellStride == 1 {
            if args.copiesColumns {
                combinePlaneRows(args)
            } else if args.takesMaximum {
                poolPlane(args)
            } else {
                resizePlane(args)
            }
        } else if args.takesMaximum {
            poolCells(args)
        } else {
            resizeCells(args)
        }
    }
}

// MARK: - Taps

/// The first tap of a sum or a maximum.
@_transparent
private func begin(_ x: Vector, _ weight: UnsafePointer<Float>, isMaximum: Bool) -> Vector {
    isMaximum ? x : splat(weight[0]) * x
}

/// A further tap. `maximum` has the second operand where either is NaN, which keeps a NaN that came before.
@_transparent
private func combine(
    _ sum: Vector, _ x: Vector, _ weight: UnsafePointer<Float>, _ tap: Int, isMaximum: Bool
) -> Vector {
    isMaximum ? maximum(x, sum).replacing(with: x, where: x .!= x) : multiplyAdd(splat(weight[tap]), x, sum)
}

/// The source columns that `count` columns from `column` on read.
@_transparent
private func sourceColumns(_ args: ResizeArguments, _ column: Int, _ count: Int) -> (first: Int, end: Int) {
    if args.copiesColumns { return (column, column + count) }
    let last = column + count - 1
    return (Int(args.columns.first[column]), Int(args.columns.first[last]) + Int(args.columns.count[last]))
}

/// Combines `count` adjacent floats of the rows that make `row`. `target` may be longer than that by less than a vector if
/// `fills`; a rest that is shorter than a vector is written as a vector then.
@_transparent
private func combineRow(
    _ args: ResizeArguments, _ row: Int, from source: UnsafePointer<Float>, count: Int,
    into target: UnsafeMutablePointer<Float>,
    fills: Bool, isMaximum: Bool
) {
    let taps = Int(args.rows.count[row])
    let weight = args.rows.weights + Int(args.rows.offset[row])
    let base = source + Int(args.rows.first[row]) * args.sourceRowStride
    if count < laneCount {
        var sum = begin(
            loadLastLanes(UnsafeRawPointer(base), .float32, 0, count, filler: 0), weight, isMaximum: isMaximum)
        for tap in 1..<taps {
            let x = loadLastLanes(UnsafeRawPointer(base + tap * args.sourceRowStride), .float32, 0, count, filler: 0)
            sum = combine(sum, x, weight, tap, isMaximum: isMaximum)
        }
        if fills {
            store(sum, target)
        } else {
            storeLastLanes(sum, UnsafeMutableRawPointer(target), .float32, 0, count)
        }
        return
    }
    var x = 0
    while x < count {
        // The last vector reaches back, and computes again what is there already.
        x = minimum(x, count - laneCount)
        var sum = begin(load(base + x), weight, isMaximum: isMaximum)
        var line = base + x
        for tap in 1..<taps {
            line += args.sourceRowStride
            sum = combine(sum, load(line), weight, tap, isMaximum: isMaximum)
        }
        store(sum, target + x)
        x += laneCount
    }
}

// MARK: - Planes

@inline(never)
private func resizePlane(_ args: ResizeArguments) { resamplePlane(args, isMaximum: false) }

@inline(never)
private func poolPlane(_ args: ResizeArguments) { resamplePlane(args, isMaximum: true) }

/// Rows of a plane whose columns stay as they are.
@inline(never)
private func combinePlaneRows(_ args: ResizeArguments) {
    for row in args.firstRow..<args.endRow {
        let target = args.target + row * args.targetRowStride
        if args.takesMaximum {
            combineRow(args, row, from: args.source, count: args.columnCount, into: target, fills: false, isMaximum: true)
        } else {
            combineRow(args, row, from: args.source, count: args.columnCount, into: target, fills: false, isMaximum: false)
        }
    }
}

@_transparent
private func resamplePlane(_ args: ResizeArguments, isMaximum: Bool) {
    let rowSums = args.scratch
    let lines = rowSums + laneCount * args.scratchColumns
    let results = lines + laneCount * args.scratchColumns
    var row = args.firstRow
    while row < args.endRow {
        let rows = minimum(laneCount, args.endRow - row)
        var column = 0
        while column < args.columnCount {
            let columns = minimum(ResizeScratch.planeStretch, args.columnCount - column)
            let (first, end) = sourceColumns(args, column, columns)
            for y in 0..<rows {
                combineRow(
                    args, row + y, from: args.source + first, count: end - first, into: rowSums + y * args.scratchColumns,
                    fills: true, isMaximum: isMaximum)
            }
            transpose(
                rowSums, stride: args.scratchColumns, rows: rows, columns: end - first, times: 1, into: lines,
                destinationStride: laneCount)
            for x in 0..<columns {
                let place = column + x
                let taps = Int(args.columns.count[place])
                let weight = args.columns.weights + Int(args.columns.offset[place])
                var line = lines + (Int(args.columns.first[place]) - first) * laneCount
                var sum = begin(load(line), weight, isMaximum: isMaximum)
                for tap in 1..<taps {
                    line += laneCount
                    sum = combine(sum, load(line), weight, tap, isMaximum: isMaximum)
                }
                store(sum, results + x * laneCount)
            }
            transpose(
                results, stride: laneCount, rows: columns, columns: rows, times: 1,
                into: args.target + row * args.targetRowStride + column, destinationStride: args.targetRowStride)
            column += columns
        }
        row += rows
    }
}

// MARK: - Cells with channels

@inline(never)
private func resizeCells(_ args: ResizeArguments) { resampleCells(args, isMaximum: false) }

@inline(never)
private func poolCells(_ args: ResizeArguments) { resampleCells(args, isMaximum: true) }

@_transparent
private func resampleCells(_ args: ResizeArguments, isMaximum: Bool) {
    for row in args.firstRow..<args.endRow {
        var column = 0
        while column < args.columnCount {
            let columns = minimum(ResizeScratch.cellStretch, args.columnCount - column)
            let (first, end) = sourceColumns(args, column, columns)
            var channel = 0
            while channel < args.channels {
                let channels = minimum(ResizeScratch.channelBlock, args.channels - channel)
                let source = args.source + first * args.sourceCellStride + channel
                if channels == args.sourceCellStride {
                    // All channels of adjacent cells are one stretch of memory.
                    combineRow(
                        args, row, from: source, count: (end - first) * channels, into: args.scratch, fills: true,
                        isMaximum: isMaximum)
                } else {
                    for cell in 0..<(end - first) {
                        combineRow(
                            args, row, from: source + cell * args.sourceCellStride, count: channels,
                            into: args.scratch + cell * channels, fills: true, isMaximum: isMaximum)
                    }
                }
                let target = args.target + row * args.targetRowStride + channel
                for x in 0..<columns {
                    combineCells(
                        args, column + x, first: first, channels: channels, into: target + (column + x) * args.targetCellStride,
                        isMaximum: isMaximum)
                }
                channel += channels
            }
            column += columns
        }
    }
}

/// Combines the cells of scratch that make a column. Loads of the last vector of a cell go past its end, into the next cell or the
/// vector at the end of the scratch, and what they bring is not stored.
@_transparent
private func combineCells(
    _ args: ResizeArguments, _ column: Int, first: Int, channels: Int, into target: UnsafeMutablePointer<Float>, isMaximum: Bool
) {
    var taps = 1
    var weight = UnsafePointer(args.scratch)
    var cell = column - first
    if !args.copiesColumns {
        taps = Int(args.columns.count[column])
        weight = args.columns.weights + Int(args.columns.offset[column])
        cell = Int(args.columns.first[column]) - first
    }
    var channel = 0
    while channel < channels {
        var line = args.scratch + cell * channels + channel
        var sum = load(line)
        if !args.copiesColumns { sum = begin(sum, weight, isMaximum: isMaximum) }
        for tap in 1..<taps {
            line += channels
            sum = combine(sum, load(line), weight, tap, isMaximum: isMaximum)
        }
        storePart(sum, UnsafeMutableRawPointer(target), .float32, channel, channels)
        channel += laneCount
    }
}
