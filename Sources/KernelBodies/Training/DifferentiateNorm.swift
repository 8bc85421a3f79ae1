// Gradients of y = x · r · w with r = 1 / √(mean x² + ε), for rows of n channels:
//
//     dx = r · (w · dy − x · r² · mean(x · w · dy))        dw = Σ over rows of dy · x · r
//
// A row is read from memory once; the second pass finds it in the cache. Sums are those of `normalizeRows`: two chains of 32 vectors
// each are added to one vector of totals, whose lanes are added last.

public import KernelInterface

extension Kernels {
    public static func differentiateNorm(_ arguments: UnsafePointer<NormGradientArguments>) {
        let args = arguments.pointee
        for row in 0..<args.rows {
            let x = args.x.base + row * args.x.stride * 4
            let dy = args.outputGradient.base + row * args.outputGradient.stride * 4
            let (squares, products) = normGradientSums(args, x, dy)
            let count = Float(args.channels)
            let inverse = 1 / (squares / count + args.epsilon).squareRoot()
            let dx = args.inputGradient.base + row * args.inputGradient.stride * 4
            let share = inverse * inverse * (products / count)
            writeNormGradient(args, x, dy, dx, inverse: inverse, share: share)
            if let weight = args.weightGradient { addNormWeightGradient(args, x, dy, weight, inverse: inverse) }
        }
    }
}

/// Σ x² and Σ x · w · dy of a row.
@inline(never)
private func normGradientSums(
    _ args: NormGradientArguments, _ x: UnsafeRawPointer, _ dy: UnsafeRawPointer
) -> (squares: Float, products: Float) {
    let weight = UnsafeRawPointer(args.weight)
    var (squares, products) = (splat(0), splat(0))
    var channel = 0
    while channel + 2 * laneCount <= args.channels {
        let end = minimum(args.channels / (2 * laneCount) * (2 * laneCount), channel + 64 * laneCount)
        var (s0, s1, p0, p1) = (splat(0), splat(0), splat(0), splat(0))
        while channel < end {
            let (x0, x1) = (loadLanes(x, .float32, channel), loadLanes(x, .float32, channel + laneCount))
            let g0 = loadLanes(dy, .float32, channel) * loadLanes(weight, .float32, channel)
            let g1 = loadLanes(dy, .float32, channel + laneCount) * loadLanes(weight, .float32, channel + laneCount)
            s0 = multiplyAdd(x0, x0, s0)
            s1 = multiplyAdd(x1, x1, s1)
            p0 = multiplyAdd(x0, g0, p0)
            p1 = multiplyAdd(x1, g1, p1)
            channel += 2 * laneCount
        }
        squares += s0 + s1
        products += p0 + p1
    }
    while channel < args.channels {
        let value = loadPart(x, .float32, channel, args.channels)
        let gradient = loadPart(dy, .float32, channel, args.channels) * loadPart(weight, .float32, channel, args.channels)
        squares = multiplyAdd(value, value, squares)
        products = multiplyAdd(value, gradient, products)
        channel += laneCount
    }
    return (laneSum(squares), laneSum(products))
}

/// dx = inverse · (w · dy − x · share), or added to what is there.
@inline(never)
private func writeNormGradient(
    _ args: NormGradientArguments, _ x: UnsafeRawPointer, _ dy: UnsafeRawPointer, _ dx: UnsafeMutableRawPointer,
    inverse: Float, share: Float
) {
    let weight = UnsafeRawPointer(args.weight)
    let (r, s) = (splat(inverse), splat(share))
    var channel = 0
    while channel < args.channels {
        let scaled = loadPart(dy, .float32, channel, args.channels) * loadPart(weight, .float32, channel, args.channels)
        var value = (scaled - loadPart(x, .float32, channel, args.channels) * s) * r
        if args.accumulates { value = value + loadPart(UnsafeRawPointer(dx), .float32, channel, args.channels) }
        storePart(value, dx, .float32, channel, args.channels)
        channel += laneCount
    }
}

/// dw += dy · (x · inverse).
@inline(never)
private func addNormWeightGradient(
    _ args: NormGradientArguments, _ x: UnsafeRawPointer, _ dy: UnsafeRawPointer, _ target: UnsafeMutablePointer<Float>,
    inverse: Float
) {
    let r = splat(inverse)
    let weight = UnsafeMutableRawPointer(target)
    var channel = 0
    while channel < args.channels {
        let normalized = loadPart(x, .float32, channel, args.channels) * r
        let sum = multiplyAdd(
            loadPart(dy, .float32, channel, args.channels), normalized,
            loadPart(UnsafeRawPointer(weight), .float32, channel, args.channels))
        storePart(sum, weight, .float32, channel, args.channels)
        channel += laneCount
    }
}
