// Copies rows by index, for tokens in another order. A row is a few cache lines, so the hardware fetches each from wherever it is.

public import KernelInterface

extension Kernels {
    public static func gatherRows(
        _ operand: RowOperand, order: UnsafePointer<Int32>, count: Int, channels: Int,
        into destination: UnsafeMutablePointer<Float>
    ) {
        for row in 0..<count {
            Kernels.stageRows(operand, first: Int(order[row]), count: 1, channels: channels, into: destination + row * channels)
        }
    }
}
