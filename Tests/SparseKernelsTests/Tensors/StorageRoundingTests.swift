import Testing

@testable import SparseKernels

@Suite("Rounding to storage types")
struct StorageRoundingTests {
    @Test("rounding to half precision is what Float16 does")
    func half() {
        var patterns: [UInt32] = []
        // Every exponent, with significands around every point where rounding turns.
        for exponent in UInt32(0)...255 {
            for significand in [
                0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x2fff, 0x3000, 0x3001, 0x7fefff, 0x7ff000, 0x7fffff,
            ] {
                patterns.append(exponent << 23 | UInt32(significand))
            }
        }
        for pattern in patterns {
            for value in [Float(bitPattern: pattern), -Float(bitPattern: pattern)] {
                let (rounded, expected) = (roundedToHalf(value), Float(Float16(value)))
                #expect(rounded.isNaN ? expected.isNaN : rounded.bitPattern == expected.bitPattern, "\(value)")
            }
        }
    }
}
