import Foundation
import Testing

/// Every Swift block of the guides is compiled and run: it stands, line for line, in a test of this folder.
@Suite("Snippets of the guides")
struct SnippetTests {
    private static let tests = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    private static let package = tests.appendingPathComponent("../..").standardizedFileURL

    /// Lines without indentation, and without empty ones and imports.
    private static func lines(_ text: Substring) -> [String] {
        text.split(separator: "\n").map { $0.trimmingCharacters(in: .whitespaces) }
            .filter { !$0.isEmpty && !$0.hasPrefix("import ") }
    }

    /// README and every guide that has a Swift block.
    private static let guides: [String] = {
        let docs = (try? FileManager.default.contentsOfDirectory(atPath: package.appendingPathComponent("Docs").path)) ?? []
        let paths = ["README.md"] + docs.filter { $0.hasSuffix(".md") }.sorted().map { "Docs/\($0)" }
        return paths.filter { path in
            let text = try? String(contentsOf: package.appendingPathComponent(path), encoding: .utf8)
            return text?.contains("```swift\n") ?? false
        }
    }()

    @Test("a guide's snippets are in its tests", arguments: guides)
    func snippetsAreTested(_ path: String) throws {
        let name = URL(fileURLWithPath: path).deletingPathExtension().lastPathComponent
        let guide = try String(contentsOf: Self.package.appendingPathComponent(path), encoding: .utf8)
        let test = try String(contentsOf: Self.tests.appendingPathComponent("\(name)Snippets.swift"), encoding: .utf8)
        let tested = Self.lines(Substring(test)).joined(separator: "\n")
        let blocks = guide.components(separatedBy: "```swift\n").dropFirst()
            .compactMap { $0.components(separatedBy: "```").first }
        #expect(!blocks.isEmpty, "\(name).md has no snippet")
        for block in blocks {
            let snippet = Self.lines(Substring(block))
            #expect(snippet.count <= 14, "a snippet of \(name).md is long")
            #expect(tested.contains(snippet.joined(separator: "\n")), "not in \(name)Snippets.swift: \(snippet.first ?? "")")
        }
    }
}
