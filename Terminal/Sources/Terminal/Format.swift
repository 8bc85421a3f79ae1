import Foundation

/// Numbers in the formats for people. A missing number is an empty cell; a value that is not a number is shown as such.
public enum Format {
    /// Three significant digits, without exponent if that is short: 0.00123, 1.23, 12.3, 123, 123456.
    public static func number(_ value: Double?) -> String {
        guard let value else { return "" }
        guard value.isFinite else { return special(value) }
        guard value != 0 else { return "0" }
        let size = abs(value)
        // The limits take rounding into account: 9.996 is "10.0", not "10.00".
        if size >= 999_999.5 || size < 0.000_999_5 { return scientific(value) }
        let decimals = [99.95, 9.995, 0.9995, 0.09995, 0.009995].firstIndex { size >= $0 } ?? 5
        return fixed(value, decimals: decimals)
    }

    /// Percent with one decimal, or two below one percent: 0.1234 is 12.3.
    public static func percent(_ fraction: Double?) -> String {
        guard let fraction else { return "" }
        guard fraction.isFinite else { return special(fraction) }
        let value = fraction * 100
        return fixed(value, decimals: value != 0 && abs(value) < 0.995 ? 2 : abs(value) < 999.95 ? 1 : 0)
    }

    /// Two significant digits: 3.1e-07. Zero, which means bitwise equality, is "0".
    public static func scientific(_ value: Double?) -> String {
        guard let value else { return "" }
        guard value.isFinite else { return special(value) }
        return value == 0 ? "0" : String(format: "%.1e", value)
    }

    /// Seconds in the form 8 s, 3 min 20 s or 2 h 05 min.
    public static func duration(_ seconds: Double) -> String {
        guard seconds.isFinite, seconds < 1e9 else { return "?" }
        let whole = Int(max(0, seconds).rounded())
        if whole < 60 { return "\(whole) s" }
        if whole < 3600 { return String(format: "%d min %02d s", whole / 60, whole % 60) }
        return String(format: "%d h %02d min", whole / 3600, whole / 60 % 60)
    }

    /// A number with so many digits behind the point, for columns in which small differences count.
    public static func fixed(_ value: Double, _ decimals: Int) -> String {
        value.isFinite ? fixed(value, decimals: decimals) : special(value)
    }

    static func fixed(_ value: Double, decimals: Int) -> String {
        String(format: "%.\(decimals)f", value)
    }

    private static func special(_ value: Double) -> String {
        value.isNaN ? "nan" : value > 0 ? "inf" : "-inf"
    }
}
