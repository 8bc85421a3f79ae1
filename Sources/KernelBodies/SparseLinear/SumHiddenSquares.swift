// Norms of estimated hidden values:
//
//     sums_c += Σ_t (f(g_tc) · u_tc)²        g_tc = Σ_r T_tr · G_rc        u_tc = Σ_r T_t(R+r) · U_rc
//
// Channels are lanes. Four tokens share the loads of the factors; eight sums, two factors and what the function needs fit any level's
// registers. Sums of a call are in single precision, so that a call should have tens of tokens, and those of calls in double.

public import KernelInterface

extension Kernels {
    /// `scratch` has 16 floats.
    public static func sumHiddenSquares(
        _ arguments: UnsafePointer<HiddenSquaresArguments>, scratch: UnsafeMutablePointer<Float>
    ) {
        let args = arguments.pointee
        // One loop per function, not inlined, so that the constants of one do not take the registers of another.
        switch args.function {
        case .silu: sumSquaresOfSiLU(args, scratch)
        case .gelu: sumSquaresOfGELU(args, scratch)
        case .geluTanh: sumSquaresOfTanh(args, scratch)
        case .relu: sumSquaresOfReLU(args, scratch)
        case .reluSquared: sumSquaresOfSquare(args, scratch)
        }
    }
}

@inline(never)
private func sumSquaresOfSiLU(_ args: HiddenSquaresArguments, _ scratch: UnsafeMutablePointer<Float>) {
    sumHidden(args, scratch) { silu($0) }
}

@inline(never)
private func sumSquaresOfGELU(_ args: HiddenSquaresArguments, _ scratch: UnsafeMutablePointer<Float>) {
    sumHidden(args, scratch) { gelu($0) }
}

@inline(never)
private func sumSquaresOfTanh(_ args: HiddenSquaresArguments, _ scratch: UnsafeMutablePointer<Float>) {
    sumHidden(args, scratch) { geluTanh($0) }
}

@inline(never)
private func sumSquaresOfReLU(_ args: HiddenSquaresArguments, _ scratch: UnsafeMutablePointer<Float>) {
    sumHidden(args, scratch) { maximum(splat(0), $0) }
}

@inline(never)
private func sumSquaresOfSquare(_ args: HiddenSquaresArguments, _ scratch: UnsafeMutablePointer<Float>) {
    sumHidden(args, scratch) {
        let x = maximum(splat(0), $0)
        return x * x
    }
}

/// The loop of all functions. It is transparent, so that the closure is gone before code is made.
@_transparent
private func sumHidden(
    _ args: HiddenSquaresArguments, _ scratch: UnsafeMutablePointer<Float>, _ function: (Vector) -> Vector
) {
    var channel = 0
    while channel < args.channels {
        let gate = args.gate + channel
        let up = args.up + channel
        var sum = splat(0)
        var token = 0
        while token + 4 <= args.tokens {
            let t0 = args.t + token * args.tStride
            let t1 = t0 + args.tStride
            let t2 = t1 + args.tStride
            let t3 = t2 + args.tStride
            var (g0, g1, g2, g3) = (splat(0), splat(0), splat(0), splat(0))
            var (u0, u1, u2, u3) = (splat(0), splat(0), splat(0), splat(0))
            for r in 0..<args.rank {
                let a = load(gate + r * args.factorStride)
                g0 = multiplyAdd(splat(t0[r]), a, g0)
                g1 = multiplyAdd(splat(t1[r]), a, g1)
                g2 = multiplyAdd(splat(t2[r]), a, g2)
                g3 = multiplyAdd(splat(t3[r]), a, g3)
                let b = load(up + r * args.factorStride)
                u0 = multiplyAdd(splat(t0[args.rank + r]), b, u0)
                u1 = multiplyAdd(splat(t1[args.rank + r]), b, u1)
                u2 = multiplyAdd(splat(t2[args.rank + r]), b, u2)
                u3 = multiplyAdd(splat(t3[args.rank + r]), b, u3)
            }
            let (h0, h1) = (function(g0) * u0, function(g1) * u1)
            sum = multiplyAdd(h1, h1, multiplyAdd(h0, h0, sum))
            let (h2, h3) = (function(g2) * u2, function(g3) * u3)
            sum = multiplyAdd(h3, h3, multiplyAdd(h2, h2, sum))
            token += 4
        }
        while token < args.tokens {
            let t = args.t + token * args.tStride
            var (g, u) = (splat(0), splat(0))
            for r in 0..<args.rank {
                g = multiplyAdd(splat(t[r]), load(gate + r * args.factorStride), g)
                u = multiplyAdd(splat(t[args.rank + r]), load(up + r * args.factorStride), u)
            }
            let h = function(g) * u
            sum = multiplyAdd(h, h, sum)
            token += 1
        }
        store(sum, scratch)
        let sums = args.sums + channel
        for lane in 0..<laneCount { sums[lane] += Double(scratch[lane]) }
        channel += laneCount
    }
}
