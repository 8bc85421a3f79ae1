// The extremes of a row of weights, and rounding, as loops that the compiler vectorises on every baseline. Extremes compare the
// bits as integers, because floating-point maxima have a rule for NaN that vector instructions do not follow. NaN and
// infinities are beyond every number, so a result that is not finite shows that there is one.

/// The largest magnitude among `count` values.
@inline(__always)
func largestMagnitude(_ values: UnsafePointer<Float>, _ count: Int) -> Float {
    var largest: Int32 = 0
    for index in 0..<count {
        let bits = Int32(bitPattern: values[index].bitPattern & 0x7fff_ffff)
        largest = bits > largest ? bits : largest
    }
    return Float(bitPattern: UInt32(bitPattern: largest))
}

/// The smallest and the largest among `count` values and zero.
@inline(__always)
func rangeWithZero(_ values: UnsafePointer<Float>, _ count: Int) -> (low: Float, high: Float) {
    // The bits of negative values, with all bits except the sign flipped, have the order of the values.
    func ordered(_ bits: Int32) -> Int32 { bits ^ ((bits >> 31) & 0x7fff_ffff) }
    var (low, high): (Int32, Int32) = (0, 0)
    for index in 0..<count {
        let key = ordered(Int32(bitPattern: values[index].bitPattern))
        low = key < low ? key : low
        high = key > high ? key : high
    }
    return (
        Float(bitPattern: UInt32(bitPattern: ordered(low))), Float(bitPattern: UInt32(bitPattern: ordered(high)))
    )
}

/// The nearest integer, ties to even, for |x| ≤ 2²²: in the sum with 1½ · 2²³ the last bit is a unit. `rounded()` is a library
/// call where the baseline has no instruction for it.
@inline(__always)
func roundedToInteger(_ x: Float) -> Int32 {
    Int32(bitPattern: (x + 12_582_912).bitPattern) &- 0x4b40_0000
}

/// `value` within `low...high`; NaN gives `low`.
@inline(__always)
func clamped(_ value: Float, _ low: Float, _ high: Float) -> Float {
    let raised = value > low ? value : low
    return raised < high ? raised : high
}
