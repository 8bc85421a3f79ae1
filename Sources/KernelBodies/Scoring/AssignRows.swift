// The nearest centroid of each point, as a matrix product that keeps only the best of each column:
//
//     D = max(0, ‖x‖² + ‖c‖² − 2·C·Xᵀ)   [centroids][points]      label[x] = argmin_c D[c][x]
//
// Lanes are points, so that the minimum is vertical. Points are packed once per panel; centroids are the broadcast operand of
// the register tile and are not packed. A panel of 24 points meets 500 centroids × 128 channels in 1.5 million multiply-adds,
// for 256 KB of centroids that stay in the second-level cache.
//
// Distances that are not numbers never win, because a comparison with them is false.

public import KernelInterface

extension Kernels {
    public static func assignRows(_ arguments: UnsafePointer<AssignArguments>) {
        let args = arguments.pointee
        let vectors = (args.count + laneCount - 1) / laneCount
        forEachPanel(vectors: vectors) { row, width in
            packPoints(args, row: row, lanes: width * laneCount)
            switch width {
            case 1: assignPanelOfOne(args)
            case 2: assignPanelOfTwo(args)
            default: assignPanelOfThree(args)
            }
            let layout = AssignScratch(channels: args.channels)
            let scratch = args.scratch.assumingMemoryBound(to: Float.self)
            let labels = UnsafeRawPointer(scratch + layout.labels).assumingMemoryBound(to: Int32.self)
            for lane in 0..<minimum(width * laneCount, args.count - row) {
                args.labels[row + lane] = labels[lane]
                args.distances[row + lane] = scratch[layout.distances + lane]
            }
        }
    }
}

/// Packs points as a panel [channels][lanes] with their squared norms. Missing points are zero.
@inline(never)
private func packPoints(_ args: AssignArguments, row: Int, lanes: Int) {
    let layout = AssignScratch(channels: args.channels)
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let (rows, panel) = (scratch + layout.rows, scratch + layout.panel)
    let count = minimum(lanes, args.count - row)
    Kernels.stageRows(args.points, first: row, count: count, channels: args.channels, into: rows)
    for x in count * args.channels..<lanes * args.channels { rows[x] = 0 }
    transpose(
        rows, stride: args.channels, rows: lanes, columns: args.channels, times: 1, into: panel, destinationStride: lanes)
    var lane = 0
    while lane < lanes {
        var norm = splat(0)
        for channel in 0..<args.channels {
            let x = load(panel + channel * lanes + lane)
            norm = multiplyAdd(x, x, norm)
        }
        store(norm, scratch + layout.norms + lane)
        store(splat(.infinity), scratch + layout.distances + lane)
        store(splat(0), scratch + layout.labels + lane)
        lane += laneCount
    }
}

// One function per width, not inlined: the tile needs every register.

@inline(never)
private func assignPanelOfOne(_ args: AssignArguments) { assignPanel(args, width: 1) }

@inline(never)
private func assignPanelOfTwo(_ args: AssignArguments) { assignPanel(args, width: 2) }

@inline(never)
private func assignPanelOfThree(_ args: AssignArguments) { assignPanel(args, width: 3) }

@_transparent
private func assignPanel(_ args: AssignArguments, width: Int) {
    let layout = AssignScratch(channels: args.channels)
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let (norms, distances) = (scratch + layout.norms, scratch + layout.distances)
    let labels = UnsafeMutableRawPointer(scratch + layout.labels).assumingMemoryBound(to: Int32.self)
    var cluster = 0
    while cluster < args.clusters {
        var tile = zeroTile()
        // Past the last centroid its row is read again, with a norm of +∞.
        let rows = rowPointers(
            args.centroids + cluster * args.channels, stride: args.channels, count: args.clusters - cluster)
        accumulate(&tile, rows, step: 1, panel: scratch + layout.panel, depth: args.channels, width: width)
        let own = loadRow(norms, width: width)
        let c = args.norms + cluster
        keepNearest(tile.r0, own, c[0], cluster, distances, labels, width: width)
        keepNearest(tile.r1, own, c[1], cluster + 1, distances, labels, width: width)
        keepNearest(tile.r2, own, c[2], cluster + 2, distances, labels, width: width)
        keepNearest(tile.r3, own, c[3], cluster + 3, distances, labels, width: width)
        if tileRows > 4 {
            keepNearest(tile.r4, own, c[4], cluster + 4, distances, labels, width: width)
            keepNearest(tile.r5, own, c[5], cluster + 5, distances, labels, width: width)
            keepNearest(tile.r6, own, c[6], cluster + 6, distances, labels, width: width)
            keepNearest(tile.r7, own, c[7], cluster + 7, distances, labels, width: width)
        }
        cluster += tileRows
    }
}

/// Replaces the nearest centroid of each lane where this one is strictly nearer, so that the lowest index wins ties.
@_transparent
private func keepNearest(
    _ product: PanelRow, _ own: PanelRow, _ norm: Float, _ cluster: Int, _ distances: UnsafeMutablePointer<Float>,
    _ labels: UnsafeMutablePointer<Int32>, width: Int
) {
    keepNearest(product.x0, own.x0, norm, cluster, distances, labels)
    if width > 1 { keepNearest(product.x1, own.x1, norm, cluster, distances + laneCount, labels + laneCount) }
    if width > 2 { keepNearest(product.x2, own.x2, norm, cluster, distances + 2 * laneCount, labels + 2 * laneCount) }
}

@_transparent
private func keepNearest(
    _ product: Vector, _ own: Vector, _ norm: Float, _ cluster: Int, _ distances: UnsafeMutablePointer<Float>,
    _ labels: UnsafeMutablePointer<Int32>
) {
    // The second operand of maximum is the result when either is NaN, so that NaN stays NaN.
    let distance = maximum(splat(0), multiplyAdd(splat(-2), product, own + splat(norm)))
    let best = load(distances)
    let isNearer = distance .< best
    store(best.replacing(with: distance, where: isNearer), distances)
    let index = IntVector(repeating: Int32(truncatingIfNeeded: cluster))
    let label = UnsafeRawPointer(labels).loadUnaligned(as: IntVector.self)
    UnsafeMutableRawPointer(labels).storeBytes(of: label.replacing(with: index, where: isNearer), as: IntVector.self)
}
