/// The values that the weights of one group can take. Only an integer per weight remains to be chosen.
///
/// Codes are those of `QuantizedWeight.code(row:column:)`: −8…7, 0…15, −128…127, or twice the value for E2M1.
public struct GroupGrid: Hashable, Sendable {
    /// The kind of code.
    public let kind: WeightFormat.Code
    /// The value of code 1 before the channel scale. For E2M1 it is the factor of the value 1, whose code is 2.
    public let scale: Float
    /// The offset that is subtracted from scale · code.
    public let offset: Float
    /// The factor of the row.
    public let channelScale: Float

    /// The number by which weights are divided.
    let divisor: Float
    /// The integer that stands for 0: offset / scale for unsigned codes.
    let zeroPoint: Float

    @inline(__always)
    init(kind: WeightFormat.Code, scale: Float, offset: Float = 0, channelScale: Float = 1) {
        self.kind = kind
        self.scale = scale
        self.offset = offset
        self.channelScale = channelScale
        divisor = scale * channelScale
        zeroPoint = offset == 0 ? 0 : Float(roundedToInteger(clamped(offset / scale, 0, 15)))
    }

    /// The code of the value nearest to `value`, as round-to-nearest quantisers choose it: the quotient rounded to nearest even
    /// within the symmetric range, or for E2M1 to nearest with ties toward zero. NaN gives the lowest code, but for E2M1 code
    /// 0.
    @inline(__always)
    public func code(_ value: Float) -> Int { Int(nearestCode(value)) }

    /// The value of a code.
    @inline(__always)
    public func value(ofCode code: Int) -> Float {
        (step * Float(code) - offset) * channelScale
    }

    /// The factor of a code.
    @inline(__always)
    var step: Float { kind == .fp4 ? scale / 2 : scale }

    @inline(__always)
    private func nearestCode(_ value: Float) -> Int32 {
        switch kind {
        case .int4: roundedToInteger(clamped(value / divisor, -7, 7))
        case .int8: roundedToInteger(clamped(value / divisor, -127, 127))
        case .uint4: roundedToInteger(clamped(value / divisor, -zeroPoint, 15 - zeroPoint)) &+ Int32(zeroPoint)
        case .fp4: E2M1.doubledValue(nearest: value / divisor)
        }
    }

    /// Writes the codes of `count` weights.
    @inline(__always)
    func quantize(_ values: UnsafePointer<Float>, _ count: Int, into codes: UnsafeMutablePointer<Int8>) {
        // One loop per kind, so that no iteration has a branch.
        switch kind {
        case .int4:
            for index in 0..<count {
                codes[index] = Int8(truncatingIfNeeded: roundedToInteger(clamped(values[index] / divisor, -7, 7)))
            }
        case .int8:
            for index in 0..<count {
                codes[index] = Int8(truncatingIfNeeded: roundedToInteger(clamped(values[index] / divisor, -127, 127)))
            }
        case .uint4:
            let (low, high, zero) = (-zeroPoint, 15 - zeroPoint, Int32(zeroPoint))
            for index in 0..<count {
                codes[index] = Int8(truncatingIfNeeded: roundedToInteger(clamped(values[index] / divisor, low, high)) &+ zero)
            }
        case .fp4:
            for index in 0..<count {
                codes[index] = Int8(truncatingIfNeeded: E2M1.doubledValue(nearest: values[index] / divisor))
            }
        }
    }

    /// Writes the values of `count` codes.
    @inline(__always)
    func dequantize(_ codes: UnsafePointer<Int8>, _ count: Int, into values: UnsafeMutablePointer<Float>) {
        let step = step
        for index in 0..<count { values[index] = (step * Float(codes[index]) - offset) * channelScale }
    }
}
