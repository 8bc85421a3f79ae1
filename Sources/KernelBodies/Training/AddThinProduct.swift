// C += Tᵀ·X for a thin T: [rank, depth] times [depth, columns], the gradient of a factor of an adapter.
//
//     for each block of the depth:   pack T → strips [depth][tileRows]
//         for each panel of columns:   for each strip:   C tile += strip · panel
//
// X is read from memory once. Its rows are far apart, so the first strip copies the panel to adjacent rows while it multiplies with it, and
// the other strips read the copy, and prefetch the next panel meanwhile.

public import KernelInterface

extension Kernels {
    public static func addThinProduct(_ arguments: UnsafePointer<ThinProductArguments>) {
        let args = arguments.pointee
        let vectors = (args.columns + laneCount - 1) / laneCount
        var start = 0
        while start < args.depth {
            let depth = minimum(ThinProductScratch.depthBlock, args.depth - start)
            packThinStrips(args, start: start, depth: depth)
            var done = 0
            while done < vectors {
                let left = vectors - done
                let width = left == 4 ? 2 : minimum(left, panelVectors)
                let column = done * laneCount
                done += width
                // The panel that follows, in this block or in the next one. Prefetches never fault.
                let next =
                    done < vectors ? args.x + start * args.xStride + done * laneCount : args.x + (start + depth) * args.xStride
                let step = ThinStep(
                    start: start, depth: depth, column: column, columns: minimum(width * laneCount, args.columns - column),
                    next: next)
                if step.columns < width * laneCount { stageThinPanel(args, step, width: width * laneCount) }
                switch width {
                case 1: thinPanelOfOne(args, step)
                case 2: thinPanelOfTwo(args, step)
                default: thinPanelOfThree(args, step)
                }
            }
            start += depth
        }
    }
}

/// A panel of columns, `depth` deep, that is multiplied with all strips.
private struct ThinStep {
    var start: Int
    var depth: Int
    var column: Int
    var columns: Int
    var next: UnsafePointer<Float>
}

@inline(never)
private func packThinStrips(_ args: ThinProductArguments, start: Int, depth: Int) {
    var row = 0
    while row < args.rank {
        let strip = args.scratch + row * depth
        let rows = minimum(tileRows, args.rank - row)
        for k in 0..<depth {
            let (source, target) = (args.t + (start + k) * args.tStride + row, strip + k * tileRows)
            if rows == tileRows {
                copyFour(source, target)
                if tileRows > 4 { copyFour(source + 4, target + 4) }
            } else {
                for r in 0..<rows { target[r] = source[r] }
                for r in rows..<tileRows { target[r] = 0 }
            }
        }
        row += tileRows
    }
}

@_transparent
private func copyFour(_ source: UnsafePointer<Float>, _ target: UnsafeMutablePointer<Float>) {
    let four = UnsafeRawPointer(source).loadUnaligned(as: SIMD4<Float>.self)
    UnsafeMutableRawPointer(target).storeBytes(of: four, as: SIMD4<Float>.self)
}

@_transparent
private func thinPanel(_ args: ThinProductArguments) -> UnsafeMutablePointer<Float> {
    args.scratch + ThinProductScratch.stripFloats(rank: args.rank)
}

/// Copies a panel with columns past the end, which become 0.
@inline(never)
private func stageThinPanel(_ args: ThinProductArguments, _ step: ThinStep, width: Int) {
    let panel = thinPanel(args)
    for k in 0..<step.depth {
        let source = args.x + (step.start + k) * args.xStride + step.column
        for x in 0..<width { panel[k * width + x] = x < step.columns ? source[x] : 0 }
    }
}

@inline(never)
private func thinPanelOfOne(_ args: ThinProductArguments, _ step: ThinStep) { multiplyThinPanel(args, step, width: 1) }

@inline(never)
private func thinPanelOfTwo(_ args: ThinProductArguments, _ step: ThinStep) { multiplyThinPanel(args, step, width: 2) }

@inline(never)
private func thinPanelOfThree(_ args: ThinProductArguments, _ step: ThinStep) { multiplyThinPanel(args, step, width: 3) }

@_transparent
private func multiplyThinPanel(_ args: ThinProductArguments, _ step: ThinStep, width: Int) {
    let panel = thinPanel(args)
    let edge = panel + 3 * AttentionScratch.maximumLanes * ThinProductScratch.depthBlock
    let isWhole = step.columns == width * laneCount
    let target = args.c + step.column
    let last = width * laneCount - 1
    var row = 0
    while row < args.rank {
        let rows = minimum(tileRows, args.rank - row)
        let strip = UnsafePointer(args.scratch + row * step.depth)
        var tile = zeroTile()
        if row == 0 && isWhole {
            copyAndMultiply(
                &tile, strip, args.x + step.start * args.xStride + step.column, stride: args.xStride, panel: panel,
                depth: step.depth, width: width)
        } else {
            // With four strips or more, each of the three that follow the first fetches one of three lines of every row; otherwise the last
            // strip fetches all of them.
            let number = row / tileRows
            let isSpread = args.rank > 3 * tileRows
            let offsets =
                isSpread ? (16 * (number - 1), 16 * (number - 1), 16 * (number - 1)) : (0, 16, 32)
            multiplyCopied(
                &tile, strip, panel, depth: step.depth, width: width, next: step.next, nextStride: args.xStride,
                (
                    minimum(maximum(offsets.0, 0), last), minimum(maximum(offsets.1, 0), last),
                    minimum(maximum(offsets.2, 0), last)
                ))
        }
        let c = target + row * args.cStride
        if rows == tileRows && isWhole {
            add(&tile, c, stride: args.cStride, width: width)
            store(tile, c, stride: args.cStride, width: width)
        } else {
            store(tile, edge, stride: width * laneCount, width: width)
            for r in 0..<rows {
                for x in 0..<step.columns { c[r * args.cStride + x] += edge[r * width * laneCount + x] }
            }
        }
        row += tileRows
    }
}

@_transparent
private func copyAndMultiply(
    _ c: inout Tile, _ strip: UnsafePointer<Float>, _ x: UnsafePointer<Float>, stride: Int,
    panel: UnsafeMutablePointer<Float>, depth: Int, width: Int
) {
    var (a, source, target) = (strip, x, panel)
    for _ in 0..<depth {
        let row = loadRow(source, width: width)
        store(row, target, width: width)
        thinStep(&c, a, row)
        a += tileRows
        source += stride
        target += width * laneCount
    }
}

@_transparent
private func multiplyCopied(
    _ c: inout Tile, _ strip: UnsafePointer<Float>, _ panel: UnsafePointer<Float>, depth: Int, width: Int,
    next: UnsafePointer<Float>, nextStride: Int, _ offsets: (Int, Int, Int)
) {
    var (a, b, line) = (strip, panel, next)
    for _ in 0..<depth {
        prefetch(line + offsets.0)
        prefetch(line + offsets.1)
        prefetch(line + offsets.2)
        thinStep(&c, a, loadRow(b, width: width))
        a += tileRows
        b += width * laneCount
        line += nextStride
    }
}

@_transparent
private func thinStep(_ c: inout Tile, _ a: UnsafePointer<Float>, _ row: PanelRow) {
    c.r0 = multiplyAdd(a[0], row, c.r0)
    c.r1 = multiplyAdd(a[1], row, c.r1)
    c.r2 = multiplyAdd(a[2], row, c.r2)
    c.r3 = multiplyAdd(a[3], row, c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(a[4], row, c.r4)
        c.r5 = multiplyAdd(a[5], row, c.r5)
        c.r6 = multiplyAdd(a[6], row, c.r6)
        c.r7 = multiplyAdd(a[7], row, c.r7)
    }
}
