// The selective scan of Mamba-1 in a block of channels, over tokens of one sequence:
//
//     Δ = softplus(delta + bias)          h[n] ← 2^(Δ·decay[n]) · h[n] + Δ·x·B[n]          y = (skip·x + Σ C[n]·h[n]) · silu(gate)
//
// Lanes are channels. Tokens are staged in blocks: Δ, Δ·x and skip·x of a vector of channels, which are read once. Then every group of
// four states passes over the tokens of the block with its h and decays in registers, and adds to y in memory of the nearest cache.
// Four exponentials per token are independent, which fills the pipelines, and the chain through h is one multiply-add per token.
//
// A state takes 13 operations per token where an exponential with limits takes 11 (MachineRoofs.swift): the factor A·log₂e is folded
// into the range reduction, which needs no limits as long as Δ·decay stays above −125. That is tested once per vector and block of
// tokens, and beyond it a loop with limits gives the same bits in all other lanes.
//
// The sum over n is in ascending order, so that results do not depend on how states are grouped, and a step has the same bits.

public import KernelInterface

extension Kernels {
    public static func scanTokens(_ arguments: UnsafePointer<ScanArguments>) {
        let args = arguments.pointee
        let layout = ScanScratch(stateSize: args.stateSize)
        let states = args.scratch + layout.states
        loadStates(args, into: states)
        var token = 0
        while token < args.tokens {
            let count = minimum(ScanScratch.blockTokens, args.tokens - token)
            if args.fixedInput == nil {
                Kernels.stageRows(args.b, first: token, count: count, channels: args.stateSize, into: args.scratch + layout.b)
                Kernels.stageRows(args.c, first: token, count: count, channels: args.stateSize, into: args.scratch + layout.c)
            }
            var channel = 0
            while channel < args.channels {
                let part = ScanPart(args, layout, channel, tokens: count)
                let isWide = stageVector(args, part, first: token, channel)
                scanVector(part, isWide: isWide)
                finishVector(args, part, first: token, channel)
                channel += laneCount
            }
            token += count
        }
        storeStates(args, from: states)
    }
}

/// A vector of channels over a block of tokens.
private struct ScanPart {
    let tokens: Int
    let stateSize: Int
    /// `[tokens][laneCount]`.
    let delta: UnsafeMutablePointer<Float>
    let input: UnsafeMutablePointer<Float>
    let sums: UnsafeMutablePointer<Float>
    /// `[stateSize]` rows of `ScanScratch.blockChannels`, from the vector on.
    let states: UnsafeMutablePointer<Float>
    let decays: UnsafePointer<Float>
    let fixedInput: UnsafePointer<Float>?
    let fixedOutput: UnsafePointer<Float>?
    /// `[tokens][stateSize]`.
    let b: UnsafePointer<Float>
    let c: UnsafePointer<Float>

    @_transparent
    init(_ args: ScanArguments, _ layout: ScanScratch, _ channel: Int, tokens: Int) {
        self.tokens = tokens
        stateSize = args.stateSize
        delta = args.scratch + layout.delta + channel * ScanScratch.blockTokens
        input = args.scratch + layout.input + channel * ScanScratch.blockTokens
        sums = args.scratch + layout.sums + channel * ScanScratch.blockTokens
        states = args.scratch + layout.states + channel
        decays = args.decays + channel
        if let input = args.fixedInput, let output = args.fixedOutput {
            fixedInput = input + channel
            fixedOutput = output + channel
        } else {
            fixedInput = nil
            fixedOutput = nil
        }
        b = UnsafePointer(args.scratch + layout.b)
        c = UnsafePointer(args.scratch + layout.c)
    }
}

// MARK: - States

@inline(never)
private func scanVector(_ part: ScanPart, isWide: Bool) {
    let isFixed = part.fixedInput != nil
    var state = 0
    while state < part.stateSize {
        if state + 4 <= part.stateSize {
            if isFixed {
                scanFourFixed(part, state)
            } else if isWide {
                scanFourWide(part, state)
            } else {
                scanFour(part, state)
            }
            state += 4
        } else {
            isFixed ? scanOneFixed(part, state) : scanOne(part, state)
            state += 1
        }
    }
}

@inline(never)
private func scanFour(_ part: ScanPart, _ state: Int) { scan(part, state, width: 4, isWide: false, isFixed: false) }

@inline(never)
private func scanFourWide(_ part: ScanPart, _ state: Int) { scan(part, state, width: 4, isWide: true, isFixed: false) }

@inline(never)
private func scanFourFixed(_ part: ScanPart, _ state: Int) { scan(part, state, width: 4, isWide: true, isFixed: true) }

@inline(never)
private func scanOne(_ part: ScanPart, _ state: Int) { scan(part, state, width: 1, isWide: true, isFixed: false) }

@inline(never)
private func scanOneFixed(_ part: ScanPart, _ state: Int) { scan(part, state, width: 1, isWide: true, isFixed: true) }

/// `width`, `isWide` and `isFixed` are literals.
@_transparent
private func scan(_ part: ScanPart, _ state: Int, width: Int, isWide: Bool, isFixed: Bool) {
    let stride = ScanScratch.blockChannels
    let states = part.states + state * stride
    let decays = part.decays + state * stride
    var h0 = load(states)
    var h1 = width == 4 ? load(states + stride) : h0
    var h2 = width == 4 ? load(states + 2 * stride) : h0
    var h3 = width == 4 ? load(states + 3 * stride) : h0
    let d0 = load(decays)
    let d1 = width == 4 ? load(decays + stride) : d0
    let d2 = width == 4 ? load(decays + 2 * stride) : d0
    let d3 = width == 4 ? load(decays + 3 * stride) : d0
    let fixedInput = isFixed ? part.fixedInput! + state * stride : part.decays
    let fixedOutput = isFixed ? part.fixedOutput! + state * stride : part.decays
    var (b, c) = (part.b + state, part.c + state)
    var offset = 0
    while offset < part.tokens * laneCount {
        let delta = load(part.delta + offset)
        let input = load(part.input + offset)
        var sum = load(part.sums + offset)
        h0 = multiplyAdd(power(delta, d0, isWide), h0, input * (isFixed ? load(fixedInput) : splat(b[0])))
        sum = multiplyAdd(isFixed ? load(fixedOutput) : splat(c[0]), h0, sum)
        if width == 4 {
            h1 = multiplyAdd(power(delta, d1, isWide), h1, input * (isFixed ? load(fixedInput + stride) : splat(b[1])))
            h2 = multiplyAdd(power(delta, d2, isWide), h2, input * (isFixed ? load(fixedInput + 2 * stride) : splat(b[2])))
            h3 = multiplyAdd(power(delta, d3, isWide), h3, input * (isFixed ? load(fixedInput + 3 * stride) : splat(b[3])))
            sum = multiplyAdd(isFixed ? load(fixedOutput + stride) : splat(c[1]), h1, sum)
            sum = multiplyAdd(isFixed ? load(fixedOutput + 2 * stride) : splat(c[2]), h2, sum)
            sum = multiplyAdd(isFixed ? load(fixedOutput + 3 * stride) : splat(c[3]), h3, sum)
        }
        store(sum, part.sums + offset)
        b += part.stateSize
        c += part.stateSize
        offset += laneCount
    }
    store(h0, states)
    if width == 4 {
        store(h1, states + stride)
        store(h2, states + 2 * stride)
        store(h3, states + 3 * stride)
    }
}

@_transparent
private func power(_ delta: Vector, _ decay: Vector, _ isWide: Bool) -> Vector {
    isWide ? powerOfAnyProduct(delta, decay) : powerOfProduct(delta, decay)
}

// MARK: - Tokens

/// Stages a vector of channels: Δ, Δ·x and skip·x. Returns whether a decay may need limits.
@_transparent
private func stageVector(_ args: ScanArguments, _ part: ScanPart, first: Int, _ channel: Int) -> Bool {
    let isWhole = channel + laneCount <= args.channels
    if isWhole && args.x.type == .float32 && args.delta.type == .float32 && args.appliesSoftplus {
        return stageSingle(args, part, first: first, channel)
    }
    return isWhole
        ? stageWhole(args, part, first: first, channel) : stageLast(args, part, first: first, channel)
}

/// Rows of floats, with the softplus.
@inline(never)
private func stageSingle(_ args: ScanArguments, _ part: ScanPart, first: Int, _ channel: Int) -> Bool {
    stage(args, part, first: first, channel, isSingle: true, isWhole: true)
}

@inline(never)
private func stageWhole(_ args: ScanArguments, _ part: ScanPart, first: Int, _ channel: Int) -> Bool {
    stage(args, part, first: first, channel, isSingle: false, isWhole: true)
}

@inline(never)
private func stageLast(_ args: ScanArguments, _ part: ScanPart, first: Int, _ channel: Int) -> Bool {
    stage(args, part, first: first, channel, isSingle: false, isWhole: false)
}

/// `isSingle` and `isWhole` are literals. The lines of the next block of tokens are asked for, too.
@_transparent
private func stage(
    _ args: ScanArguments, _ part: ScanPart, first: Int, _ channel: Int, isSingle: Bool, isWhole: Bool
) -> Bool {
    let xType = isSingle ? .float32 : args.x.type
    let deltaType = isSingle ? .float32 : args.delta.type
    let xStep = args.x.stride * byteCount(xType)
    let deltaStep = args.delta.stride * byteCount(deltaType)
    var x = args.x.base + first * xStep
    var delta = args.delta.base + first * deltaStep
    let rest = args.channels - channel
    let bias = lanesOrZero(args.bias, channel)
    let skip = lanesOrZero(args.skip, channel)
    let end = part.tokens * laneCount
    var offset = 0
    while offset < end {
        prefetchLine(delta + ScanScratch.blockTokens * deltaStep, deltaType, channel)
        let value =
            bias + (isWhole ? loadLanes(delta, deltaType, channel) : loadLastLanes(delta, deltaType, channel, rest, filler: 0))
        if isSingle || args.appliesSoftplus {
            store(exp(negativeMagnitude(value)), part.delta + offset)
            store(maximum(splat(0), value), part.sums + offset)
        } else {
            store(value, part.delta + offset)
        }
        delta += deltaStep
        offset += laneCount
    }
    var largest = splat(0)
    offset = 0
    while offset < end {
        prefetchLine(x + ScanScratch.blockTokens * xStep, xType, channel)
        let input = isWhole ? loadLanes(x, xType, channel) : loadLastLanes(x, xType, channel, rest, filler: 0)
        var step = load(part.delta + offset)
        if isSingle || args.appliesSoftplus { step = softplus(positive: load(part.sums + offset), power: step) }
        store(step, part.delta + offset)
        store(step * input, part.input + offset)
        store(args.skip == nil ? splat(0) : skip * input, part.sums + offset)
        // NaN leaves the maximum as it is.
        largest = maximum(isSingle ? step : magnitude(step), largest)
        x += xStep
        offset += laneCount
    }
    return needsLimits(largest, args.fastest + channel)
}

@_transparent
private func prefetchLine(_ row: UnsafeRawPointer, _ type: StorageType, _ channel: Int) {
    prefetch((row + channel * byteCount(type)).assumingMemoryBound(to: Float.self))
}

/// y = sum · silu(gate), in the type of y.
@inline(never)
private func finishVector(_ args: ScanArguments, _ part: ScanPart, first: Int, _ channel: Int) {
    let rest = args.channels - channel
    let yStep = args.y.stride * byteCount(args.y.type)
    let gateStep = args.gate.stride * byteCount(args.gate.type)
    var y = args.y.base + first * yStep
    var gate = args.gate.base + first * gateStep
    var offset = 0
    while offset < part.tokens * laneCount {
        var sum = load(part.sums + offset)
        if args.hasGate {
            prefetchLine(gate + ScanScratch.blockTokens * gateStep, args.gate.type, channel)
            let lanes =
                rest >= laneCount
                ? loadLanes(gate, args.gate.type, channel) : loadLastLanes(gate, args.gate.type, channel, rest, filler: 0)
            sum = sum * silu(lanes)
        }
        if rest >= laneCount {
            storeLanes(sum, y, args.y.type, channel)
        } else {
            storeLastLanes(sum, y, args.y.type, channel, rest)
        }
        y += yStep
        gate += gateStep
        offset += laneCount
    }
}

// MARK: - The state of a slot

@inline(never)
private func loadStates(_ args: ScanArguments, into states: UnsafeMutablePointer<Float>) {
    for state in 0..<args.stateSize {
        let source = UnsafeRawPointer(args.states) + state * args.stateStride * byteCount(args.stateType)
        let target = states + state * ScanScratch.blockChannels
        var channel = 0
        while channel < args.channels {
            let rest = args.channels - channel
            let lanes =
                rest >= laneCount
                ? loadLanes(source, args.stateType, channel)
                : loadLastLanes(source, args.stateType, channel, rest, filler: 0)
            store(lanes, target + channel)
            channel += laneCount
        }
    }
}

@inline(never)
private func storeStates(_ args: ScanArguments, from states: UnsafePointer<Float>) {
    for state in 0..<args.stateSize {
        let target = args.states + state * args.stateStride * byteCount(args.stateType)
        let source = states + state * ScanScratch.blockChannels
        var channel = 0
        while channel < args.channels {
            let rest = args.channels - channel
            if rest >= laneCount {
                storeLanes(load(source + channel), target, args.stateType, channel)
            } else {
                storeLastLanes(load(source + channel), target, args.stateType, channel, rest)
            }
            channel += laneCount
        }
    }
}
