// Cosines of rows with one vector p:
//
//     score = (x·p / max(‖x‖, ε)) / max(‖p‖, ε)
//
// A row is read once. Sums are those of NormalizeRows.swift: four chains of 16 vectors each are added to one vector of totals, whose
// lanes are added last.

public import KernelInterface

extension Kernels {
    /// See `CosineArguments`.
    public static func scoreCosines(_ arguments: UnsafePointer<CosineArguments>) {
        let args = arguments.pointee
        for row in 0..<args.rows {
            let sums = products(
                args.x.base + row * args.x.stride * byteCount(args.x.type), args.x.type, args.vector, args.channels)
            let norm = sums.squares.squareRoot()
            // NaN passes, which the comparison of a maximum would replace.
            args.scores[row] = sums.plain / (norm < args.epsilon ? args.epsilon : norm) / args.vectorNorm
        }
    }
}

/// Σ x·p and Σ x² of a row.
@inline(never)
private func products(
    _ x: UnsafeRawPointer, _ type: StorageType, _ p: UnsafePointer<Float>, _ channels: Int
) -> (plain: Float, squares: Float) {
    var (plain, squares) = (splat(0), splat(0))
    var channel = 0
    while channel + 4 * laneCount <= channels {
        let end = minimum(channels / (4 * laneCount) * (4 * laneCount), channel + 64 * laneCount)
        var (p0, p1, p2, p3) = (splat(0), splat(0), splat(0), splat(0))
        var (q0, q1, q2, q3) = (splat(0), splat(0), splat(0), splat(0))
        while channel < end {
            let x0 = loadLanes(x, type, channel)
            let x1 = loadLanes(x, type, channel + laneCount)
            let x2 = loadLanes(x, type, channel + 2 * laneCount)
            let x3 = loadLanes(x, type, channel + 3 * laneCount)
            p0 = multiplyAdd(x0, load(p + channel), p0)
            p1 = multiplyAdd(x1, load(p + channel + laneCount), p1)
            p2 = multiplyAdd(x2, load(p + channel + 2 * laneCount), p2)
            p3 = multiplyAdd(x3, load(p + channel + 3 * laneCount), p3)
            q0 = multiplyAdd(x0, x0, q0)
            q1 = multiplyAdd(x1, x1, q1)
            q2 = multiplyAdd(x2, x2, q2)
            q3 = multiplyAdd(x3, x3, q3)
            channel += 4 * laneCount
        }
        plain += (p0 + p1) + (p2 + p3)
        squares += (q0 + q1) + (q2 + q3)
    }
    while channel < channels {
        let lanes = loadPart(x, type, channel, channels)
        plain = multiplyAdd(lanes, loadPart(UnsafeRawPointer(p), .float32, channel, channels), plain)
        squares = multiplyAdd(lanes, lanes, squares)
        channel += laneCount
    }
    return (laneSum(plain), laneSum(squares))
}
