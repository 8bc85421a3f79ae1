// Activation functions of rows, alone or times another row: y = f(gate) · up, and 0 where |f(gate)| is at most a threshold.

public import KernelInterface

extension Kernels {
    public static func activateRows(_ arguments: UnsafePointer<ActivateArguments>) {
        let args = arguments.pointee
        // One loop per function, not inlined, so that the constants of one do not take the registers of another.
        switch args.function {
        case .silu: activateBySiLU(args)
        case .gelu: activateByGELU(args)
        case .geluTanh: activateByTanh(args)
        case .relu: activateByReLU(args)
        case .reluSquared: activateBySquare(args)
        }
    }
}

@inline(never)
private func activateBySiLU(_ args: ActivateArguments) { activate(args) { silu($0) } }

@inline(never)
private func activateByGELU(_ args: ActivateArguments) { activate(args) { gelu($0) } }

@inline(never)
private func activateByTanh(_ args: ActivateArguments) { activate(args) { geluTanh($0) } }

// The second operand of maximum is the result when either is NaN, so that NaN stays NaN.

@inline(never)
private func activateByReLU(_ args: ActivateArguments) { activate(args) { maximum(splat(0), $0) } }

@inline(never)
private func activateBySquare(_ args: ActivateArguments) {
    activate(args) {
        let x = maximum(splat(0), $0)
        return x * x
    }
}

/// The loop of all functions. It is transparent, so that the closure is gone before code is made.
@_transparent
private func activate(_ args: ActivateArguments, _ function: (Vector) -> Vector) {
    let threshold = splat(args.threshold)
    for row in 0..<args.rows {
        let gate = args.gate.base + row * args.gate.stride * byteCount(args.gate.type)
        let up = args.up.base + row * args.up.stride * byteCount(args.up.type)
        let y = args.y.base + row * args.y.stride * byteCount(args.y.type)
        var column = 0
        while column + laneCount <= args.columns {
            var value = function(loadLanes(gate, args.gate.type, column))
            let isSmall = magnitude(value) .<= threshold
            if args.hasUp { value = value * loadLanes(up, args.up.type, column) }
            storeLanes(value.replacing(with: splat(0), where: isSmall), y, args.y.type, column)
            column += laneCount
        }
        let rest = args.columns - column
        if rest > 0 {
            var value = function(loadLastLanes(gate, args.gate.type, column, rest, filler: 0))
            let isSmall = magnitude(value) .<= threshold
            if args.hasUp { value = value * loadLastLanes(up, args.up.type, column, rest, filler: 0) }
            storeLastLanes(value.replacing(with: splat(0), where: isSmall), y, args.y.type, column, rest)
        }
    }
}
