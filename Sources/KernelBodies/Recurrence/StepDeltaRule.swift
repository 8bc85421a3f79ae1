// The gated delta rule token by token, which is decoding, and what the chunks are compared with. A panel of columns of the state
// takes all tokens before the next panel is touched, so that it stays in the first-level cache:
//
//     u = Sᵀ(α∘k), o = Sᵀ(α∘q)        one pass over the panel, which reads it from memory for the first token
//     d = β·(v − u)
//     S ← α∘S + k·dᵀ                   a second pass
//     y = o + (q·k)·d
//
// The state is updated where it is. Both passes prefetch the panel that comes next, a line for every row or two, so that memory
// delivers all the time: without that it would rest while a panel in the cache is worked on, a third of the time. Columns that do
// not fill a vector go through the scratch.

public import KernelInterface

extension Kernels {
    /// See `DeltaRuleArguments`. The scratch is that of chunks of `DeltaRuleScratch.stepTokens` with decays per channel and one head.
    public static func stepDeltaRule(_ arguments: UnsafePointer<DeltaRuleArguments>) {
        let args = arguments.pointee
        let layout = DeltaRuleScratch(
            keyDim: args.keyDim, columns: args.columns, heads: 1, chunk: DeltaRuleScratch.stepTokens, decay: .perChannel)
        let scratch = args.scratch.assumingMemoryBound(to: Float.self)
        var token = 0
        while token < args.tokens {
            let count = minimum(DeltaRuleScratch.stepTokens, args.tokens - token)
            stageDeltaRows(args.key, args, layout, token: token, count: count, scale: 1, into: scratch + layout.key)
            stageDeltaRows(
                args.query, args, layout, token: token, count: count, scale: args.scale, into: scratch + layout.query)
            for head in 0..<args.heads {
                stageFactors(args, layout, head: head, token: token, count: count)
                stepColumns(args, layout, head: head, token: token, count: count)
            }
            token += count
        }
    }
}

/// A panel of columns of the state of a head, for some tokens.
private struct StepPanel {
    /// `[token][channel]`: k, α, α∘k, α∘q.
    var key: UnsafePointer<Float>
    var factors: UnsafePointer<Float>
    var decayedKey: UnsafePointer<Float>
    var decayedQuery: UnsafePointer<Float>
    var keyStride: Int
    var keyDim: Int
    /// An element per token: β and q·k.
    var beta: UnsafePointer<Float>
    var dots: UnsafePointer<Float>
    var count: Int
    var state: UnsafeMutableRawPointer
    var stride: Int
    /// The panel after this one, whose rows are `stride` apart, too; or this one.
    var next: UnsafeRawPointer
    var value: RowOperand
    var output: RowTarget
    var columns: Int
}

/// β, q·k, α and what is multiplied by it, of the tokens of a head.
@inline(never)
private func stageFactors(_ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, head: Int, token: Int, count: Int) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    var operand = args.logDecay
    if args.decay == .perChannel { operand.base += head * args.logDecayHeadStride * byteCount(operand.type) }
    for row in 0..<count {
        let offset = row * layout.keyStride
        let factors = scratch + layout.factors + offset
        var shared = splat(1)
        switch args.decay {
        case .none: break
        case .perToken: shared = exp(splat(boundedLogDecay(element(operand, token + row, head))))
        case .perChannel:
            stageRow(operand, token + row, channels: args.keyDim, times: 1, padded: layout.keyStride, into: factors)
        }
        var dot = splat(0)
        var channel = 0
        while channel < layout.keyStride {
            let factor = args.decay == .perChannel ? exp(boundedLogDecay(load(factors + channel))) : shared
            let key = load(scratch + layout.key + offset + channel)
            let query = load(scratch + layout.query + offset + channel)
            dot = multiplyAdd(key, query, dot)
            store(factor, factors + channel)
            store(key * factor, scratch + layout.enteringKey + offset + channel)
            store(query * factor, scratch + layout.enteringQuery + offset + channel)
            channel += laneCount
        }
        scratch[layout.beta + row] = element(args.beta, token + row, head)
        scratch[layout.gain + row] = laneSum(dot)
    }
}

@inline(never)
private func stepColumns(_ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, head: Int, token: Int, count: Int) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let stateBytes = byteCount(args.stateType)
    let (valueBytes, outputBytes) = (byteCount(args.value.type), byteCount(args.output.type))
    let memory = args.state + head * args.stateHeadStride * stateBytes
    forEachPanel(vectors: (args.columns + laneCount - 1) / laneCount) { column, width in
        let columns = minimum(width * laneCount, args.columns - column)
        let value = head * args.valueHeadStride + token * args.value.stride + column
        let output = head * args.outputHeadStride + token * args.output.stride + column
        var panel = StepPanel(
            key: scratch + layout.key, factors: scratch + layout.factors, decayedKey: scratch + layout.enteringKey,
            decayedQuery: scratch + layout.enteringQuery, keyStride: layout.keyStride, keyDim: args.keyDim,
            beta: scratch + layout.beta, dots: scratch + layout.gain, count: count, state: memory + column * stateBytes,
            stride: args.stateStride,
            next: nextPanel(args, head: head, column: column + width * laneCount, current: memory + column * stateBytes),
            value: RowOperand(
                base: args.value.base + value * valueBytes, stride: args.value.stride, type: args.value.type),
            output: RowTarget(
                base: args.output.base + output * outputBytes, stride: args.output.stride, type: args.output.type),
            columns: columns)
        if columns < width * laneCount {
            let staged = scratch + layout.states
            let inPlace = panel
            moveColumns(args, inPlace, staged, stride: width * laneCount, isLoad: true)
            panel.state = UnsafeMutableRawPointer(staged)
            panel.stride = width * laneCount
            stepFloats(panel, width: width)
            moveColumns(args, inPlace, staged, stride: width * laneCount, isLoad: false)
        } else if args.stateType == .float32 {
            stepFloats(panel, width: width)
        } else {
            stepHalves(panel, width: width)
        }
    }
}

/// The panel that starts at a column of a head, or at the first one of the next head; or the current panel when there is none.
@inline(never)
private func nextPanel(
    _ args: DeltaRuleArguments, head: Int, column: Int, current: UnsafeMutableRawPointer
) -> UnsafeRawPointer {
    let bytes = byteCount(args.stateType)
    if column < args.columns { return UnsafeRawPointer(args.state + (head * args.stateHeadStride + column) * bytes) }
    if head + 1 < args.heads { return UnsafeRawPointer(args.state + (head + 1) * args.stateHeadStride * bytes) }
    if let next = args.nextState { return next }
    return UnsafeRawPointer(current)
}

@inline(never)
private func stepFloats(_ panel: StepPanel, width: Int) {
    switch width {
    case 1: stepFloatPanelOfOne(panel)
    case 2: stepFloatPanelOfTwo(panel)
    default: stepFloatPanelOfThree(panel)
    }
}

@inline(never)
private func stepHalves(_ panel: StepPanel, width: Int) {
    switch width {
    case 1: stepHalfPanelOfOne(panel)
    case 2: stepHalfPanelOfTwo(panel)
    default: stepHalfPanelOfThree(panel)
    }
}

@inline(never)
private func stepFloatPanelOfOne(_ panel: StepPanel) { stepPanel(panel, .float32, width: 1) }
@inline(never)
private func stepFloatPanelOfTwo(_ panel: StepPanel) { stepPanel(panel, .float32, width: 2) }
@inline(never)
private func stepFloatPanelOfThree(_ panel: StepPanel) { stepPanel(panel, .float32, width: 3) }
@inline(never)
private func stepHalfPanelOfOne(_ panel: StepPanel) { stepPanel(panel, .bfloat16, width: 1) }
@inline(never)
private func stepHalfPanelOfTwo(_ panel: StepPanel) { stepPanel(panel, .bfloat16, width: 2) }
@inline(never)
private func stepHalfPanelOfThree(_ panel: StepPanel) { stepPanel(panel, .bfloat16, width: 3) }

@_transparent
private func stepPanel(_ panel: StepPanel, _ type: StorageType, width: Int) {
    let rowBytes = panel.stride * byteCount(type)
    for token in 0..<panel.count {
        let offset = token * panel.keyStride
        let keys = panel.decayedKey + offset
        let queries = panel.decayedQuery + offset
        // Two chains per column, because a multiply-add waits for the one before it.
        var (u, o) = (splatRow(0), splatRow(0))
        var (u1, o1) = (splatRow(0), splatRow(0))
        var memory = UnsafeRawPointer(panel.state)
        var next = panel.next
        var channel = 0
        while channel + 2 <= panel.keyDim {
            prefetchRow(next, type, width: width)
            next += rowBytes
            let s = stateRow(memory, type, width: width)
            u = multiplyAdd(keys[channel], s, u)
            o = multiplyAdd(queries[channel], s, o)
            let s1 = stateRow(memory + rowBytes, type, width: width)
            u1 = multiplyAdd(keys[channel + 1], s1, u1)
            o1 = multiplyAdd(queries[channel + 1], s1, o1)
            memory += 2 * rowBytes
            channel += 2
        }
        if channel < panel.keyDim {
            let s = stateRow(memory, type, width: width)
            u = multiplyAdd(keys[channel], s, u)
            o = multiplyAdd(queries[channel], s, o)
        }
        let value = valueRow(panel, token, width: width)
        let d = splatRow(panel.beta[token]) * (value - (u + u1))
        writeOutput(panel, token, multiplyAdd(panel.dots[token], d, o + o1), width: width)
        let plainKeys = panel.key + offset
        let factors = panel.factors + offset
        var target = panel.state
        channel = 0
        while channel + 2 <= panel.keyDim {
            prefetchRow(next, type, width: width)
            next += rowBytes
            let kept = splatRow(factors[channel]) * stateRow(UnsafeRawPointer(target), type, width: width)
            storeState(multiplyAdd(plainKeys[channel], d, kept), target, type, width: width)
            target += rowBytes
            let kept1 = splatRow(factors[channel + 1]) * stateRow(UnsafeRawPointer(target), type, width: width)
            storeState(multiplyAdd(plainKeys[channel + 1], d, kept1), target, type, width: width)
            target += rowBytes
            channel += 2
        }
        if channel < panel.keyDim {
            let kept = splatRow(factors[channel]) * stateRow(UnsafeRawPointer(target), type, width: width)
            storeState(multiplyAdd(plainKeys[channel], d, kept), target, type, width: width)
        }
    }
}

/// Prefetches a row of a panel.
@_transparent
private func prefetchRow(_ memory: UnsafeRawPointer, _ type: StorageType, width: Int) {
    let line = memory.assumingMemoryBound(to: Float.self)
    let bytes = width * laneCount * (type == .float32 ? 4 : 2)
    prefetch(line)
    if bytes > 64 { prefetch(line + 16) }
    if bytes > 128 { prefetch(line + 32) }
}

@_transparent
private func stateRow(_ memory: UnsafeRawPointer, _ type: StorageType, width: Int) -> PanelRow {
    let x0 = loadLanes(memory, type, 0)
    let x1 = width > 1 ? loadLanes(memory, type, laneCount) : x0
    let x2 = width > 2 ? loadLanes(memory, type, 2 * laneCount) : x0
    return (x0, x1, x2)
}

@_transparent
private func storeState(_ row: PanelRow, _ memory: UnsafeMutableRawPointer, _ type: StorageType, width: Int) {
    storeLanes(row.x0, memory, type, 0)
    if width > 1 { storeLanes(row.x1, memory, type, laneCount) }
    if width > 2 { storeLanes(row.x2, memory, type, 2 * laneCount) }
}

// MARK: - Values, outputs and ragged columns

@_transparent
private func valueRow(_ panel: StepPanel, _ token: Int, width: Int) -> PanelRow {
    let memory = panel.value.base + token * panel.value.stride * byteCount(panel.value.type)
    let x0 = loadPart(memory, panel.value.type, 0, panel.columns)
    let x1 = width > 1 ? loadPart(memory, panel.value.type, laneCount, panel.columns) : x0
    let x2 = width > 2 ? loadPart(memory, panel.value.type, 2 * laneCount, panel.columns) : x0
    return (x0, x1, x2)
}

@_transparent
private func writeOutput(_ panel: StepPanel, _ token: Int, _ row: PanelRow, width: Int) {
    let memory = panel.output.base + token * panel.output.stride * byteCount(panel.output.type)
    storePart(row.x0, memory, panel.output.type, 0, panel.columns)
    if width > 1 { storePart(row.x1, memory, panel.output.type, laneCount, panel.columns) }
    if width > 2 { storePart(row.x2, memory, panel.output.type, 2 * laneCount, panel.columns) }
}

/// Copies the columns of a panel from the state to floats, with zeros past the last column, or back.
@inline(never)
private func moveColumns(
    _ args: DeltaRuleArguments, _ panel: StepPanel, _ staged: UnsafeMutablePointer<Float>, stride: Int, isLoad: Bool
) {
    for channel in 0..<args.keyDim {
        let memory = panel.state + channel * panel.stride * byteCount(args.stateType)
        var column = 0
        while column < panel.columns {
            let target = staged + channel * stride + column
            if isLoad {
                store(loadPart(UnsafeRawPointer(memory), args.stateType, column, panel.columns), target)
            } else {
                storePart(load(target), memory, args.stateType, column, panel.columns)
            }
            column += laneCount
        }
    }
}
