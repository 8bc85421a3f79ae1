import Foundation
import Testing

/// Every Swift block of the guides is compiled and run, because its lines are also in a test of this folder, or in one of the
/// nested package that the guide is about.
@Suite("Snippets of the guides")
struct SnippetTests {
    private static let tests = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    private static let package = tests.appendingPathComponent("../..").standardizedFileURL

    /// Where the tests are that have the snippets.
    private static let folders =
        [tests]
        + ["SparseKernelsModelsTests", "SparseKernelsFineTuningTests"].map {
            package.appendingPathComponent("Models/Tests/\($0)")
        }
        + [package.appendingPathComponent("Distributed/Tests/SequenceParallelTests")]

    /// The lines without indentation, omitting empty ones and imports.
    private static func lines(_ text: Substring) -> [String] {
        text.split(separator: "\n").map { $0.trimmingCharacters(in: .whitespaces) }
            .filter { !$0.isEmpty && !$0.hasPrefix("import ") }
    }

    /// README and every page below `Docs` with a Swift block.
    private static let guides: [String] = {
        let docs = package.appendingPathComponent("Docs").path
        let paths = (try? FileManager.default.subpathsOfDirectory(atPath: docs)) ?? []
        return (["README.md"] + paths.filter { $0.hasSuffix(".md") }.sorted().map { "Docs/\($0)" }).filter { path in
            let text = try? String(contentsOf: package.appendingPathComponent(path), encoding: .utf8)
            return text?.contains("```swift\n") ?? false
        }
    }()

    /// The name for `Docs/Operators/GEMM.md` is `GEMM`. The index of a folder has the folder's name.
    private static func name(of path: String) -> String {
        let parts = path.dropLast(".md".count).split(separator: "/").map(String.init)
        return parts.last == "README" && parts.count > 1 ? parts[parts.count - 2] : parts[parts.count - 1]
    }

    @Test("a guide's snippets are in its tests", arguments: guides)
    func snippetsAreTested(_ path: String) throws {
        let name = Self.name(of: path)
        let guide = try String(contentsOf: Self.package.appendingPathComponent(path), encoding: .utf8)
        let files = Self.folders.map { $0.appendingPathComponent("\(name)Snippets.swift") }
        let file = files.first { FileManager.default.fileExists(atPath: $0.path) } ?? files[0]
        let test = try String(contentsOf: file, encoding: .utf8)
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
