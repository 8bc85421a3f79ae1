/// The 4-bit float of NVFP4 and MXFP4: sign, two exponent bits, one mantissa bit.
public enum E2M1 {
    /// Twice the magnitudes of codes 0…7: small integers, so that products are exact.
    static let doubledMagnitudes = [0, 1, 2, 3, 4, 6, 8, 12]

    /// Twice the value of a code 0…15.
    public static func doubledValue(ofCode code: Int) -> Int {
        let magnitude = doubledMagnitudes[code & 7]
        return code & 8 == 0 ? magnitude : -magnitude
    }
}
