// The gated delta rule in chunks of tokens, after Yang et al. ("Parallelizing linear transformers with the delta rule", "Gated
// delta networks"). Inside a chunk, with G the inclusive sum of the logarithms of the decays, what the tokens write solves a
// triangular system, and the outputs follow:
//
//     (I + A)·U = β ∘ (V − (e^G ∘ K)·S)          A_ij = β_i Σ_c k_ic k_jc e^(G_ic − G_jc)    for j < i
//     Y = (e^G ∘ Q)·S + P·U                      P_ij =     Σ_c q_ic k_jc e^(G_ic − G_jc)    for j ≤ i
//     S ← e^(G_last) ∘ S + (e^(G_last − G) ∘ K)ᵀ·U
//
// The system is solved directly, panel by panel of columns, which are independent of each other: a tile of rows takes the product
// of the rows above it from its right-hand side, and then its own triangle, in registers. No inverse is formed. There are
// 3·K·V + C·V products per token and value head, and C·K per token and key head, for a chunk of C.
//
// Rows past the last token of a ragged chunk are computed from whatever the scratch holds, and reach nothing that is kept: the
// sums over tokens end at the last one. A sum over the tokens of a tile stops at the diagonal, so that what is not finite reaches
// no earlier token.

public import KernelInterface

extension Kernels {
    /// See `DeltaRuleArguments`.
    public static func chunkDeltaRule(_ arguments: UnsafePointer<DeltaRuleArguments>) {
        let args = arguments.pointee
        let layout = DeltaRuleScratch(
            keyDim: args.keyDim, columns: args.columns, heads: args.heads, chunk: args.chunk, decay: args.decay)
        let scratch = args.scratch.assumingMemoryBound(to: Float.self)
        for head in 0..<args.heads { moveState(args, layout, head: head, isLoad: true) }
        var token = 0
        while token < args.tokens {
            let count = minimum(args.chunk, args.tokens - token)
            stageDeltaRows(args.key, args, layout, token: token, count: count, scale: 1, into: scratch + layout.key)
            stageDeltaRows(
                args.query, args, layout, token: token, count: count, scale: args.scale, into: scratch + layout.query)
            if args.decay != .perChannel { multiplyDeltaRows(args, layout, count: count) }
            for head in 0..<args.heads {
                if args.decay == .perChannel {
                    weighDeltaChannels(args, layout, head: head, token: token, count: count)
                } else {
                    weighDeltaTokens(args, layout, head: head, token: token, count: count)
                }
                advanceColumns(args, layout, head: head, token: token, count: count)
            }
            token += count
        }
        for head in 0..<args.heads { moveState(args, layout, head: head, isLoad: false) }
    }
}

/// A panel of columns of the state of a head, for the tokens of a chunk.
private struct ColumnStep {
    /// `[token][channel]`, with the decay from the start of the chunk, or without it when `entry` has it.
    var key: UnsafePointer<Float>
    var query: UnsafePointer<Float>
    /// `[token][channel]`, with the decay to the end of the chunk, or without it when `exit` has it.
    var leavingKey: UnsafePointer<Float>
    var keyStride: Int
    var keyDim: Int
    var solving: UnsafePointer<Float>
    var answering: UnsafePointer<Float>
    var stride: Int
    var beta: UnsafePointer<Float>
    var gain: UnsafePointer<Float>
    var entry: UnsafePointer<Float>
    var exit: UnsafePointer<Float>
    var lastDecay: UnsafePointer<Float>
    var values: UnsafeMutablePointer<Float>
    var edge: UnsafeMutablePointer<Float>
    var state: UnsafeMutablePointer<Float>
    var count: Int
    /// The output of the first token, from the first column on.
    var output: RowTarget
    var columns: Int
}

/// Runs all columns of a head over a chunk.
@inline(never)
private func advanceColumns(_ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, head: Int, token: Int, count: Int) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let perChannel = args.decay == .perChannel
    let vectors = (args.columns + laneCount - 1) / laneCount
    forEachPanel(vectors: vectors) { column, width in
        let columns = minimum(width * laneCount, args.columns - column)
        let element = head * args.outputHeadStride + token * args.output.stride + column
        let step = ColumnStep(
            key: scratch + (perChannel ? layout.enteringKey : layout.key),
            query: scratch + (perChannel ? layout.enteringQuery : layout.query),
            leavingKey: scratch + (perChannel ? layout.leavingKey : layout.key), keyStride: layout.keyStride,
            keyDim: args.keyDim, solving: scratch + layout.solving, answering: scratch + layout.answering,
            stride: layout.stride, beta: scratch + layout.beta, gain: scratch + layout.gain, entry: scratch + layout.entry,
            exit: scratch + layout.exit, lastDecay: scratch + layout.lastDecay, values: scratch + layout.values,
            edge: scratch + layout.edge,
            state: scratch + layout.states + head * layout.stateSize + column * layout.stateRows, count: count,
            output: RowTarget(
                base: args.output.base + element * byteCount(args.output.type), stride: args.output.stride,
                type: args.output.type),
            columns: columns)
        stageValues(args, step, head: head, token: token, column: column, width: width)
        switch width {
        case 1: advancePanelOfOne(step)
        case 2: advancePanelOfTwo(step)
        default: advancePanelOfThree(step)
        }
    }
}

// One function per width and stage, not inlined: a tile needs every register.

@inline(never)
private func advancePanelOfOne(_ step: ColumnStep) {
    solvePanelOfOne(step)
    answerPanelOfOne(step)
    updatePanelOfOne(step)
}

@inline(never)
private func advancePanelOfTwo(_ step: ColumnStep) {
    solvePanelOfTwo(step)
    answerPanelOfTwo(step)
    updatePanelOfTwo(step)
}

@inline(never)
private func advancePanelOfThree(_ step: ColumnStep) {
    solvePanelOfThree(step)
    answerPanelOfThree(step)
    updatePanelOfThree(step)
}

@inline(never)
private func solvePanelOfOne(_ step: ColumnStep) { solvePanel(step, width: 1) }
@inline(never)
private func solvePanelOfTwo(_ step: ColumnStep) { solvePanel(step, width: 2) }
@inline(never)
private func solvePanelOfThree(_ step: ColumnStep) { solvePanel(step, width: 3) }
@inline(never)
private func answerPanelOfOne(_ step: ColumnStep) { answerPanel(step, width: 1) }
@inline(never)
private func answerPanelOfTwo(_ step: ColumnStep) { answerPanel(step, width: 2) }
@inline(never)
private func answerPanelOfThree(_ step: ColumnStep) { answerPanel(step, width: 3) }
@inline(never)
private func updatePanelOfOne(_ step: ColumnStep) { updatePanel(step, width: 1) }
@inline(never)
private func updatePanelOfTwo(_ step: ColumnStep) { updatePanel(step, width: 2) }
@inline(never)
private func updatePanelOfThree(_ step: ColumnStep) { updatePanel(step, width: 3) }

// MARK: - What is written, what is read, and the state

/// Values → U, in place.
@_transparent
private func solvePanel(_ step: ColumnStep, width: Int) {
    let stride = width * laneCount
    var row = 0
    while row < step.count {
        let rows = minimum(tileRows, step.count - row)
        var tile = zeroTile()
        accumulate(
            &tile, rowPointers(step.key + row * step.keyStride, stride: step.keyStride, count: rows), step: 1,
            panel: step.state, depth: step.keyDim, width: width)
        let values = step.values + row * stride
        scaleRows(&tile, by: step.gain + row)
        addRows(&tile, values, stride: stride, times: step.beta + row, width: width)
        let coefficients = step.solving + row * step.stride
        accumulate(
            &tile, rowPointers(coefficients, stride: step.stride, count: rows), step: 1, panel: step.values, depth: row,
            width: width)
        substitute(&tile, coefficients + row, stride: step.stride)
        store(tile, values, stride: stride, width: width)
        row += tileRows
    }
}

/// Outputs, from U and the state before the chunk. Then U becomes e^(last − cum)·U.
@_transparent
private func answerPanel(_ step: ColumnStep, width: Int) {
    let stride = width * laneCount
    var row = 0
    while row < step.count {
        let rows = minimum(tileRows, step.count - row)
        var tile = zeroTile()
        accumulate(
            &tile, rowPointers(step.query + row * step.keyStride, stride: step.keyStride, count: rows), step: 1,
            panel: step.state, depth: step.keyDim, width: width)
        scaleRows(&tile, by: step.entry + row)
        let coefficients = step.answering + row * step.stride
        accumulate(
            &tile, rowPointers(coefficients, stride: step.stride, count: rows), step: 1, panel: step.values, depth: row,
            width: width)
        accumulateTriangle(
            &tile, coefficients + row, stride: step.stride, panel: step.values + row * stride, width: width)
        if step.output.type == .float32 && rows == tileRows && step.columns == stride {
            let target = step.output.base.assumingMemoryBound(to: Float.self) + row * step.output.stride
            store(tile, target, stride: step.output.stride, width: width)
        } else {
            store(tile, step.edge, stride: stride, width: width)
            writeRows(step, row: row, rows: rows, stride: stride)
        }
        row += tileRows
    }
    for row in 0..<step.count {
        let target = step.values + row * stride
        let factor = splat(step.exit[row])
        for x in 0..<width { store(load(target + x * laneCount) * factor, target + x * laneCount) }
    }
}

/// S ← e^(last) ∘ S + Kᵀ·U.
@_transparent
private func updatePanel(_ step: ColumnStep, width: Int) {
    let stride = width * laneCount
    var row = 0
    while row < step.keyDim {
        var tile = zeroTile()
        accumulate(
            &tile, rowPointers(step.leavingKey + row, stride: 1, count: minimum(tileRows, step.keyDim - row)),
            step: step.keyStride, panel: step.values, depth: step.count, width: width)
        let target = step.state + row * stride
        addRows(&tile, target, stride: stride, times: step.lastDecay + row, width: width)
        store(tile, target, stride: stride, width: width)
        row += tileRows
    }
}

// MARK: - Tiles

/// Row i += Σ_(j < i) a_ij · row j, from the first row down: forward substitution with a = −A.
@_transparent
private func substitute(_ c: inout Tile, _ a: UnsafePointer<Float>, stride: Int) {
    let (a1, a2, a3) = (a + stride, a + 2 * stride, a + 3 * stride)
    let (a4, a5, a6, a7) = (a + 4 * stride, a + 5 * stride, a + 6 * stride, a + 7 * stride)
    c.r1 = multiplyAdd(a1[0], c.r0, c.r1)
    c.r2 = multiplyAdd(a2[0], c.r0, c.r2)
    c.r3 = multiplyAdd(a3[0], c.r0, c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(a4[0], c.r0, c.r4)
        c.r5 = multiplyAdd(a5[0], c.r0, c.r5)
        c.r6 = multiplyAdd(a6[0], c.r0, c.r6)
        c.r7 = multiplyAdd(a7[0], c.r0, c.r7)
    }
    c.r2 = multiplyAdd(a2[1], c.r1, c.r2)
    c.r3 = multiplyAdd(a3[1], c.r1, c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(a4[1], c.r1, c.r4)
        c.r5 = multiplyAdd(a5[1], c.r1, c.r5)
        c.r6 = multiplyAdd(a6[1], c.r1, c.r6)
        c.r7 = multiplyAdd(a7[1], c.r1, c.r7)
    }
    c.r3 = multiplyAdd(a3[2], c.r2, c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(a4[2], c.r2, c.r4)
        c.r5 = multiplyAdd(a5[2], c.r2, c.r5)
        c.r6 = multiplyAdd(a6[2], c.r2, c.r6)
        c.r7 = multiplyAdd(a7[2], c.r2, c.r7)
        c.r4 = multiplyAdd(a4[3], c.r3, c.r4)
        c.r5 = multiplyAdd(a5[3], c.r3, c.r5)
        c.r6 = multiplyAdd(a6[3], c.r3, c.r6)
        c.r7 = multiplyAdd(a7[3], c.r3, c.r7)
        c.r5 = multiplyAdd(a5[4], c.r4, c.r5)
        c.r6 = multiplyAdd(a6[4], c.r4, c.r6)
        c.r7 = multiplyAdd(a7[4], c.r4, c.r7)
        c.r6 = multiplyAdd(a6[5], c.r5, c.r6)
        c.r7 = multiplyAdd(a7[5], c.r5, c.r7)
        c.r7 = multiplyAdd(a7[6], c.r6, c.r7)
    }
}

// MARK: - Values, outputs and states in memory

/// Copies the columns of a panel of values to floats, `[token][panel]`, with zeros past the last column.
@inline(never)
private func stageValues(
    _ args: DeltaRuleArguments, _ step: ColumnStep, head: Int, token: Int, column: Int, width: Int
) {
    let bytes = byteCount(args.value.type)
    let first = args.value.base + (head * args.valueHeadStride + token * args.value.stride + column) * bytes
    for row in 0..<step.count {
        let source = first + row * args.value.stride * bytes
        let target = step.values + row * width * laneCount
        for x in 0..<width { store(loadPart(source, args.value.type, x * laneCount, step.columns), target + x * laneCount) }
    }
}

/// Writes rows of the tile in `edge` to the output.
@inline(never)
private func writeRows(_ step: ColumnStep, row: Int, rows: Int, stride: Int) {
    for r in 0..<rows {
        let target = step.output.base + (row + r) * step.output.stride * byteCount(step.output.type)
        var x = 0
        while x < step.columns {
            storePart(load(step.edge + r * stride + x), target, step.output.type, x, step.columns)
            x += laneCount
        }
    }
}

/// Copies the state of a head from memory to panels, with zeros past the last column, or back.
@inline(never)
private func moveState(_ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, head: Int, isLoad: Bool) {
    let panels = args.scratch.assumingMemoryBound(to: Float.self) + layout.states + head * layout.stateSize
    let bytes = byteCount(args.stateType)
    let first = args.state + head * args.stateHeadStride * bytes
    forEachPanel(vectors: (args.columns + laneCount - 1) / laneCount) { column, width in
        for row in 0..<args.keyDim {
            let memory = first + row * args.stateStride * bytes
            let panel = panels + column * layout.stateRows + row * width * laneCount
            for x in 0..<width {
                let index = column + x * laneCount
                if isLoad {
                    store(loadPart(UnsafeRawPointer(memory), args.stateType, index, args.columns), panel + x * laneCount)
                } else {
                    storePart(load(panel + x * laneCount), memory, args.stateType, index, args.columns)
                }
            }
        }
    }
}
