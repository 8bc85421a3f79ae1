// Sums of gradients to which several tasks have contributed: target[r][c] += source[r][c].

public import KernelInterface

extension Kernels {
    /// See `TrainingKernels`.
    public static func addPartialRows(
        _ source: RowOperand, count: Int, channels: Int, to target: UnsafeMutablePointer<Float>, stride: Int
    ) {
        let rows = source.base.assumingMemoryBound(to: Float.self)
        for row in 0..<count {
            let (from, to) = (rows + row * source.stride, target + row * stride)
            var x = 0
            while x + laneCount <= channels {
                store(load(to + x) + load(from + x), to + x)
                x += laneCount
            }
            while x < channels {
                to[x] += from[x]
                x += 1
            }
        }
    }
}
