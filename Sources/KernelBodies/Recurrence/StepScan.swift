// One token of the selective scan (ScanTokens.swift), on the states where they are.
//
// A step reads and writes every state once and does 13 operations on a vector of them, so it is bound by memory. Four states at a time
// pass over the channels of the block, so that memory is read and written in runs of adjacent lines, and Δ, Δ·x and y of the channels
// stay in the nearest cache.

public import KernelInterface

extension Kernels {
    public static func stepScan(_ arguments: UnsafePointer<ScanArguments>) {
        let args = arguments.pointee
        let layout = ScanScratch(stateSize: args.stateSize)
        if args.fixedInput == nil {
            Kernels.stageRows(args.b, first: 0, count: 1, channels: args.stateSize, into: args.scratch + layout.b)
            Kernels.stageRows(args.c, first: 0, count: 1, channels: args.stateSize, into: args.scratch + layout.c)
        }
        let isWide = stageToken(args, layout)
        let single = args.stateType == .float32
        let whole = args.channels / laneCount * laneCount
        var state = 0
        while state < args.stateSize {
            let width = args.stateSize - state >= 4 ? 4 : 1
            if width == 4 && args.fixedInput == nil {
                if isWide {
                    stepFourWide(args, layout, state, whole)
                } else if single {
                    stepFourSingle(args, layout, state, whole)
                } else {
                    stepFour(args, layout, state, whole)
                }
            } else {
                for next in state..<state + width { stepOne(args, layout, next, whole) }
            }
            if whole < args.channels {
                for next in state..<state + width { stepLast(args, layout, next, whole) }
            }
            state += width
        }
        finishToken(args, layout)
    }
}

@inline(never)
private func stepFourSingle(_ args: ScanArguments, _ layout: ScanScratch, _ state: Int, _ channels: Int) {
    stepFour(args, layout, state, channels, isWide: false, type: .float32)
}

@inline(never)
private func stepFour(_ args: ScanArguments, _ layout: ScanScratch, _ state: Int, _ channels: Int) {
    stepFour(args, layout, state, channels, isWide: false, type: .bfloat16)
}

@inline(never)
private func stepFourWide(_ args: ScanArguments, _ layout: ScanScratch, _ state: Int, _ channels: Int) {
    stepFour(args, layout, state, channels, isWide: true, type: args.stateType)
}

/// Four states of whole vectors of channels. `isWide` is a literal.
@_transparent
private func stepFour(
    _ args: ScanArguments, _ layout: ScanScratch, _ state: Int, _ channels: Int, isWide: Bool, type: StorageType
) {
    let bytes = args.stateStride * byteCount(type)
    let s0 = args.states + state * bytes
    let (s1, s2, s3) = (s0 + bytes, s0 + 2 * bytes, s0 + 3 * bytes)
    let decays = args.decays + state * ScanScratch.blockChannels
    let (b, c) = (args.scratch + layout.b + state, args.scratch + layout.c + state)
    let (b0, b1, b2, b3) = (splat(b[0]), splat(b[1]), splat(b[2]), splat(b[3]))
    let (c0, c1, c2, c3) = (splat(c[0]), splat(c[1]), splat(c[2]), splat(c[3]))
    let stride = ScanScratch.blockChannels
    var x = 0
    while x < channels {
        let delta = load(args.scratch + layout.delta + x)
        let input = load(args.scratch + layout.input + x)
        var sum = load(args.scratch + layout.sums + x)
        prefetchNear(s0 + 4 * bytes + x * byteCount(type))
        prefetchNear(s1 + 4 * bytes + x * byteCount(type))
        prefetchNear(s2 + 4 * bytes + x * byteCount(type))
        prefetchNear(s3 + 4 * bytes + x * byteCount(type))
        let h0 = multiplyAdd(power(delta, load(decays + x), isWide), loadLanes(UnsafeRawPointer(s0), type, x), input * b0)
        let h1 = multiplyAdd(
            power(delta, load(decays + stride + x), isWide), loadLanes(UnsafeRawPointer(s1), type, x), input * b1)
        let h2 = multiplyAdd(
            power(delta, load(decays + 2 * stride + x), isWide), loadLanes(UnsafeRawPointer(s2), type, x), input * b2)
        let h3 = multiplyAdd(
            power(delta, load(decays + 3 * stride + x), isWide), loadLanes(UnsafeRawPointer(s3), type, x), input * b3)
        storeLanes(h0, s0, type, x)
        storeLanes(h1, s1, type, x)
        storeLanes(h2, s2, type, x)
        storeLanes(h3, s3, type, x)
        sum = multiplyAdd(c0, h0, sum)
        sum = multiplyAdd(c1, h1, sum)
        sum = multiplyAdd(c2, h2, sum)
        sum = multiplyAdd(c3, h3, sum)
        store(sum, args.scratch + layout.sums + x)
        x += laneCount
    }
}

@_transparent
private func power(_ delta: Vector, _ decay: Vector, _ isWide: Bool) -> Vector {
    isWide ? powerOfAnyProduct(delta, decay) : powerOfProduct(delta, decay)
}

/// One state of whole vectors of channels.
@inline(never)
private func stepOne(_ args: ScanArguments, _ layout: ScanScratch, _ state: Int, _ channels: Int) {
    let states = args.states + state * args.stateStride * byteCount(args.stateType)
    var x = 0
    while x < channels {
        let old = loadLanes(UnsafeRawPointer(states), args.stateType, x)
        storeLanes(nextState(args, layout, state, x, old), states, args.stateType, x)
        x += laneCount
    }
}

/// One state of the last channels, fewer than a vector.
@inline(never)
private func stepLast(_ args: ScanArguments, _ layout: ScanScratch, _ state: Int, _ channel: Int) {
    let states = args.states + state * args.stateStride * byteCount(args.stateType)
    let rest = args.channels - channel
    let old = loadLastLanes(UnsafeRawPointer(states), args.stateType, channel, rest, filler: 0)
    storeLastLanes(nextState(args, layout, state, channel, old), states, args.stateType, channel, rest)
}

/// The new state of a vector of channels, which is added to the sums.
@_transparent
private func nextState(_ args: ScanArguments, _ layout: ScanScratch, _ state: Int, _ channel: Int, _ old: Vector) -> Vector {
    let offset = state * ScanScratch.blockChannels + channel
    var (b, c) = (splat(0), splat(0))
    if let input = args.fixedInput, let output = args.fixedOutput {
        (b, c) = (load(input + offset), load(output + offset))
    } else {
        (b, c) = (splat(args.scratch[layout.b + state]), splat(args.scratch[layout.c + state]))
    }
    let decay = powerOfAnyProduct(load(args.scratch + layout.delta + channel), load(args.decays + offset))
    let new = multiplyAdd(decay, old, load(args.scratch + layout.input + channel) * b)
    let sums = args.scratch + layout.sums + channel
    store(multiplyAdd(c, new, load(sums)), sums)
    return new
}

/// Stages the token: Δ, Δ·x and skip·x. Returns whether a decay may need limits.
@inline(never)
private func stageToken(_ args: ScanArguments, _ layout: ScanScratch) -> Bool {
    var isWide = false
    var channel = 0
    while channel < args.channels {
        let rest = args.channels - channel
        for state in 0..<minimum(4, args.stateSize) {
            prefetchNear(args.states + (state * args.stateStride + channel) * byteCount(args.stateType))
        }
        let x = scanLanes(args.x, 0, channel, rest)
        let delta = stepSize(args, scanLanes(args.delta, 0, channel, rest) + lanesOrZero(args.bias, channel))
        store(delta, args.scratch + layout.delta + channel)
        store(delta * x, args.scratch + layout.input + channel)
        var sum = splat(0)
        if let skip = args.skip { sum = load(skip + channel) * x }
        store(sum, args.scratch + layout.sums + channel)
        if needsLimits(maximum(magnitude(delta), splat(0)), args.fastest + channel) { isWide = true }
        channel += laneCount
    }
    return isWide
}

@inline(never)
private func finishToken(_ args: ScanArguments, _ layout: ScanScratch) {
    var channel = 0
    while channel < args.channels {
        let rest = args.channels - channel
        var sum = load(args.scratch + layout.sums + channel)
        if args.hasGate { sum = sum * silu(scanLanes(args.gate, 0, channel, rest)) }
        storeScanLanes(sum, args.y, 0, channel, rest)
        channel += laneCount
    }
}
