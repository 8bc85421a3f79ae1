// Gradients of h = f(gate) · up, or of h = f(gate):
//
//     dgate = dh · up · f′(gate)        dup = dh · f(gate)
//
//     SiLU         f = x σ(x)           f′ = σ + f (1 − σ)              σ(x) = 1 / (1 + u), 1 − σ = u σ with u = e⁻ˣ
//     GELU         f = x Φ(x)           f′ = Φ + x φ(x)
//     GELU, tanh   f = x σ(2z)          f′ = σ + f (1 − σ) · 2z′        ½ (1 + tanh z) = σ(2z)
//     ReLU         f = max(x, 0)        f′ = 0 for x ≤ 0, else 1
//     ReLU²        f = max(x, 0)²       f′ = 2 max(x, 0)
//
// 1 − σ is never a difference, so that it keeps its relative accuracy where it is small.

public import KernelInterface

extension Kernels {
    public static func differentiateActivation(_ arguments: UnsafePointer<ActivationGradientArguments>) {
        let args = arguments.pointee
        // One loop per function, not inlined, so that the constants of one do not take the registers of another.
        switch args.function {
        case .silu: differentiateBySiLU(args)
        case .gelu: differentiateByGELU(args)
        case .geluTanh: differentiateByTanh(args)
        case .relu: differentiateByReLU(args)
        case .reluSquared: differentiateBySquare(args)
        }
    }
}

@inline(never)
private func differentiateBySiLU(_ args: ActivationGradientArguments) {
    differentiateRows(args) { x in
        // The exponent is capped where σ is already 0.
        let u = exp(minimum(splat(0) - x, splat(88)))
        let sigma = splat(1) / (splat(1) + u)
        let value = x * sigma
        return (value, multiplyAdd(value, u * sigma, sigma))
    }
}

@inline(never)
private func differentiateByGELU(_ args: ActivationGradientArguments) {
    differentiateRows(args) { x in
        let a = magnitude(x)
        let tail = normalTail(a)
        let phi = (splat(1) - tail).replacing(with: tail, where: x .< splat(0))
        // The exponential is that of the tail, and is computed once.
        let density = splat(0.398_942_28) * exp(splat(-0.5) * a * a)
        return (x * phi, multiplyAdd(x, density, phi))
    }
}

@inline(never)
private func differentiateByTanh(_ args: ActivationGradientArguments) {
    differentiateRows(args) { x in
        let square = x * x
        let z2 = splat(1.595_769_1) * multiplyAdd(splat(0.044_715) * square, x, x)
        let u = exp(minimum(splat(0) - z2, splat(88)))
        let sigma = splat(1) / (splat(1) + u)
        let value = x * sigma
        let slope = splat(1.595_769_1) * multiplyAdd(splat(0.134_145), square, splat(1))
        return (value, multiplyAdd(value * (u * sigma), slope, sigma))
    }
}

@inline(never)
private func differentiateByReLU(_ args: ActivationGradientArguments) {
    differentiateRows(args) { x in (maximum(splat(0), x), splat(1).replacing(with: splat(0), where: x .<= splat(0))) }
}

@inline(never)
private func differentiateBySquare(_ args: ActivationGradientArguments) {
    differentiateRows(args) { x in
        let positive = maximum(splat(0), x)
        return (positive * positive, positive + positive)
    }
}

/// The loop of all functions. It is transparent, so that the closure is gone before code is made.
@_transparent
private func differentiateRows(
    _ args: ActivationGradientArguments, _ function: (Vector) -> (value: Vector, slope: Vector)
) {
    for row in 0..<args.rows {
        let gate = args.gate.base + row * args.gate.stride * 4
        let up = args.up.base + row * args.up.stride * 4
        let dh = args.outputGradient.base + row * args.outputGradient.stride * 4
        let dGate = args.gateGradient.base + row * args.gateGradient.stride * 4
        let dUp = args.upGradient.base + row * args.upGradient.stride * 4
        var column = 0
        while column + laneCount <= args.columns {
            let (value, slope) = function(loadLanes(gate, .float32, column))
            var gradient = loadLanes(dh, .float32, column)
            if args.hasUp {
                storeLanes(gradient * value, dUp, .float32, column)
                gradient = gradient * loadLanes(up, .float32, column)
            }
            storeLanes(gradient * slope, dGate, .float32, column)
            column += laneCount
        }
        let rest = args.columns - column
        if rest > 0 {
            let (value, slope) = function(loadLastLanes(gate, .float32, column, rest, filler: 0))
            var gradient = loadLastLanes(dh, .float32, column, rest, filler: 0)
            if args.hasUp {
                storeLastLanes(gradient * value, dUp, .float32, column, rest)
                gradient = gradient * loadLastLanes(up, .float32, column, rest, filler: 0)
            }
            storeLastLanes(gradient * slope, dGate, .float32, column, rest)
        }
    }
}
