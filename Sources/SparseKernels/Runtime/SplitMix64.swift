/// A small random generator with the same bits on every platform, so that a seed identifies a rotation or a failing case.
///
/// - Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
public struct SplitMix64: RandomNumberGenerator, Sendable {
    private var state: UInt64

    public init(seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    /// A uniform number in [0, 1) with 24 random bits, which a `Float` represents exactly.
    public mutating func uniform() -> Float { Float(next() >> 40) * 0x1p-24 }

    /// An approximately normal number with mean 0 and variance 1: the sum of twelve uniforms minus 6 (Irwin–Hall). It needs no
    /// library function whose last bit could differ between platforms.
    public mutating func normal() -> Float {
        var sum: Float = -6
        for _ in 0..<12 { sum += uniform() }
        return sum
    }
}
