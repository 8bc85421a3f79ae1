/// What the patterns that split texts ask about a Unicode scalar. Sets of bits, because classes overlap.
struct ScalarClasses: OptionSet {
    let rawValue: UInt8

    /// `\p{L}`
    static let letter = ScalarClasses(rawValue: 1)
    /// `\p{N}`
    static let number = ScalarClasses(rawValue: 2)
    /// `\s`, the Unicode property White_Space
    static let space = ScalarClasses(rawValue: 4)
    /// `[\r\n]`
    static let newline = ScalarClasses(rawValue: 8)
    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`: what may begin a capitalised word
    static let upper = ScalarClasses(rawValue: 16)
    /// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`: what may continue it
    static let lower = ScalarClasses(rawValue: 32)

    /// The classes of a scalar.
    static func of(_ scalar: Unicode.Scalar) -> ScalarClasses {
        scalar.value < 128 ? ascii[Int(scalar.value)] : classify(scalar)
    }

    private static let ascii = (0..<128).map { classify(Unicode.Scalar($0)) }

    private static func classify(_ scalar: Unicode.Scalar) -> ScalarClasses {
        var classes: ScalarClasses =
            switch scalar.properties.generalCategory {
            case .uppercaseLetter, .titlecaseLetter: [.letter, .upper]
            case .lowercaseLetter: [.letter, .lower]
            case .modifierLetter, .otherLetter: [.letter, .upper, .lower]
            case .nonspacingMark, .spacingMark, .enclosingMark: [.upper, .lower]
            case .decimalNumber, .letterNumber, .otherNumber: .number
            default: []
            }
        if scalar.properties.isWhitespace { classes.insert(.space) }
        if scalar == "\r" || scalar == "\n" { classes.insert(.newline) }
        return classes
    }
}
