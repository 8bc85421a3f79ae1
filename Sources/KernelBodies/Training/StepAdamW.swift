// One step of AdamW, in the order of operations of `torch.optim.AdamW`. One pass over memory: four arrays are read and three written.

public import KernelInterface

extension Kernels {
    public static func stepAdamW(_ arguments: UnsafePointer<AdamWArguments>) {
        let args = arguments.pointee
        let whole = args.count / laneCount * laneCount
        var index = 0
        while index < whole {
            let g = load(args.gradient + index)
            let step = adamWStep(args, load(args.parameter + index), g, load(args.first + index), load(args.second + index))
            store(step.first, args.first + index)
            store(step.second, args.second + index)
            store(step.parameter, args.parameter + index)
            index += laneCount
        }
        let rest = args.count - whole
        if rest > 0 {
            let step = adamWStep(
                args, loadLastLanes(UnsafeRawPointer(args.parameter), .float32, whole, rest, filler: 0),
                loadLastLanes(UnsafeRawPointer(args.gradient), .float32, whole, rest, filler: 0),
                loadLastLanes(UnsafeRawPointer(args.first), .float32, whole, rest, filler: 0),
                loadLastLanes(UnsafeRawPointer(args.second), .float32, whole, rest, filler: 0))
            storeLastLanes(step.first, UnsafeMutableRawPointer(args.first), .float32, whole, rest)
            storeLastLanes(step.second, UnsafeMutableRawPointer(args.second), .float32, whole, rest)
            storeLastLanes(step.parameter, UnsafeMutableRawPointer(args.parameter), .float32, whole, rest)
        }
    }
}

@_transparent

    /// Σ x², in eight chains of `Double`. Squares of floats are exact there and do not overflow.
    public static func sumSquares(_ x: UnsafePointer<Float>, count: Int) -> Double {
        var (s0, s1, s2, s3) = (0.0, 0.0, 0.0, 0.0)
        var (s4, s5, s6, s7) = (0.0, 0.0, 0.0, 0.0)
        var index = 0
        while index + 8 <= count {
            s0 += squareOfElement(x, index)
            s1 += squareOfElement(x, index + 1)
            s2 += squareOfElement(x, index + 2)
            s3 += squareOfElement(x, index + 3)
            s4 += squareOfElement(x, index + 4)
            s5 += squareOfElement(x, index + 5)
            s6 += squareOfElement(x, index + 6)
            s7 += squareOfElement(x, index + 7)
            index += 8
        }
        while index < count {
            s0 += squareOfElement(x, index)
            index += 1
        }
        return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    }
}

@_transparent
private func squareOfElement(_ x: UnsafePointer<Float>, _ index: Int) -> Double { Double(x[index]) * Double(x[index]) }

@_transparent
private func adamWStep(
    _ args: AdamWArguments, _ parameter: Vector, _ g: Vector, _ first: Vector, _ second: Vector
) -> (parameter: Vector, first: Vector, second: Vector) {
    let m = multiplyAdd(g - first, splat(args.firstRate), first)
    let v = multiplyAdd(g * g, splat(args.secondRate), second * splat(args.beta2))
    let denominator = multiplyAdd(v.squareRoot(), splat(args.inverseRoot), splat(args.epsilon))
    let update = splat(args.stepSize) * (m / denominator)
    return (parameter * splat(args.decay) - update, m, v)
}
