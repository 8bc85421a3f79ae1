// Stages the rows of the backward pass of attention. This happens once per block of queries, or for operands that cannot be used in
// place, so plain loops suffice.
//
// These functions take no structs declared in bodies: one that several files share would emit weak functions.

import KernelInterface

/// Packs rows as panels [channels][lanes], times a factor. Missing rows are zero.
@inline(never)
func packLanes(
    _ rows: UnsafePointer<Float>, stride: Int, count: Int, channels: Int, times factor: Float,
    into packed: UnsafeMutablePointer<Float>
) {
    forEachPanel(vectors: (count + laneCount - 1) / laneCount) { row, width in
        let lanes = width * laneCount
        let panel = packed + row * channels
        let valid = minimum(lanes, count - row)
        if valid < lanes {
            for x in 0..<lanes * channels { panel[x] = 0 }
        }
        transpose(
            rows + row * stride, stride: stride, rows: valid, columns: channels, times: factor, into: panel,
            destinationStride: lanes)
    }
}

/// −LSE and −scale·rowsum(dO∘O) of some queries. Lanes without a query have no probabilities.
@inline(never)
func summarizeQueries(
    _ args: AttentionGradientArguments, query: Int, count: Int, offsets: UnsafeMutablePointer<Float>,
    deltas: UnsafeMutablePointer<Float>
) {
    for row in 0..<count {
        let output = args.output + (query + row) * args.outputStride
        let gradient = args.outputGradient + (query + row) * args.outputGradientStride
        var sums = splat(0)
        var x = 0
        while x + laneCount <= args.valueDim {
            sums = multiplyAdd(load(output + x), load(gradient + x), sums)
            x += laneCount
        }
        var sum = laneSum(sums)
        while x < args.valueDim {
            sum += output[x] * gradient[x]
            x += 1
        }
        deltas[row] = -args.softmaxScale * sum
        let logSumExp = args.logSumExp[query + row]
        // A query without probabilities has none even where scores are −∞.
        offsets[row] = logSumExp == -.infinity ? -.infinity : -logSumExp
    }
    for row in count..<AttentionGradientScratch.queryBlock {
        offsets[row] = -.infinity
        deltas[row] = 0
    }
}

/// Copies rows to rows of `AttentionGradientScratch.padded(channels)` floats, with zeros behind their channels.
@inline(never)
func padRows(
    _ rows: UnsafePointer<Float>, stride: Int, count: Int, channels: Int, into target: UnsafeMutablePointer<Float>
) {
    let padded = AttentionGradientScratch.padded(channels)
    let whole = channels / laneCount * laneCount
    for row in 0..<count {
        let (from, to) = (rows + row * stride, target + row * padded)
        var x = 0
        while x < whole {
            store(load(from + x), to + x)
            x += laneCount
        }
        while x < channels {
            to[x] = from[x]
            x += 1
        }
        while x < padded {
            to[x] = 0
            x += 1
        }
    }
}

/// The same, with zeros in place of what is not finite. Returns whether everything was finite.
@inline(never)
func padFiniteRows(
    _ rows: UnsafePointer<Float>, stride: Int, count: Int, channels: Int, into target: UnsafeMutablePointer<Float>
) -> Bool {
    padRows(rows, stride: stride, count: count, channels: channels, into: target)
    let padded = AttentionGradientScratch.padded(channels)
    if areFinite(target, stride: padded, count: count, channels: padded) { return true }
    for x in 0..<count * padded where target[x] * 0 != 0 { target[x] = 0 }
    return false
}

/// Whether no element is infinite or NaN. Only for those differs 0·x from 0.
@inline(never)
func areFinite(_ rows: UnsafePointer<Float>, stride: Int, count: Int, channels: Int) -> Bool {
    let whole = channels / laneCount * laneCount
    var sums = splat(0)
    var sum: Float = 0
    for row in 0..<count {
        var x = 0
        while x < whole {
            sums = multiplyAdd(load(rows + row * stride + x), splat(0), sums)
            x += laneCount
        }
        while x < channels {
            sum += rows[row * stride + x] * 0
            x += 1
        }
    }
    return laneSum(sums) + sum == 0
}

/// Fills the gradients that a task adds to with zeros.
@inline(never)
func clearGradients(_ args: AttentionGradientArguments) {
    if !args.accumulates {
        let keys = args.endKey - args.firstKey
        clearRows(
            args.keyGradient + args.firstKey * args.keyGradientStride, stride: args.keyGradientStride, count: keys,
            channels: args.headDim)
        clearRows(
            args.valueGradient + args.firstKey * args.valueGradientStride, stride: args.valueGradientStride, count: keys,
            channels: args.valueDim)
    }
    clearRows(
        args.queryGradient + args.firstQuery * args.queryGradientStride, stride: args.queryGradientStride,
        count: args.endQuery - args.firstQuery, channels: args.headDim)
}

/// Adds the valid part of a tile at the edge.
@inline(never)
func addEdge(
    _ edge: UnsafePointer<Float>, stride: Int, rows: Int, columns: Int, to target: UnsafeMutablePointer<Float>,
    targetStride: Int
) {
    for row in 0..<rows {
        for x in 0..<columns { target[row * targetStride + x] += edge[row * stride + x] }
    }
}

/// Fills rows with zeros.
@inline(never)
func clearRows(_ rows: UnsafeMutablePointer<Float>, stride: Int, count: Int, channels: Int) {
    for row in 0..<count {
        for x in 0..<channels { rows[row * stride + x] = 0 }
    }
}
