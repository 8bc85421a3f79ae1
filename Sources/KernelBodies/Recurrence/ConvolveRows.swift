// Causal depthwise convolution of the tokens of one sequence:
//
//     y_t = f(b + Σ_j w_j · x_{t − width + 1 + j})        f = SiLU or nothing, all per channel
//
// Inputs before the sequence come from the state. Products are added to the bias in the order of j, so that the bits of a token do
// not depend on how the sequence was cut.
//
// Tokens whose inputs all lie in x are done in fours where the width is 4: seven loads serve sixteen products, and four independent
// exponentials hide each other's latency. Channels are walked in blocks of 2048, so that the rows that the next four tokens read again
// are still in the first or second level of the cache.

public import KernelInterface

extension Kernels {
    public static func convolveRows(_ arguments: UnsafePointer<ConvolveArguments>) {
        let args = arguments.pointee
        var channel = 0
        while channel < args.channels {
            let end = minimum(args.channels, channel + 2048)
            convolveChannels(args, channel, end)
            channel = end
        }
        if args.storesState { storeInputs(args) }
    }
}

@inline(never)
private func convolveChannels(_ args: ConvolveArguments, _ begin: Int, _ end: Int) {
    var token = args.first
    // The first tokens read the state.
    let inside = minimum(args.end, maximum(token, args.width - 1))
    while token < inside {
        convolveToken(args, token, begin, end)
        token += 1
    }
    if args.width == 4 {
        while token + 4 <= args.end {
            switch args.x.type {
            case .float32: convolveFourOfFloats(args, token, begin, end)
            case .float16: convolveFourOfHalves(args, token, begin, end)
            case .bfloat16: convolveFourOfBFloats(args, token, begin, end)
            }
            token += 4
        }
    }
    while token < args.end {
        convolveToken(args, token, begin, end)
        token += 1
    }
}

/// One token of any width, with inputs from the state where they are before the sequence.
@inline(never)
private func convolveToken(_ args: ConvolveArguments, _ token: Int, _ begin: Int, _ end: Int) {
    let y = args.y.base + token * args.y.stride * byteCount(args.y.type)
    var channel = begin
    while channel < end {
        var sum = splat(0)
        if let bias = args.bias { sum = loadPart(UnsafeRawPointer(bias), .float32, channel, end) }
        for tap in 0..<args.width {
            let weight = loadPart(UnsafeRawPointer(args.weight + tap * args.channels), .float32, channel, end)
            let (row, type) = input(args, token - args.width + 1 + tap)
            sum = multiplyAdd(weight, loadPart(row, type, channel, end), sum)
        }
        if args.appliesSiLU { sum = silu(sum) }
        storePart(sum, y, args.y.type, channel, end)
        channel += laneCount
    }
}

/// The input of a token, which is in the state for a token before 0.
@_transparent
private func input(_ args: ConvolveArguments, _ token: Int) -> (base: UnsafeRawPointer, type: StorageType) {
    if token >= 0 { return (args.x.base + token * args.x.stride * byteCount(args.x.type), args.x.type) }
    let row = args.width - 1 + token
    return (UnsafeRawPointer(args.state + row * args.channels * byteCount(args.stateType)), args.stateType)
}

// One function per type of the inputs, so that the loads of the loop are of one kind.

@inline(never)
private func convolveFourOfFloats(_ args: ConvolveArguments, _ token: Int, _ begin: Int, _ end: Int) {
    convolveFour(args, token, begin, end, .float32)
}

@inline(never)
private func convolveFourOfHalves(_ args: ConvolveArguments, _ token: Int, _ begin: Int, _ end: Int) {
    convolveFour(args, token, begin, end, .float16)
}

@inline(never)
private func convolveFourOfBFloats(_ args: ConvolveArguments, _ token: Int, _ begin: Int, _ end: Int) {
    convolveFour(args, token, begin, end, .bfloat16)
}

/// Four adjacent tokens of width 4, whose inputs all lie in x.
@_transparent
private func convolveFour(_ args: ConvolveArguments, _ token: Int, _ begin: Int, _ end: Int, _ type: StorageType) {
    let step = args.x.stride * byteCount(type)
    let x = args.x.base + (token - 3) * step
    let outputStep = args.y.stride * byteCount(args.y.type)
    let y = args.y.base + token * outputStep
    let whole = end - (end - begin) % laneCount
    var channel = begin
    while channel < whole {
        let x0 = loadLanes(x, type, channel)
        let x1 = loadLanes(x + step, type, channel)
        let x2 = loadLanes(x + 2 * step, type, channel)
        let x3 = loadLanes(x + 3 * step, type, channel)
        let x4 = loadLanes(x + 4 * step, type, channel)
        let x5 = loadLanes(x + 5 * step, type, channel)
        let x6 = loadLanes(x + 6 * step, type, channel)
        let w0 = load(args.weight + channel)
        let w1 = load(args.weight + args.channels + channel)
        let w2 = load(args.weight + 2 * args.channels + channel)
        let w3 = load(args.weight + 3 * args.channels + channel)
        var bias = splat(0)
        if let values = args.bias { bias = load(values + channel) }
        var y0 = multiplyAdd(w3, x3, multiplyAdd(w2, x2, multiplyAdd(w1, x1, multiplyAdd(w0, x0, bias))))
        var y1 = multiplyAdd(w3, x4, multiplyAdd(w2, x3, multiplyAdd(w1, x2, multiplyAdd(w0, x1, bias))))
        var y2 = multiplyAdd(w3, x5, multiplyAdd(w2, x4, multiplyAdd(w1, x3, multiplyAdd(w0, x2, bias))))
        var y3 = multiplyAdd(w3, x6, multiplyAdd(w2, x5, multiplyAdd(w1, x4, multiplyAdd(w0, x3, bias))))
        if args.appliesSiLU { (y0, y1, y2, y3) = (silu(y0), silu(y1), silu(y2), silu(y3)) }
        storeLanes(y0, y, args.y.type, channel)
        storeLanes(y1, y + outputStep, args.y.type, channel)
        storeLanes(y2, y + 2 * outputStep, args.y.type, channel)
        storeLanes(y3, y + 3 * outputStep, args.y.type, channel)
        channel += laneCount
    }
    if whole < end { for row in 0..<4 { convolveToken(args, token + row, whole, end) } }
}

/// Moves the last width − 1 inputs into the state. Those of fewer tokens than that are preceded by what the state had last.
///
/// Rows are written in ascending order, and each comes from x or from a later row of the state, which is not overwritten yet.
@inline(never)
private func storeInputs(_ args: ConvolveArguments) {
    if args.tokens == 0 { return }
    let bytes = args.channels * byteCount(args.stateType)
    for row in 0..<args.width - 1 {
        let (source, type) = input(args, args.tokens - args.width + 1 + row)
        let target = args.state + row * bytes
        var channel = 0
        while channel < args.channels {
            storePart(loadPart(source, type, channel, args.channels), target, args.stateType, channel, args.channels)
            channel += laneCount
        }
    }
}
