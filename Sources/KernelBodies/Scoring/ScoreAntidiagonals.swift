// Block scores of XAttention (arXiv 2503.16428, §2.1), from the operands that its algorithm 1 calls Q_reshaped and K_reshaped:
//
//     A = softmax(Q̃·K̃ᵀ / (√d·S))        score of block (I, J) = Σ_{i ∈ I} Σ_{j ∈ J} a_ij
//
// Row i of Q̃ is query group i, which is S = `stride` tokens in reverse order; row j of K̃ is key group j in order. So an entry
// of Q̃·K̃ᵀ sums the antidiagonal of an S × S square of scores. Online, with lanes as query groups, as in AttendBlock.swift:
//
//     X = scale·K̃·Q̃ᵀ   [key groups][query groups]     m ← max(m, colmax X)     p = e^(X − m)     l ← α·l + colsum p
//
// where `scale` includes 1/(√d·S). Each step sums p over its key blocks with the maximum m known so far, which is kept; a last
// pass multiplies these sums by e^(m_step − m)/l. Adjacent keys are rows of K̃ already, queries are packed. The products are of
// floats or of 6-bit codes (CodeTile.swift). Blocks are not chosen here: see `TopP`.

public import KernelInterface

/// Pointers into the scratch of one task.
private struct Workspace {
    var packedQuery: UnsafeMutablePointer<Float>
    var packedCodes: UnsafeMutablePointer<UInt8>
    var codeScales: UnsafeMutablePointer<Float>
    var codeOffsets: UnsafeMutablePointer<Int32>
    var scores: UnsafeMutablePointer<Float>
    var blockSums: UnsafeMutablePointer<Float>
    var stepMaxima: UnsafeMutablePointer<Float>
    var maxima: UnsafeMutablePointer<Float>
    var sums: UnsafeMutablePointer<Float>
    /// Memory for one vector.
    var factors: UnsafeMutablePointer<Float>
    /// The lanes of all panels together.
    var lanes: Int
}

/// The key groups of one step.
private struct KeyStep {
    /// Float rows, or nil when keys are codes.
    var keys: UnsafePointer<Float>?
    var index: Int
    var firstGroup: Int
    var count: Int
    /// The number of key blocks before this step.
    var firstBlock: Int
}

extension Kernels {
    /// See `AntidiagonalArguments`.
    public static func scoreAntidiagonals(_ arguments: UnsafePointer<AntidiagonalArguments>) {
        let args = arguments.pointee
        let depth = args.headDim * args.stride
        let keyGroups = (args.keyTokens + args.stride - 1) / args.stride
        let layout = AntidiagonalScratch(
            headDim: args.headDim, stride: args.stride, groups: args.groups, keyGroups: keyGroups,
            groupsPerKeyBlock: args.groupsPerKeyBlock, usesCodes: args.keyCodes != nil)
        let scratch = args.scratch.assumingMemoryBound(to: Float.self)
        let vectors = (args.groups + laneCount - 1) / laneCount
        let lanes = vectors * laneCount
        let space = Workspace(
            packedQuery: scratch + layout.packedQuery,
            packedCodes: UnsafeMutableRawPointer(scratch + layout.packedCodes).assumingMemoryBound(to: UInt8.self),
            codeScales: scratch + layout.codeScales,
            codeOffsets: UnsafeMutableRawPointer(scratch + layout.codeOffsets).assumingMemoryBound(to: Int32.self),
            scores: scratch + layout.scores, blockSums: scratch + layout.blockSums, stepMaxima: scratch + layout.stepMaxima,
            maxima: scratch + layout.statistics, sums: scratch + layout.statistics + lanes,
            factors: scratch + layout.statistics + 2 * lanes, lanes: lanes)
        let staging = scratch + layout.keys

        forEachPanel(vectors: vectors) { row, width in
            let lanes = width * laneCount
            let panel = space.packedQuery + (args.keyCodes == nil ? row * depth : 0)
            packGroups(args, row: row, lanes: lanes, staging: staging, into: panel)
            if args.keyCodes != nil {
                let codes = space.packedCodes + row * AntidiagonalScratch.codeDepth(headDim: args.headDim, stride: args.stride)
                encodePanel(
                    args, panel, lanes: lanes, into: codes, scales: space.codeScales + row, offsets: space.codeOffsets + row)
            }
        }
        for x in 0..<lanes {
            space.maxima[x] = -.infinity
            space.sums[x] = 0
        }

        let end = minimum(keyGroups, args.groups - 1 + args.visibleTo)
        var step = KeyStep(keys: nil, index: 0, firstGroup: 0, count: 0, firstBlock: 0)
        while step.firstGroup < end {
            step.count = minimum(layout.stepGroups, end - step.firstGroup)
            if args.keyCodes == nil {
                let first = step.firstGroup * args.stride
                let tokens = minimum(args.keyTokens - first, step.count * args.stride)
                if args.key.type == .float32 && args.key.stride == args.headDim && tokens == step.count * args.stride {
                    step.keys = UnsafePointer(args.key.base.assumingMemoryBound(to: Float.self) + first * args.headDim)
                } else {
                    Kernels.stageRows(args.key, first: first, count: tokens, channels: args.headDim, into: staging)
                    for x in tokens * args.headDim..<step.count * depth { staging[x] = 0 }
                    step.keys = UnsafePointer(staging)
                }
            }
            forEachPanel(vectors: vectors) { row, width in
                switch width {
                case 1: scorePanelOfOne(args, space, step, row: row)
                case 2: scorePanelOfTwo(args, space, step, row: row)
                default: scorePanelOfThree(args, space, step, row: row)
                }
            }
            step.index += 1
            step.firstGroup += step.count
            step.firstBlock += layout.stepGroups / args.groupsPerKeyBlock
        }
        sumBlocks(args, space, stepGroups: layout.stepGroups, end: end)
    }
}

// One function per width, not inlined: the tile needs every register, and constants of other loops must not occupy any.

@inline(never)
private func scorePanelOfOne(_ args: AntidiagonalArguments, _ space: Workspace, _ step: KeyStep, row: Int) {
    scorePanel(args, space, step, row: row, width: 1)
}

@inline(never)
private func scorePanelOfTwo(_ args: AntidiagonalArguments, _ space: Workspace, _ step: KeyStep, row: Int) {
    scorePanel(args, space, step, row: row, width: 2)
}

@inline(never)
private func scorePanelOfThree(_ args: AntidiagonalArguments, _ space: Workspace, _ step: KeyStep, row: Int) {
    scorePanel(args, space, step, row: row, width: 3)
}

/// Scores one step of keys with one panel.
@_transparent
private func scorePanel(_ args: AntidiagonalArguments, _ space: Workspace, _ step: KeyStep, row: Int, width: Int) {
    let lanes = width * laneCount
    let lastRow = minimum(row + lanes, args.groups) - 1
    let count = minimum(step.count, lastRow + args.visibleTo - step.firstGroup)
    if count <= 0 { return }
    let scores = space.scores
    if let keys = step.keys {
        multiplyFloats(
            keys, count: count, depth: args.headDim * args.stride,
            panel: space.packedQuery + row * args.headDim * args.stride, scores: scores, width: width)
    } else {
        multiplyCodes(args, space, step, count: count, row: row, width: width)
    }
    // Groups that every row sees come first. The others are on the diagonal.
    for key in maximum(0, minimum(count, row + args.visibleTo - step.firstGroup))..<count {
        let from = Int32(truncatingIfNeeded: minimum(1024, step.firstGroup + key - args.visibleTo - row))
        let line = scores + key * lanes
        let kept = select(
            panelMask(lanesUpTo: Int32.max, above: from), loadRow(line, width: width), else: splatRow(-.infinity))
        store(kept, line, width: width)
    }
    softmaxPanel(args, space, step, count: count, row: row, width: width)
}

/// X = K̃·Q̃ᵀ of floats. A panel's chunk of channels is 24 KiB, which stays in the first-level cache for all keys of the step.
@_transparent
private func multiplyFloats(
    _ keys: UnsafePointer<Float>, count: Int, depth: Int, panel: UnsafePointer<Float>,
    scores: UnsafeMutablePointer<Float>, width: Int
) {
    let lanes = width * laneCount
    let chunk = 6144 / lanes
    var channel = 0
    while channel < depth {
        let channels = minimum(chunk, depth - channel)
        var key = 0
        while key < count {
            var tile = zeroTile()
            let rows = rowPointers(keys + key * depth + channel, stride: depth, count: count - key)
            accumulate(&tile, rows, step: 1, panel: panel + channel * lanes, depth: channels, width: width)
            if channel > 0 { add(&tile, scores + key * lanes, stride: lanes, width: width) }
            store(tile, scores + key * lanes, stride: lanes, width: width)
            key += tileRows
        }
        channel += channels
    }
}

/// X = K̃·Q̃ᵀ of codes, exact before it is scaled.
///
/// With keys k = t·(u − 31) and queries q = s·c, k·q = t·s·(Σ u·c − 31·Σ c). The sums start at −31·Σ c, which is the same for
/// every key.
@_transparent
private func multiplyCodes(
    _ args: AntidiagonalArguments, _ space: Workspace, _ step: KeyStep, count: Int, row: Int, width: Int
) {
    let lanes = width * laneCount
    let depth = AntidiagonalScratch.codeDepth(headDim: args.headDim, stride: args.stride)
    let codes = args.keyCodes! + step.firstGroup * depth
    let panel = UnsafePointer(space.packedCodes + row * depth)
    let integers = UnsafeMutableRawPointer(space.scores).assumingMemoryBound(to: Int32.self)
    var key = 0
    while key < count {
        let rows = codePointers(codes + key * depth, stride: depth, count: count - key)
        var channel = 0
        while channel < depth {
            let channels = minimum(narrowDepth, depth - channel)
            var tile = zeroCodeTile()
            accumulate(&tile, rows, from: channel, panel: panel + channel * lanes, depth: channels, width: width)
            store(
                tile, integers + key * lanes, stride: lanes, adding: space.codeOffsets + row, isFirst: channel == 0,
                width: width)
            channel += channels
        }
        key += tileRows
    }
    let queryScale = loadRow(space.codeScales + row, width: width)
    let scales = args.keyScales! + step.firstGroup
    for key in 0..<count {
        let factor = queryScale * splatRow(scales[key])
        let line = space.scores + key * lanes
        store(loadFloats(line, width: width) * factor, line, width: width)
    }
}

/// Loads integers and converts them to floats.
@_transparent
private func loadFloats(_ pointer: UnsafePointer<Float>, width: Int) -> PanelRow {
    let bits = loadRow(pointer, width: width)
    return (
        floats(unsafeBitCast(bits.x0, to: IntVector.self)), floats(unsafeBitCast(bits.x1, to: IntVector.self)),
        floats(unsafeBitCast(bits.x2, to: IntVector.self))
    )
}

/// Online softmax: sums p over key blocks with the maximum known so far, and keeps that maximum with the step.
@_transparent
private func softmaxPanel(
    _ args: AntidiagonalArguments, _ space: Workspace, _ step: KeyStep, count: Int, row: Int, width: Int
) {
    let lanes = width * laneCount
    let before = loadRow(space.maxima + row, width: width)
    var m = before
    for key in 0..<count { m = maximum(loadRow(space.scores + key * lanes, width: width), m) }
    store(m, space.maxima + row, width: width)
    store(m, space.stepMaxima + step.index * space.lanes + row, width: width)
    m = zeroingNegativeInfinity(m)
    var l = loadRow(space.sums + row, width: width) * exp(before - m)
    var block = step.firstBlock
    var key = 0
    while key < count {
        let end = minimum(count, key + args.groupsPerKeyBlock)
        var sum = splatRow(0)
        while key < end {
            sum = sum + exp(loadRow(space.scores + key * lanes, width: width) - m)
            key += 1
        }
        store(sum, space.blockSums + block * space.lanes + row, width: width)
        l = l + sum
        block += 1
    }
    store(l, space.sums + row, width: width)
}

/// Rescales every step to the final maximum and adds the lanes of each query block.
@inline(never)
private func sumBlocks(_ args: AntidiagonalArguments, _ space: Workspace, stepGroups: Int, end: Int) {
    let queryBlocks = (args.groups + args.groupsPerQueryBlock - 1) / args.groupsPerQueryBlock
    for x in 0..<queryBlocks * args.keyBlocks { args.sums[x] = 0 }
    forEachPanel(vectors: space.lanes / laneCount) { row, width in
        // The panel was scored up to here, its end on the diagonal.
        let panelEnd = minimum(end, minimum(row + width * laneCount, args.groups) - 1 + args.visibleTo)
        for vector in 0..<width {
            sumLanes(args, space, first: row + vector * laneCount, stepGroups: stepGroups, end: panelEnd)
        }
    }
}

/// Adds one vector of query groups to the sums of their blocks.
@_transparent
private func sumLanes(_ args: AntidiagonalArguments, _ space: Workspace, first: Int, stepGroups: Int, end: Int) {
    let m = load(space.maxima + first)
    let l = load(space.sums + first)
    // Lanes past the last group, and groups that see no key, add 0.
    let none = splat(0)
    let inverse = (splat(1) / l).replacing(with: none, where: l .== none)
    for lane in 0..<laneCount { space.factors[lane] = first + lane < args.groups ? inverse[lane] : 0 }
    let weight = load(space.factors)
    let finite = m.replacing(with: none, where: m .== splat(-.infinity))
    let isOneBlock = first / args.groupsPerQueryBlock == (first + laneCount - 1) / args.groupsPerQueryBlock
    var group = 0
    var step = 0
    var block = 0
    while group < end {
        let factor = exp(load(space.stepMaxima + step * space.lanes + first) - finite) * weight
        let stepEnd = minimum(end, group + stepGroups)
        while group < stepEnd {
            let sums = load(space.blockSums + block * space.lanes + first) * factor
            if isOneBlock {
                args.sums[first / args.groupsPerQueryBlock * args.keyBlocks + block] += sums.sum()
            } else {
                store(sums, space.factors)
                var queryBlock = first / args.groupsPerQueryBlock
                var left = (queryBlock + 1) * args.groupsPerQueryBlock - first
                for lane in 0..<minimum(laneCount, args.groups - first) {
                    if left == 0 {
                        queryBlock += 1
                        left = args.groupsPerQueryBlock
                    }
                    args.sums[queryBlock * args.keyBlocks + block] += space.factors[lane]
                    left -= 1
                }
            }
            block += 1
            group += args.groupsPerKeyBlock
        }
        group = stepEnd
        step += 1
    }
}
