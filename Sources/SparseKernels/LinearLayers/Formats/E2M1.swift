/// The 4-bit float of NVFP4 and MXFP4: sign, two exponent bits, one mantissa bit; ±{0, ½, 1, 1½, 2, 3, 4, 6}.
///
/// Codes are 0…15, with the sign in bit 3.
public enum E2M1 {
    /// The rule by which a midpoint between two values is rounded.
    public enum Ties: Hashable, Sendable, CaseIterable {
        /// To the value with an even mantissa bit: 0, 1, 2 or 4. The GPU rounds activations so.
        case toEven
        /// To the smaller magnitude. The converter of SVDQuant checkpoints rounds weights so.
        case towardZero
    }

    /// The largest magnitude.
    public static let greatestFiniteMagnitude: Float = 6

    /// Twice the magnitudes of codes 0…7, which are small integers, so that products are exact.
    static let doubledMagnitudes = [0, 1, 2, 3, 4, 6, 8, 12]

    /// Twice the value of a code 0…15.
    public static func doubledValue(ofCode code: Int) -> Int {
        let magnitude = doubledMagnitudes[code & 7]
        return code & 8 == 0 ? magnitude : -magnitude
    }

    /// The value of a code 0…15. Code 8 is −0.
    public static func value(ofCode code: Int) -> Float {
        Float(signOf: code & 8 == 0 ? 1 : -1, magnitudeOf: Float(doubledMagnitudes[code & 7]) / 2)
    }

    /// The code 0…15 of the value nearest to `value`. Values beyond ±6 become ±6.
    ///
    /// Ties toward zero never give code 8, which is −0: small negative values become +0, as in the converter, which takes the
    /// first nearest of {0, ½, … 6, −0, −½, … −6}. Ties to even keep the sign, and NaN becomes 6, as on the GPU.
    ///
    /// - Source: `deepcompressor/backend/nunchaku` (converter); `cvt.rn.satfinite.e2m1x2.f32` of PTX (GPU).
    public static func code(for value: Float, ties: Ties) -> Int {
        let magnitude = value.magnitude
        var index = 0
        for boundary in 0..<7 {
            let midpoint = Float(doubledMagnitudes[boundary] + doubledMagnitudes[boundary + 1]) / 4
            // A tie above an odd code is rounded up to the even one.
            let goesUp = ties == .toEven && boundary % 2 == 1
            if magnitude > midpoint || (goesUp && magnitude == midpoint) { index = boundary + 1 }
        }
        switch ties {
        case .toEven: return value.isNaN ? 7 : index | (value.sign == .minus ? 8 : 0)
        case .towardZero: return index | (value < 0 && index > 0 ? 8 : 0)
        }
    }

    /// Twice the nearest value: `doubledValue(ofCode: code(for: value, ties: .towardZero))` without branches. NaN gives 0.
    @inline(__always)
    static func doubledValue(nearest value: Float) -> Int32 {
        let magnitude = value.magnitude
        var doubled: Int32 = magnitude > 0.25 ? 1 : 0
        doubled &+= magnitude > 0.75 ? 1 : 0
        doubled &+= magnitude > 1.25 ? 1 : 0
        doubled &+= magnitude > 1.75 ? 1 : 0
        doubled &+= magnitude > 2.5 ? 2 : 0
        doubled &+= magnitude > 3.5 ? 2 : 0
        doubled &+= magnitude > 5 ? 4 : 0
        return value < 0 ? 0 &- doubled : doubled
    }

    /// The code of twice a value, −12…12; nil when no code has that value.
    static func code(ofDoubledValue doubled: Int) -> Int? {
        guard let index = doubledMagnitudes.firstIndex(of: abs(doubled)) else { return nil }
        return index | (doubled < 0 ? 8 : 0)
    }
}
