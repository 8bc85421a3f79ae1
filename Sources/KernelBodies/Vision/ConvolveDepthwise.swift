// Depthwise convolution of a part of a grid, for up to four vectors of channels:
//
//     y[r][c] = bias + Σ_i Σ_j w[i][j] · x[r + i − k/2][c + j − k/2]        0 ≤ i, j < k; x is 0 outside the grid
//
// The cells that the part reads are copied first, [vectors][rows + k − 1][columns + k − 1][lanes], with zeros for those outside. Cells
// of a grid of 1152 channels are 4608 bytes apart, each on a page of its own, and meet in 8 of the 64 sets of a first-level cache;
// copied, k rows of a vector stay in it while k rows of results read them, and no border is left to look after. Four vectors are
// copied at a time, because neighbouring lines of a page come together.
//
// Up to twelve cells of a row are summed at once, in registers. A weight is loaded once for all of them, and each multiply-add
// reads its cell from memory: 13 loads for 12 multiply-adds at two of each per cycle, so that 92% of the multiply-adds are the
// most. Twelve sums, a weight and an operand fit 16 registers, and hide the latency of four cycles on two ports. Rows of a part are
// cut into tiles of equal width, because a tile of one or two cells would wait for its sums.
//
// Sums begin with the bias and go by i, then j, so bits do not depend on the cut.

public import KernelInterface

extension Kernels {
    /// See `DepthwiseArguments`.
    public static func convolveDepthwise(_ arguments: UnsafePointer<DepthwiseArguments>) {
        let args = arguments.pointee
        let vectors = (args.channels + laneCount - 1) / laneCount
        let stride = (args.endColumn - args.firstColumn + args.side - 1) * laneCount
        let plane = (args.endRow - args.firstRow + args.side - 1) * stride
        copyCells(args, vectors: vectors, plane: plane)
        for vector in 0..<vectors {
            for row in args.firstRow..<args.endRow {
                if vector == 0 && vectors > 1 { prefetchTargets(args, row) }
                let line = args.scratch + vector * plane + (row - args.firstRow) * stride
                convolveRow(args, row, vector, line, stride: stride)
            }
        }
    }
}

/// One row of results, for one vector of channels.
@_transparent
private func convolveRow(_ args: DepthwiseArguments, _ row: Int, _ vector: Int, _ line: UnsafePointer<Float>, stride: Int) {
    let columns = args.endColumn - args.firstColumn
    let tiles = (columns + tileCells - 1) / tileCells
    let target =
        args.target + row * args.targetRowStride + args.firstColumn * args.targetCellStride + vector * laneCount
    let weights = args.weights + vector * (args.side * args.side + 1) * laneCount
    var column = 0
    for tile in 0..<tiles {
        let end = (tile + 1) * columns / tiles
        let cells = Cells(
            source: line + column * laneCount, stride: stride, target: target + column * args.targetCellStride,
            targetStride: args.targetCellStride, channels: minimum(laneCount, args.channels - vector * laneCount),
            side: args.side, weights: weights)
        convolveCells(cells, count: end - column)
        column = end
    }
}

/// Asks for the lines of results of all vectors, while the first one is computed: they are next to each other.
@_transparent
private func prefetchTargets(_ args: DepthwiseArguments, _ row: Int) {
    var target = args.target + row * args.targetRowStride + args.firstColumn * args.targetCellStride
    for _ in args.firstColumn..<args.endColumn {
        var channel = 0
        while channel < args.channels {
            prefetch(target + channel)
            channel += 16
        }
        target += args.targetCellStride
    }
}

/// Cells of a tile at most.
@_transparent
private var tileCells: Int { 12 }

/// Adjacent cells of a row to make.
private struct Cells {
    /// The first copied cell that the first cell reads.
    var source: UnsafePointer<Float>
    /// Floats from a copied row to the next.
    var stride: Int
    var target: UnsafeMutablePointer<Float>
    var targetStride: Int
    var channels: Int
    var side: Int
    var weights: UnsafePointer<Float>
}

/// Copies the cells that the part reads, a plane per vector of channels.
@inline(never)
private func copyCells(_ args: DepthwiseArguments, vectors: Int, plane: Int) {
    let reach = args.side / 2
    let (firstColumn, endColumn) = (args.firstColumn - reach, args.endColumn + reach)
    var target = args.scratch
    for row in (args.firstRow - reach)..<(args.endRow + reach) {
        let isOutside = row < 0 || row >= args.rows
        for column in firstColumn..<endColumn {
            if isOutside || column < 0 || column >= args.columns {
                for vector in 0..<vectors { store(splat(0), target + vector * plane) }
            } else {
                let source = UnsafeRawPointer(args.source + row * args.sourceRowStride + column * args.sourceCellStride)
                for vector in 0..<vectors {
                    store(loadPart(source, .float32, vector * laneCount, args.channels), target + vector * plane)
                }
            }
            target += laneCount
        }
    }
}

private func convolveCells(_ cells: Cells, count: Int) {
    switch count {
    case 1: convolveOne(cells)
    case 2: convolveTwo(cells)
    case 3: convolveThree(cells)
    case 4: convolveFour(cells)
    case 5: convolveFive(cells)
    case 6: convolveSix(cells)
    case 7: convolveSeven(cells)
    case 8: convolveEight(cells)
    case 9: convolveNine(cells)
    case 10: convolveTen(cells)
    case 11: convolveEleven(cells)
    default: convolveTwelve(cells)
    }
}

// One function per number of cells, so that every sum is in a register.

@inline(never)
private func convolveOne(_ cells: Cells) { convolveTile(cells, count: 1) }
@inline(never)
private func convolveTwo(_ cells: Cells) { convolveTile(cells, count: 2) }
@inline(never)
private func convolveThree(_ cells: Cells) { convolveTile(cells, count: 3) }
@inline(never)
private func convolveFour(_ cells: Cells) { convolveTile(cells, count: 4) }
@inline(never)
private func convolveFive(_ cells: Cells) { convolveTile(cells, count: 5) }
@inline(never)
private func convolveSix(_ cells: Cells) { convolveTile(cells, count: 6) }
@inline(never)
private func convolveSeven(_ cells: Cells) { convolveTile(cells, count: 7) }
@inline(never)
private func convolveEight(_ cells: Cells) { convolveTile(cells, count: 8) }
@inline(never)
private func convolveNine(_ cells: Cells) { convolveTile(cells, count: 9) }
@inline(never)
private func convolveTen(_ cells: Cells) { convolveTile(cells, count: 10) }
@inline(never)
private func convolveEleven(_ cells: Cells) { convolveTile(cells, count: 11) }
@inline(never)
private func convolveTwelve(_ cells: Cells) { convolveTile(cells, count: 12) }

/// - Parameter count: 1…12, a literal.
@_transparent
private func convolveTile(_ cells: Cells, count: Int) {
    let side = cells.side
    var weight = cells.weights
    var line = cells.source
    let bias = load(weight + side * side * laneCount)
    var (s0, s1, s2, s3, s4, s5) = (bias, bias, bias, bias, bias, bias)
    var (s6, s7, s8, s9, s10, s11) = (bias, bias, bias, bias, bias, bias)
    for _ in 0..<side {
        var x = line
        for _ in 0..<side {
            let w = load(weight)
            s0 = multiplyAdd(w, load(x), s0)
            if count > 1 { s1 = multiplyAdd(w, load(x + laneCount), s1) }
            if count > 2 { s2 = multiplyAdd(w, load(x + 2 * laneCount), s2) }
            if count > 3 { s3 = multiplyAdd(w, load(x + 3 * laneCount), s3) }
            if count > 4 { s4 = multiplyAdd(w, load(x + 4 * laneCount), s4) }
            if count > 5 { s5 = multiplyAdd(w, load(x + 5 * laneCount), s5) }
            if count > 6 { s6 = multiplyAdd(w, load(x + 6 * laneCount), s6) }
            if count > 7 { s7 = multiplyAdd(w, load(x + 7 * laneCount), s7) }
            if count > 8 { s8 = multiplyAdd(w, load(x + 8 * laneCount), s8) }
            if count > 9 { s9 = multiplyAdd(w, load(x + 9 * laneCount), s9) }
            if count > 10 { s10 = multiplyAdd(w, load(x + 10 * laneCount), s10) }
            if count > 11 { s11 = multiplyAdd(w, load(x + 11 * laneCount), s11) }
            weight += laneCount
            x += laneCount
        }
        line += cells.stride
    }
    let (target, step) = (cells.target, cells.targetStride)
    if cells.channels == laneCount {
        store(s0, target)
        if count > 1 { store(s1, target + step) }
        if count > 2 { store(s2, target + 2 * step) }
        if count > 3 { store(s3, target + 3 * step) }
        if count > 4 { store(s4, target + 4 * step) }
        if count > 5 { store(s5, target + 5 * step) }
        if count > 6 { store(s6, target + 6 * step) }
        if count > 7 { store(s7, target + 7 * step) }
        if count > 8 { store(s8, target + 8 * step) }
        if count > 9 { store(s9, target + 9 * step) }
        if count > 10 { store(s10, target + 10 * step) }
        if count > 11 { store(s11, target + 11 * step) }
        return
    }
    storeChannels(cells, 0, s0)
    if count > 1 { storeChannels(cells, 1, s1) }
    if count > 2 { storeChannels(cells, 2, s2) }
    if count > 3 { storeChannels(cells, 3, s3) }
    if count > 4 { storeChannels(cells, 4, s4) }
    if count > 5 { storeChannels(cells, 5, s5) }
    if count > 6 { storeChannels(cells, 6, s6) }
    if count > 7 { storeChannels(cells, 7, s7) }
    if count > 8 { storeChannels(cells, 8, s8) }
    if count > 9 { storeChannels(cells, 9, s9) }
    if count > 10 { storeChannels(cells, 10, s10) }
    if count > 11 { storeChannels(cells, 11, s11) }
}

/// Stores a cell of fewer channels than lanes.
@inline(never)
private func storeChannels(_ cells: Cells, _ index: Int, _ sum: Vector) {
    let target = UnsafeMutableRawPointer(cells.target + index * cells.targetStride)
    storeLastLanes(sum, target, .float32, 0, cells.channels)
}
