// Σ x², in `Double`: the squares of floats are exact there, and do not overflow. Eight chains hide the latency of additions, so that memory
// bounds the sum.

extension Kernels {
    public static func sumSquares(_ x: UnsafePointer<Float>, count: Int) -> Double {
        var (s0, s1, s2, s3) = (0.0, 0.0, 0.0, 0.0)
        var (s4, s5, s6, s7) = (0.0, 0.0, 0.0, 0.0)
        var index = 0
        while index + 8 <= count {
            s0 += squareOfElement(x, index)
            s1 += squareOfElement(x, index + 1)
            s2 += squareOfElement(x, index + 2)
            s3 += squareOfElement(x, index + 3)
            s4 += squareOfElement(x, index + 4)
            s5 += squareOfElement(x, index + 5)
            s6 += squareOfElement(x, index + 6)
            s7 += squareOfElement(x, index + 7)
            index += 8
        }
        while index < count {
            s0 += squareOfElement(x, index)
            index += 1
        }
        return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    }
}

@_transparent
private func squareOfElement(_ x: UnsafePointer<Float>, _ index: Int) -> Double { Double(x[index]) * Double(x[index]) }
