// Writes rows by index, the inverse of GatherRows.swift, in the caller's type.

public import KernelInterface

extension Kernels {
    public static func scatterRows(
        _ source: UnsafePointer<Float>, order: UnsafePointer<Int32>, count: Int, channels: Int,
        into destination: UnsafeMutableRawPointer, stride: Int, type: StorageType
    ) {
        for row in 0..<count {
            let from = source + row * channels
            let offset = Int(order[row]) * stride
            switch type {
            case .float32:
                let to = destination.assumingMemoryBound(to: Float.self) + offset
                for channel in 0..<channels { to[channel] = from[channel] }
            case .float16:
                let to = destination.assumingMemoryBound(to: UInt16.self) + offset
                for channel in 0..<channels { to[channel] = narrowToHalf(from[channel]) }
            case .bfloat16:
                let to = destination.assumingMemoryBound(to: UInt16.self) + offset
                for channel in 0..<channels { to[channel] = narrowToBFloat16(from[channel]) }
            }
        }
    }
}
