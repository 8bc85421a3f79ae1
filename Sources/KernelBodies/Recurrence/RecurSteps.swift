// A linear recurrence one token at a time, as it is defined: a step of decoding, and the form that chunks are compared with.
//
//     S[n] ← decay[n] · S[n] + k[n] · Δ · v        y = Σ_n scale · q[n] · S[n] + skip · v
//
// A step reads and writes every element of a state once, row by row, and has the output in registers meanwhile. So it is bound by the
// memory of the state.

public import KernelInterface

/// One head of a state, and the vectors of a token.
private struct HeadStep {
    var state: UnsafeMutableRawPointer
    var type: StorageType
    var stride: Int
    var rows: Int
    var columns: Int
    /// Per row of the state.
    var decay: UnsafePointer<Float>
    var key: UnsafePointer<Float>
    var query: UnsafePointer<Float>
    /// Per column: Δ · v on entry of a step and Σ q·S after it.
    var value: UnsafePointer<Float>
    var output: UnsafeMutablePointer<Float>
}

extension Kernels {
    /// See `LinearRecurrenceArguments`. The chunk is that of the scratch.
    public static func recurSteps(_ arguments: UnsafePointer<LinearRecurrenceArguments>) {
        let args = arguments.pointee
        let isPerChannel = args.decay == .perChannel
        let layout = LinearRecurrenceScratch(
            keyDim: args.keyDim, valueDim: args.valueDim, chunk: args.chunk, heads: args.heads, hasChannelDecays: isPerChannel)
        let scratch = args.scratch.assumingMemoryBound(to: Float.self)
        let elementBytes = byteCount(args.stateType)
        for token in 0..<args.tokens {
            stageRow(
                args.query, token, channels: args.keyDim, times: args.scale, padded: layout.keyWidth,
                into: scratch + layout.query)
            stageRow(
                args.key, token, channels: args.keyDim, times: 1, padded: layout.keyWidth, into: scratch + layout.key)
            for head in 0..<args.heads {
                var size: Float = 1
                if isPerChannel {
                    stepChannelDecays(args, layout, head: head, token: token)
                } else {
                    findDecays(args, layout, head: head, start: token, count: 1)
                    size = scratch[layout.stepSizes]
                }
                let values = scratch + layout.values
                let columns = (args.valueDim + laneCount - 1) / laneCount * laneCount
                var value = args.value
                value.base += head * args.valueHeadStride * byteCount(value.type)
                stageRow(value, token, channels: args.valueDim, times: 1, padded: columns, into: values + 2 * columns)
                for x in 0..<columns / laneCount {
                    store(load(values + 2 * columns + x * laneCount) * splat(size), values + x * laneCount)
                }
                advance(
                    HeadStep(
                        state: args.state + head * args.keyDim * args.valueDim * elementBytes, type: args.stateType,
                        stride: args.valueDim, rows: args.keyDim, columns: args.valueDim,
                        decay: scratch + layout.stateFactors, key: scratch + layout.key, query: scratch + layout.query,
                        value: values, output: values + columns))
                let skip = splat(args.skips[head])
                for x in 0..<columns / laneCount {
                    let sum = multiplyAdd(
                        skip, load(values + 2 * columns + x * laneCount), load(values + columns + x * laneCount))
                    store(sum, values + columns + x * laneCount)
                }
                writeOutputs(
                    args, values + columns, head: head, column: 0, lanes: columns, first: token, count: 1)
            }
        }
    }
}

/// The decays of the channels of a head for one token.
@inline(never)
private func stepChannelDecays(_ args: LinearRecurrenceArguments, _ layout: LinearRecurrenceScratch, head: Int, token: Int) {
    let target = args.scratch.assumingMemoryBound(to: Float.self) + layout.stateFactors
    var steps = args.steps
    steps.base += head * args.stepHeadStride * byteCount(steps.type)
    stageRow(steps, token, channels: args.keyDim, times: 1, padded: layout.keyWidth, into: target)
    var channel = 0
    while channel < layout.keyWidth {
        store(exp(minimum(load(target + channel), splat(0))), target + channel)
        channel += laneCount
    }
}

/// One step of one head, four vectors of columns at a time, then one, then what is left.
@_transparent
private func advance(_ step: HeadStep) {
    var column = 0
    while column + 4 * laneCount <= step.columns {
        if step.type == .float32 {
            advanceFourOfFloats(step, column)
        } else {
            advanceFourOfHalves(step, column)
        }
        column += 4 * laneCount
    }
    while column + laneCount <= step.columns {
        if step.type == .float32 {
            advanceOneOfFloats(step, column)
        } else {
            advanceOneOfHalves(step, column)
        }
        column += laneCount
    }
    if column < step.columns { advanceRest(step, column) }
}

@inline(never)
private func advanceFourOfFloats(_ step: HeadStep, _ column: Int) { advanceFour(step, column, type: .float32) }

@inline(never)
private func advanceFourOfHalves(_ step: HeadStep, _ column: Int) { advanceFour(step, column, type: .bfloat16) }

@inline(never)
private func advanceOneOfFloats(_ step: HeadStep, _ column: Int) { advanceOne(step, column, type: .float32) }

@inline(never)
private func advanceOneOfHalves(_ step: HeadStep, _ column: Int) { advanceOne(step, column, type: .bfloat16) }

@_transparent
private func advanceFour(_ step: HeadStep, _ column: Int, type: StorageType) {
    let (v0, v1) = (load(step.value + column), load(step.value + column + laneCount))
    let (v2, v3) = (load(step.value + column + 2 * laneCount), load(step.value + column + 3 * laneCount))
    var (y0, y1, y2, y3) = (splat(0), splat(0), splat(0), splat(0))
    var state = step.state + column * byteCount(type)
    for row in 0..<step.rows {
        let (decay, key, query) = (splat(step.decay[row]), splat(step.key[row]), splat(step.query[row]))
        let s0 = multiplyAdd(decay, loadLanes(state, type, 0), key * v0)
        let s1 = multiplyAdd(decay, loadLanes(state, type, laneCount), key * v1)
        let s2 = multiplyAdd(decay, loadLanes(state, type, 2 * laneCount), key * v2)
        let s3 = multiplyAdd(decay, loadLanes(state, type, 3 * laneCount), key * v3)
        storeLanes(s0, state, type, 0)
        storeLanes(s1, state, type, laneCount)
        storeLanes(s2, state, type, 2 * laneCount)
        storeLanes(s3, state, type, 3 * laneCount)
        y0 = multiplyAdd(query, s0, y0)
        y1 = multiplyAdd(query, s1, y1)
        y2 = multiplyAdd(query, s2, y2)
        y3 = multiplyAdd(query, s3, y3)
        state += step.stride * byteCount(type)
    }
    store(y0, step.output + column)
    store(y1, step.output + column + laneCount)
    store(y2, step.output + column + 2 * laneCount)
    store(y3, step.output + column + 3 * laneCount)
}

@_transparent
private func advanceOne(_ step: HeadStep, _ column: Int, type: StorageType) {
    let v = load(step.value + column)
    var y = splat(0)
    var state = step.state + column * byteCount(type)
    for row in 0..<step.rows {
        let s = multiplyAdd(splat(step.decay[row]), loadLanes(state, type, 0), splat(step.key[row]) * v)
        storeLanes(s, state, type, 0)
        y = multiplyAdd(splat(step.query[row]), s, y)
        state += step.stride * byteCount(type)
    }
    store(y, step.output + column)
}

/// The last columns, fewer than a vector.
@inline(never)
private func advanceRest(_ step: HeadStep, _ column: Int) {
    let count = step.columns - column
    let v = load(step.value + column)
    var y = splat(0)
    var state = step.state + column * byteCount(step.type)
    for row in 0..<step.rows {
        let old = loadLastLanes(state, step.type, 0, count, filler: 0)
        let s = multiplyAdd(splat(step.decay[row]), old, splat(step.key[row]) * v)
        storeLastLanes(s, state, step.type, 0, count)
        y = multiplyAdd(splat(step.query[row]), s, y)
        state += step.stride * byteCount(step.type)
    }
    store(y, step.output + column)
}
