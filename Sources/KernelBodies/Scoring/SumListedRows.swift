// Sums of each channel over rows given by index, for the means of clusters.

public import KernelInterface

extension Kernels {
    public static func sumListedRows(
        _ operand: UnsafePointer<RowOperand>, rows: UnsafePointer<Int32>, count: Int, channels: Int,
        staging: UnsafeMutablePointer<Float>, into sums: UnsafeMutablePointer<Float>
    ) {
        for channel in 0..<channels { sums[channel] = 0 }
        let source = operand.pointee
        for index in 0..<count {
            let row = Int(rows[index])
            if source.type == .float32 {
                let x = source.base.assumingMemoryBound(to: Float.self) + row * source.stride
                for channel in 0..<channels { sums[channel] += x[channel] }
            } else {
                Kernels.stageRows(source, first: row, count: 1, channels: channels, into: staging)
                for channel in 0..<channels { sums[channel] += staging[channel] }
            }
        }
    }
}
