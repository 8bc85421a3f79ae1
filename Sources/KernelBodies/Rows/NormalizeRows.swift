// RMSNorm and LayerNorm of rows:
//
//     RMSNorm     y = x / √(mean x² + ε) · w
//     LayerNorm   y = (x − μ) / √(mean (x − μ)² + ε) · w + b
//
// A row is read from memory once; the later passes find it in the cache. With a residual, the first pass adds x to it, and the later
// passes read the sum.
//
// LayerNorm corrects its mean: with μ̂ the rounded mean and d = x − μ̂, the mean of d is what is missing in μ̂. It is subtracted from
// every d, and its square from the mean of d². So a row far away from 0 loses nothing but the rounding of its own elements.

public import KernelInterface

extension Kernels {
    public static func normalizeRows(_ arguments: UnsafePointer<NormalizeArguments>) {
        let args = arguments.pointee
        for row in 0..<args.rows {
            if let residual = args.residual { addRow(args, row, residual + row * args.residualStride) }
            args.subtractsMean ? normalizeByDeviation(args, row) : normalizeBySquares(args, row)
        }
    }
}

/// residual += x.
@inline(never)
private func addRow(_ args: NormalizeArguments, _ row: Int, _ residual: UnsafeMutablePointer<Float>) {
    let x = args.x.base + row * args.x.stride * byteCount(args.x.type)
    var channel = 0
    while channel + laneCount <= args.channels {
        store(load(residual + channel) + loadLanes(x, args.x.type, channel), residual + channel)
        channel += laneCount
    }
    while channel < args.channels {
        residual[channel] += element(args.x, row, channel)
        channel += 1
    }
}

/// What is normalised: the row of x, or of the residual.
@_transparent
private func source(_ args: NormalizeArguments, _ row: Int) -> (base: UnsafeRawPointer, type: StorageType) {
    if let residual = args.residual { return (UnsafeRawPointer(residual + row * args.residualStride), .float32) }
    return (args.x.base + row * args.x.stride * byteCount(args.x.type), args.x.type)
}

@inline(never)
private func normalizeBySquares(_ args: NormalizeArguments, _ row: Int) {
    let (base, type) = source(args, row)
    let squares = rowSums(base, type, args.channels, minus: 0).squares
    let mean = squares / Float(args.channels)
    writeRow(args, row, base, type, minus: 0, again: 0, times: 1 / (mean + args.epsilon).squareRoot())
}

@inline(never)
private func normalizeByDeviation(_ args: NormalizeArguments, _ row: Int) {
    let (base, type) = source(args, row)
    let count = Float(args.channels)
    let mean = rowSums(base, type, args.channels, minus: 0).plain / count
    let deviations = rowSums(base, type, args.channels, minus: mean)
    let correction = deviations.plain / count
    let rest = deviations.squares / count - correction * correction
    // The difference of two rounded numbers may be a little below 0. NaN passes.
    let variance = rest < 0 ? 0 : rest
    writeRow(args, row, base, type, minus: mean, again: correction, times: 1 / (variance + args.epsilon).squareRoot())
}

/// y = ((x − c) − again) · factor · weight + bias.
@inline(never)
private func writeRow(
    _ args: NormalizeArguments, _ row: Int, _ base: UnsafeRawPointer, _ type: StorageType, minus center: Float,
    again: Float, times factor: Float
) {
    let y = args.y.base + row * args.y.stride * byteCount(args.y.type)
    let (c, a, f) = (splat(center), splat(again), splat(factor))
    var channel = 0
    while channel + laneCount <= args.channels {
        var value = ((loadLanes(base, type, channel) - c) - a) * f
        if let weight = args.weight { value = value * load(weight + channel) }
        if let bias = args.bias { value = value + load(bias + channel) }
        storeLanes(value, y, args.y.type, channel)
        channel += laneCount
    }
    let rest = args.channels - channel
    if rest > 0 {
        var value = ((loadLastLanes(base, type, channel, rest, filler: center) - c) - a) * f
        if let weight = args.weight {
            value = value * loadLastLanes(UnsafeRawPointer(weight), .float32, channel, rest, filler: 0)
        }
        if let bias = args.bias { value = value + loadLastLanes(UnsafeRawPointer(bias), .float32, channel, rest, filler: 0) }
        storeLastLanes(value, y, args.y.type, channel, rest)
    }
}
