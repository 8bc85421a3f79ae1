// Sums of each channel over rows, for the means of keys and of blocks.

public import KernelInterface

extension Kernels {
    public static func sumRows(
        _ operand: UnsafePointer<RowOperand>, from first: Int, to end: Int, channels: Int,
        staging: UnsafeMutablePointer<Float>, into sums: UnsafeMutablePointer<Float>
    ) {
        for channel in 0..<channels { sums[channel] = 0 }
        for token in first..<end {
            Kernels.stageRows(operand.pointee, first: token, count: 1, channels: channels, into: staging)
            for channel in 0..<channels { sums[channel] += staging[channel] }
        }
    }
}
