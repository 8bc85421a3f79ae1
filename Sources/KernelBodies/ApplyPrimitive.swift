// The elementary functions and conversions, applied to arrays, so that tests can hold every one of them on every instruction
// set against the oracle. Attention inlines the primitives; scoring operators exponentiate rows of scores here.

public import KernelInterface

extension Kernels {
    /// destination[i] = primitive(source[i]) for i < count; count is a multiple of `laneCount`. Half-precision values are the low 16
    /// bits of a lane, as a `UInt16` array that starts at the pointer.
    public static func applyPrimitive(
        _ primitive: Primitive, from source: UnsafeRawPointer, to destination: UnsafeMutableRawPointer, count: Int
    ) {
        let floats = source.assumingMemoryBound(to: Float.self)
        let halves = source.assumingMemoryBound(to: UInt16.self)
        let results = destination.assumingMemoryBound(to: Float.self)
        var x = 0
        while x < count {
            switch primitive {
            case .exp: store(exp(load(floats + x)), results + x)
            case .tanh: store(tanh(load(floats + x)), results + x)
            case .widenHalf: store(loadHalf(halves + x), results + x)
            case .widenBFloat16: store(loadBFloat16(halves + x), results + x)
            case .narrowToHalf:
                for lane in 0..<laneCount {
                    destination.assumingMemoryBound(to: UInt16.self)[x + lane] = narrowToHalf(floats[x + lane])
                }
            case .narrowToBFloat16:
                for lane in 0..<laneCount {
                    destination.assumingMemoryBound(to: UInt16.self)[x + lane] = narrowToBFloat16(floats[x + lane])
                }
            }
            x += laneCount
        }
    }
}
