// Operands of recurrences into scratch, and results out of it.

import KernelInterface

/// Stages queries, times the scale, and keys of a chunk as rows of floats. What fills up rows and the chunk is zero.
@inline(never)
func stageKeys(_ args: LinearRecurrenceArguments, _ layout: LinearRecurrenceScratch, start: Int, count: Int) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let (queries, keys, width) = (scratch + layout.query, scratch + layout.key, layout.keyWidth)
    for token in 0..<count {
        let (query, key) = (queries + token * rowStride, keys + token * rowStride)
        stageRow(args.query, start + token, channels: args.keyDim, times: args.scale, padded: width, into: query)
        stageRow(args.key, start + token, channels: args.keyDim, times: 1, padded: width, into: key)
    }
    for token in count..<layout.tokens {
        for channel in 0..<width {
            queries[token * rowStride + channel] = 0
            keys[token * rowStride + channel] = 0
        }
    }
}

/// Copies a row of any storage type to floats, times a factor, and fills it up with zeros.
@inline(never)
func stageRow(
    _ operand: RowOperand, _ row: Int, channels: Int, times factor: Float, padded: Int,
    into target: UnsafeMutablePointer<Float>
) {
    let base = operand.base + row * operand.stride * byteCount(operand.type)
    let factor = splat(factor)
    var channel = 0
    while channel + laneCount <= channels {
        store(loadLanes(base, operand.type, channel) * factor, target + channel)
        channel += laneCount
    }
    if channel < channels {
        store(loadLastLanes(base, operand.type, channel, channels - channel, filler: 0) * factor, target + channel)
        channel += laneCount
    }
    while channel < padded {
        store(splat(0), target + channel)
        channel += laneCount
    }
}

/// Packs values of a chunk as panels [tokens][width]. Columns past the end are zero, and so are rows that fill up the last tile.
///
/// Tokens are the outer loop, because the heads of a token usually lie side by side, so that processors fetch them ahead.
@inline(never)
func packValues(_ args: LinearRecurrenceArguments, _ layout: LinearRecurrenceScratch, start: Int, count: Int) {
    let values = args.scratch.assumingMemoryBound(to: Float.self) + layout.values
    let vectors = (args.valueDim + laneCount - 1) / laneCount
    let rows = (count + tileRows - 1) / tileRows * tileRows
    for token in 0..<rows {
        for head in 0..<args.heads {
            let row =
                args.value.base
                + (head * args.valueHeadStride + (start + token) * args.value.stride) * byteCount(args.value.type)
            let target = values + head * layout.valueCount
            forEachPanel(vectors: vectors) { column, width in
                packRow(
                    row, args.value.type, column: column, columns: token < count ? args.valueDim : 0,
                    lanes: width * laneCount, into: target + layout.tokens * column + token * width * laneCount)
            }
        }
    }
}

/// Packs columns of a row; those from `columns` on are zero.
@_transparent
private func packRow(
    _ row: UnsafeRawPointer, _ type: StorageType, column: Int, columns: Int, lanes: Int,
    into target: UnsafeMutablePointer<Float>
) {
    var x = 0
    while x < lanes {
        let left = columns - column - x
        if left >= laneCount {
            store(loadLanes(row, type, column + x), target + x)
        } else if left > 0 {
            store(loadLastLanes(row, type, column + x, left, filler: 0), target + x)
        } else {
            store(splat(0), target + x)
        }
        x += laneCount
    }
}

/// Writes rows of a tile as outputs of tokens from `first` on.
@inline(never)
func writeOutputs(
    _ args: LinearRecurrenceArguments, _ tile: UnsafePointer<Float>, head: Int, column: Int, lanes: Int, first: Int,
    count: Int
) {
    let type = args.output.type
    let columns = minimum(lanes, args.valueDim - column)
    for token in 0..<count {
        let row =
            args.output.base
            + (head * args.outputHeadStride + (first + token) * args.output.stride + column) * byteCount(type)
        let source = tile + token * lanes
        var x = 0
        while x + laneCount <= columns {
            storeLanes(load(source + x), row, type, x)
            x += laneCount
        }
        if x < columns { storeLastLanes(load(source + x), row, type, x, columns - x) }
    }
}

/// Copies columns of the state of a head to a panel [rows][lanes]. What fills up rows and columns is zero.
@inline(never)
func loadState(
    _ args: LinearRecurrenceArguments, head: Int, column: Int, lanes: Int, rows: Int, into panel: UnsafeMutablePointer<Float>
) {
    let type = args.stateType
    let columns = minimum(lanes, args.valueDim - column)
    for channel in 0..<args.keyDim {
        let row = args.state + ((head * args.keyDim + channel) * args.valueDim + column) * byteCount(type)
        let target = panel + channel * lanes
        var x = 0
        while x + laneCount <= columns {
            store(loadLanes(row, type, x), target + x)
            x += laneCount
        }
        if x < columns { store(loadLastLanes(row, type, x, columns - x, filler: 0), target + x) }
    }
    for x in args.keyDim * lanes..<rows * lanes { panel[x] = 0 }
}

/// Copies a panel back to columns of the state of a head.
@inline(never)
func storeState(
    _ args: LinearRecurrenceArguments, head: Int, column: Int, lanes: Int, from panel: UnsafePointer<Float>
) {
    let type = args.stateType
    let columns = minimum(lanes, args.valueDim - column)
    for channel in 0..<args.keyDim {
        let row = args.state + ((head * args.keyDim + channel) * args.valueDim + column) * byteCount(type)
        let source = panel + channel * lanes
        var x = 0
        while x + laneCount <= columns {
            storeLanes(load(source + x), row, type, x)
            x += laneCount
        }
        if x < columns { storeLastLanes(load(source + x), row, type, x, columns - x) }
    }
}
