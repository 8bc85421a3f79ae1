// Cosines between the consecutive rows of a chain: the tokens of one place in consecutive frames.
//
//     cos(a, b) = a·b / (√(a·a) · √(b·b))
//
// Each row is read from memory once: it is compared with its predecessor, which is still in the cache, and its own square is kept for
// its successor. Products and squares are summed in four chains of vectors each.
//
// Chains of up to 16 vectors are added to one vector of totals, whose lanes are added last, so that a sum of n terms passes
// through at most 16 + 2 + ⌈n / 64L⌉ + log₂ L additions for L lanes.

public import KernelInterface

extension Kernels {
    public static func compareRowChain(_ arguments: UnsafePointer<RowChainArguments>) {
        let args = arguments.pointee
        if args.count == 0 { return }
        let bytes = args.x.stride * byteCount(args.x.type)
        var before = args.x.base + Int(args.rows[0]) * bytes
        var squareBefore = products(before, before, args.x.type, args.channels).squares
        for index in 1..<args.count {
            let row = args.x.base + Int(args.rows[index]) * bytes
            let sums = products(row, before, args.x.type, args.channels)
            // Roots before the product, which may be out of range where its root is not.
            let size = sums.squares.squareRoot() * squareBefore.squareRoot()
            args.similarities[Int(args.rows[index])] = size == 0 ? 0 : sums.product / size
            before = row
            squareBefore = sums.squares
        }
    }
}

/// Σ a·b and Σ a² of two rows.
@inline(never)
private func products(
    _ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ type: StorageType, _ channels: Int
) -> (product: Float, squares: Float) {
    var (product, squares) = (splat(0), splat(0))
    var channel = 0
    while channel + 4 * laneCount <= channels {
        let end = minimum(channels / (4 * laneCount) * (4 * laneCount), channel + 64 * laneCount)
        var (p0, p1, p2, p3) = (splat(0), splat(0), splat(0), splat(0))
        var (q0, q1, q2, q3) = (splat(0), splat(0), splat(0), splat(0))
        while channel < end {
            let a0 = loadLanes(a, type, channel)
            let a1 = loadLanes(a, type, channel + laneCount)
            let a2 = loadLanes(a, type, channel + 2 * laneCount)
            let a3 = loadLanes(a, type, channel + 3 * laneCount)
            p0 = multiplyAdd(a0, loadLanes(b, type, channel), p0)
            p1 = multiplyAdd(a1, loadLanes(b, type, channel + laneCount), p1)
            p2 = multiplyAdd(a2, loadLanes(b, type, channel + 2 * laneCount), p2)
            p3 = multiplyAdd(a3, loadLanes(b, type, channel + 3 * laneCount), p3)
            q0 = multiplyAdd(a0, a0, q0)
            q1 = multiplyAdd(a1, a1, q1)
            q2 = multiplyAdd(a2, a2, q2)
            q3 = multiplyAdd(a3, a3, q3)
            channel += 4 * laneCount
        }
        product += (p0 + p1) + (p2 + p3)
        squares += (q0 + q1) + (q2 + q3)
    }
    while channel < channels {
        let (x, y) = (loadPart(a, type, channel, channels), loadPart(b, type, channel, channels))
        product = multiplyAdd(x, y, product)
        squares = multiplyAdd(x, x, squares)
        channel += laneCount
    }
    return (laneSum(product), laneSum(squares))
}
