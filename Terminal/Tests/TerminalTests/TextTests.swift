import Terminal
import Testing

@Suite struct TextTests {
    @Test func numbersHaveThreeDigits() {
        let expected: [(Double, String)] = [
            (0, "0"), (0.001234, "0.00123"), (0.01234, "0.0123"), (0.9996, "1.00"), (9.996, "10.0"), (99.96, "100"),
            (123.4, "123"), (123456, "123456"), (1.2e7, "1.2e+07"), (-1.234, "-1.23"), (1e-5, "1.0e-05"),
        ]
        for (value, text) in expected { #expect(Format.number(value) == text) }
        #expect(Format.number(nil) == "" && Format.number(.nan) == "nan")
        #expect(Format.percent(0.00123) == "0.12" && Format.percent(1) == "100.0")
        #expect(Format.duration(59.6) == "1 min 00 s" && Format.duration(7500) == "2 h 05 min")
    }

    @Test func columnsAreAsWideAsWhatStandsInThem() {
        let columns: [TextTable.Column] = [
            .init("Case", width: 6, alignment: .left), .init("Median", "ms"), .init("Thr", width: 2),
        ]
        let table = TextTable(columns)
        #expect(table.header == ["Case    Median  Thr", "            ms     ", String(repeating: "─", count: 19)])
        #expect(table.line(["tiny", "1.23", "16"]) == "tiny      1.23   16")
        // Columns are one space apart where two do not fit.
        #expect(TextTable(columns, lineWidth: 18).line(["tiny", "1.23", "16"]) == "tiny     1.23  16")
        #expect(TextTable(columns, lineWidth: 19).line(["tiny", "1.23", "16"]).count == 19)
    }
}
