import Testing

@testable import Terminal

@Suite("Long names in tables")
struct NameColumnTests {
    @Test("short names are whole, and the column is as wide as the widest")
    func shortNames() {
        let column = NameColumn(["a", "layers.0", "layers.10"], limit: 20)
        #expect(column.width == 9 && ["a", "layers.0", "layers.10"].allSatisfy { column.text($0) == $0 })
        #expect(NameColumn([], limit: 20).width == 0)
    }

    @Test("what tells names apart stays, wherever it stands", arguments: [0, 1, 10, 29, 45, 59])
    func differences(_ place: Int) {
        let names = (0..<100).map { number in
            var name = Array(repeating: Character("x"), count: 60)
            let digits = Array(String(number + 100).suffix(2))
            name.replaceSubrange(place..<min(60, place + 2), with: digits)
            return String(name)
        }
        let column = NameColumn(names + ["short"], limit: 24)
        let texts = names.map(column.text)
        #expect(Set(texts).count == Set(names).count && column.width == 24 && column.text("short") == "short")
        #expect(texts.allSatisfy { $0.count <= 24 && $0.contains("…") })
    }

    @Test("names that differ in many places, or look like a shortened one, stay different")
    func hardCases() {
        let long = String(repeating: "x", count: 30)
        // A digit at every place in turn, so that no cut keeps them all.
        let scattered = (0..<30).map { long.prefix($0) + "7" + long.dropFirst($0 + 1) }.map(String.init)
        let column = NameColumn(scattered + [long], limit: 12)
        let texts = (scattered + [long]).map(column.text)
        #expect(Set(texts).count == 31 && texts.allSatisfy { $0.count <= 12 })
        let twin = NameColumn([long], limit: 12).text(long)
        let pair = NameColumn([long, twin], limit: 12)
        #expect(pair.text(twin) == twin && pair.text(long) != twin && pair.text(long).count <= 12)
        // A name that is not in the table.
        #expect(column.text(String(repeating: "y", count: 50)).count == 12)
    }
}
