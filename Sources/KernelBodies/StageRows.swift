// Conversion of rows of any storage type to adjacent floats, for kernels whose tiles read floats.

public import KernelInterface

extension Kernels {
    /// Copies rows to adjacent floats, from row `first` on.
    @inline(never)
    public static func stageRows(
        _ operand: RowOperand, first: Int, count: Int, channels: Int, into destination: UnsafeMutablePointer<Float>
    ) {
        let whole = channels / laneCount * laneCount
        for row in 0..<count {
            let target = destination + row * channels
            let start = (first + row) * operand.stride
            switch operand.type {
            case .float32:
                let source = operand.base.assumingMemoryBound(to: Float.self) + start
                for x in 0..<whole / laneCount { store(load(source + x * laneCount), target + x * laneCount) }
            case .float16:
                let source = operand.base.assumingMemoryBound(to: UInt16.self) + start
                for x in 0..<whole / laneCount { store(loadHalf(source + x * laneCount), target + x * laneCount) }
            case .bfloat16:
                let source = operand.base.assumingMemoryBound(to: UInt16.self) + start
                for x in 0..<whole / laneCount { store(loadBFloat16(source + x * laneCount), target + x * laneCount) }
            }
            for channel in whole..<channels { target[channel] = element(operand, first + row, channel) }
        }
    }
}

/// One element of a row as a float.
@_transparent
func element(_ operand: RowOperand, _ row: Int, _ channel: Int) -> Float {
    let index = row * operand.stride + channel
    switch operand.type {
    case .float32: return operand.base.assumingMemoryBound(to: Float.self)[index]
    case .float16: return widenHalf(operand.base.assumingMemoryBound(to: UInt16.self)[index])
    case .bfloat16: return Float(bitPattern: UInt32(operand.base.assumingMemoryBound(to: UInt16.self)[index]) << 16)
    }
}
