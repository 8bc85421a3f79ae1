// The elementary functions and conversions, applied to arrays, so that tests can compare each of them with the oracle on every
// instruction set. Scoring operators exponentiate rows of scores with it; attention inlines the primitives.

public import KernelInterface

extension Kernels {
    /// destination[i] = primitive(source[i]) for i < count, where count is a multiple of `laneCount`. Half-precision values are
    /// a `UInt16` array at the pointer.
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
