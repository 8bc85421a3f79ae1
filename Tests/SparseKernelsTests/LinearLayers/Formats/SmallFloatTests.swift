import SparseKernels
import Testing

/// Conversions to 8- and 4-bit floats, compared with a search over all values.
@Suite("E4M3 and E2M1")
struct SmallFloatTests {
    /// The codes of non-negative values, ascending. A code is even when its mantissa is.
    private static let e4m3 = (UInt8(0)..<0x7f).map { E4M3(bitPattern: $0) }

    @Test("E4M3 codes have the values of the format and come back")
    func e4m3Codes() {
        for bits in UInt8.min...UInt8.max {
            let code = E4M3(bitPattern: bits)
            if bits & 0x7f == 0x7f {
                #expect(code.floatValue.isNaN && E4M3(code.floatValue).floatValue.isNaN)
                continue
            }
            let (exponent, mantissa) = (Int(bits >> 3 & 15), Double(bits & 7))
            var value = exponent == 0 ? mantissa / 512 : 1 + mantissa / 8
            for _ in 7..<max(7, exponent) { value *= 2 }
            for _ in min(7, exponent == 0 ? 7 : exponent)..<7 { value /= 2 }
            #expect(Double(code.floatValue) == (bits >= 0x80 ? -value : value))
            #expect(E4M3(code.floatValue) == code)
        }
        #expect(E4M3(bitPattern: 0x7e).floatValue == E4M3.greatestFiniteMagnitude)
        #expect(E4M3(bitPattern: 1).floatValue == 0x1p-9)
        #expect(E4M3.elementType == .float8E4M3 && E4M3.zero.bitPattern == 0 && E4M3(1).description == "1.0")
    }

    @Test("E4M3 rounds to nearest, ties to even, at every midpoint and beside it")
    func e4m3Midpoints() {
        for (low, high) in zip(Self.e4m3, Self.e4m3.dropFirst()) {
            // The midpoint is exact, because neighbours have at most five bits together.
            let midpoint = (low.floatValue + high.floatValue) / 2
            #expect(E4M3(midpoint) == (low.bitPattern % 2 == 0 ? low : high))
            #expect(E4M3(midpoint.nextDown) == low && E4M3(midpoint.nextUp) == high)
            #expect(E4M3(-midpoint.nextDown).bitPattern == low.bitPattern | 0x80)
            #expect(E4M3(-midpoint.nextUp).bitPattern == high.bitPattern | 0x80)
        }
    }

    @Test("E4M3 saturates, also for infinities")
    func e4m3Saturation() {
        for value: Float in [448, 449, 464, 480, 1e30, .infinity] {
            #expect(E4M3(value).floatValue == 448 && E4M3(-value).floatValue == -448)
        }
        #expect(E4M3(-.nan).bitPattern == 0xff && E4M3(-0.0).bitPattern == 0x80)
        #expect(E4M3(.leastNonzeroMagnitude).bitPattern == 0)
    }

    @Test("E2M1 rounds to nearest at every midpoint and beside it, ties as asked")
    func e2m1Midpoints() {
        for code in 0..<16 {
            #expect(E2M1.code(for: E2M1.value(ofCode: code), ties: .toEven) == code)
            #expect(E2M1.code(for: E2M1.value(ofCode: code), ties: .towardZero) == (code == 8 ? 0 : code))
        }
        for low in 0..<7 {
            let midpoint = (E2M1.value(ofCode: low) + E2M1.value(ofCode: low + 1)) / 2
            #expect(E2M1.code(for: midpoint, ties: .toEven) == low + low % 2)
            #expect(E2M1.code(for: midpoint, ties: .towardZero) == low)
            #expect(E2M1.code(for: -midpoint, ties: .toEven) == low + low % 2 + 8)
            #expect(E2M1.code(for: -midpoint, ties: .towardZero) == (low == 0 ? 0 : low + 8))
            for ties in E2M1.Ties.allCases {
                #expect(E2M1.code(for: midpoint.nextDown, ties: ties) == low)
                #expect(E2M1.code(for: midpoint.nextUp, ties: ties) == low + 1)
                #expect(E2M1.code(for: -midpoint.nextUp, ties: ties) == low + 9)
            }
        }
    }

    @Test("E2M1 saturates; small negative values keep their sign on the GPU and lose it in the converter")
    func e2m1Extremes() {
        for value: Float in [6, 7, 1e30, .infinity] {
            for ties in E2M1.Ties.allCases {
                #expect(E2M1.code(for: value, ties: ties) == 7 && E2M1.code(for: -value, ties: ties) == 15)
            }
        }
        #expect(E2M1.code(for: -0.1, ties: .toEven) == 8 && E2M1.code(for: -0.1, ties: .towardZero) == 0)
        #expect(E2M1.code(for: -0.0, ties: .toEven) == 8 && E2M1.code(for: -0.0, ties: .towardZero) == 0)
        #expect(E2M1.code(for: .nan, ties: .toEven) == 7 && E2M1.code(for: .nan, ties: .towardZero) == 0)
    }
}
