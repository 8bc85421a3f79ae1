import Foundation
import Testing

/// What the how-to says about kernels and instruction sets, compared with their sources.
@Suite("Lists of kernels")
struct KernelListTests {
    private static func names(_ path: String, _ declaration: Regex<(Substring, Substring)>) throws -> Set<String> {
        Set(try ProjectFiles.text(path).matches(of: declaration).map { String($0.output.1) })
    }

    @Test("the how-to lists exactly the primitives that a level supplies", arguments: ["Portable", "AVX2", "AVX512"])
    func primitives(_ level: String) throws {
        let supplied = try Self.names("Sources/Vector\(level)/Vector.swift", /public (?:typealias|func|var) (\w+)/)
        let guide = try ProjectFiles.text("Docs/Project/KernelsHowTo.md")
        let section = try #require(guide.components(separatedBy: "## Add an instruction set").last)
        let list = try #require(section.components(separatedBy: "Everything else is in `VectorShared`").first)
        var listed: Set<String> = []
        for row in list.split(separator: "\n").map({ $0.trimmingCharacters(in: .whitespaces) }) where row.hasPrefix("| `") {
            let cell = row.split(separator: "|")[0]
            for match in cell.matches(of: /`(\w+)`/) { listed.insert(String(match.output.1)) }
        }
        #expect(supplied.subtracting(listed).sorted() == [], "supplied and not listed")
        #expect(listed.subtracting(supplied).sorted() == [], "listed and not supplied")
    }

    @Test("a kernel of the table is in the file of its name")
    func bodies() throws {
        let table = try ProjectFiles.text("Sources/KernelInterface/KernelTable.swift")
        let bodies = ProjectFiles.root.appendingPathComponent("Sources/KernelBodies")
        let files = try FileManager.default.subpathsOfDirectory(atPath: bodies.path)
        let roofs = try #require(
            table.components(separatedBy: "protocol RoofKernels").last?.components(separatedBy: "\n}").first)
        var count = 0
        for match in table.matches(of: /static func (\w+)\(/) {
            let name = String(match.output.1)
            let isRoof = roofs.contains("func \(name)(")
            let file = isRoof ? "MachineRoofs.swift" : name.prefix(1).uppercased() + name.dropFirst() + ".swift"
            let path = try #require(files.first { $0 == file || $0.hasSuffix("/" + file) }, "no file \(file)")
            #expect(
                try ProjectFiles.text("Sources/KernelBodies/\(path)").contains("public static func \(name)("),
                "\(name) in \(path)")
            count += 1
        }
        #expect(count > 15)
    }
}
