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
private func adamWStep(
    _ args: AdamWArguments, _ parameter: Vector, _ g: Vector, _ first: Vector, _ second: Vector
) -> (parameter: Vector, first: Vector, second: Vector) {
    let m = multiplyAdd(g - first, splat(args.firstRate), first)
    let v = multiplyAdd(g * g, splat(args.secondRate), second * splat(args.beta2))
    let denominator = multiplyAdd(v.squareRoot(), splat(args.inverseRoot), splat(args.epsilon))
    let update = splat(args.stepSize) * (m / denominator)
    return (parameter * splat(args.decay) - update, m, v)
}
