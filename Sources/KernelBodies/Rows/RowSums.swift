// Sums are vertical: four chains of 16 vectors each are added to one vector of totals, whose lanes are added last. A sum of n terms
// passes through at most 16 + 2 + ⌈n / 64L⌉ + log₂ L additions for L lanes: 53 for 16384 channels on AVX2, 84 on the portable level.
// Its error is at most that many units of 2⁻²⁴ of the sum of magnitudes.

import KernelInterface

/// Σ (x − c) and Σ (x − c)² of a row.
@inline(never)
func rowSums(
    _ base: UnsafeRawPointer, _ type: StorageType, _ channels: Int, minus center: Float
) -> (plain: Float, squares: Float) {
    let c = splat(center)
    var (plain, squares) = (splat(0), splat(0))
    var channel = 0
    while channel + 4 * laneCount <= channels {
        let end = minimum(channels / (4 * laneCount) * (4 * laneCount), channel + 64 * laneCount)
        var (p0, p1, p2, p3) = (splat(0), splat(0), splat(0), splat(0))
        var (q0, q1, q2, q3) = (splat(0), splat(0), splat(0), splat(0))
        while channel < end {
            let d0 = loadLanes(base, type, channel) - c
            let d1 = loadLanes(base, type, channel + laneCount) - c
            let d2 = loadLanes(base, type, channel + 2 * laneCount) - c
            let d3 = loadLanes(base, type, channel + 3 * laneCount) - c
            (p0, p1, p2, p3) = (p0 + d0, p1 + d1, p2 + d2, p3 + d3)
            q0 = multiplyAdd(d0, d0, q0)
            q1 = multiplyAdd(d1, d1, q1)
            q2 = multiplyAdd(d2, d2, q2)
            q3 = multiplyAdd(d3, d3, q3)
            channel += 4 * laneCount
        }
        plain += (p0 + p1) + (p2 + p3)
        squares += (q0 + q1) + (q2 + q3)
    }
    while channel < channels {
        let count = channels - channel
        // Missing lanes are the centre, so that they add nothing.
        let x =
            count >= laneCount
            ? loadLanes(base, type, channel) : loadLastLanes(base, type, channel, count, filler: center)
        let d = x - c
        plain += d
        squares = multiplyAdd(d, d, squares)
        channel += laneCount
    }
    return (laneSum(plain), laneSum(squares))
}
