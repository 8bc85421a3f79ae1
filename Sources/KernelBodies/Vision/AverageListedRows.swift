// The mean of listed rows, written into the first of them:  x[r₀] ← (x[r₀] + x[r₁] + …) / n, in this order.
//
// The first row stays in the cache while the others pass by, each read once from its start to its end.

extension Kernels {
    public static func averageListedRows(
        _ x: UnsafeMutablePointer<Float>, stride: Int, rows: UnsafePointer<Int32>, count: Int, channels: Int
    ) {
        let target = x + Int(rows[0]) * stride
        for index in 1..<count {
            let row = UnsafePointer(x + Int(rows[index]) * stride)
            let divisor = index + 1 == count ? Float(count) : 1
            var channel = 0
            while channel + laneCount <= channels {
                store((load(target + channel) + load(row + channel)) / splat(divisor), target + channel)
                channel += laneCount
            }
            while channel < channels {
                target[channel] = (target[channel] + row[channel]) / divisor
                channel += 1
            }
        }
    }
}
