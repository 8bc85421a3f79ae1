public import Foundation

/// Tables in Markdown pages that are made from stored reports, so that no number in a page is typed.
///
/// A table is a line `<!-- table: FILE.json OPTIONS -->`, a fenced block with the rows, and a line `<!-- end -->`. `FILE.json`
/// is a report in `Benchmarks/Results`. Options are `section=NAME`, `filter=TEXT` (as in `--filter`, in quotation marks if it
/// has spaces), `isa=NAME`, `threads=COUNT` and `columns=KEY` (keys of the JSON report), with commas between several. Without
/// options the table has all rows.
public struct PageTables {
    private let results: URL

    /// The repository that this file belongs to.
    private static let repository = (0..<5).reduce(URL(fileURLWithPath: #filePath)) { url, _ in url.deletingLastPathComponent()
    }

    /// - Parameter results: the folder of the reports; nil for the one beside these sources.
    public init(results: URL? = nil) {
        self.results = results ?? Self.repository.appendingPathComponent("Benchmarks/Results")
    }

    /// The README and all pages in `Docs` of the repository that this file belongs to, in alphabetical order.
    public static var pages: [String] {
        let docs = repository.appendingPathComponent("Docs").path
        let names = FileManager.default.enumerator(atPath: docs)?.compactMap { $0 as? String } ?? []
        return names.filter { $0.hasSuffix(".md") }.sorted().map { "\(docs)/\($0)" }
            + [repository.appendingPathComponent("README.md").path]
    }

    /// A page with updated tables.
    ///
    /// - Throws: an error with the line number for a marker that requests something missing, or without a block after it.
    public func updated(_ page: String) throws(UsageError) -> String {
        let lines = page.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        var result: [String] = []
        var index = 0
        var isInBlock = false
        while index < lines.count {
            let line = lines[index]
            result.append(line)
            index += 1
            if line.hasPrefix("```") { isInBlock.toggle() }
            // A page may also show an example of a marker.
            guard !isInBlock, let request = Self.request(line) else { continue }
            do throws(UsageError) {
                let block = try Self.block(in: lines, from: index)
                result += try lines[index..<block.lowerBound] + table(request) + [lines[block.upperBound]]
                index = block.upperBound + 1
            } catch {
                throw UsageError("line \(index): \(error)")
            }
        }
        return result.joined(separator: "\n")
    }

    private static func request(_ line: String) -> String? {
        let line = line.trimmingCharacters(in: .whitespaces)
        guard line.hasPrefix("<!-- table:"), line.hasSuffix("-->") else { return nil }
        return line.dropFirst("<!-- table:".count).dropLast("-->".count).trimmingCharacters(in: .whitespaces)
    }

    /// The lines between the fences after a marker.
    private static func block(in lines: [String], from index: Int) throws(UsageError) -> Range<Int> {
        let rest = lines[index...]
        guard let fence = rest.firstIndex(where: { !$0.isEmpty }), lines[fence].hasPrefix("```"),
            let last = lines[(fence + 1)...].firstIndex(where: { $0.hasPrefix("```") }),
            let end = lines[(last + 1)...].firstIndex(where: { !$0.isEmpty }), lines[end] == "<!-- end -->"
        else { throw UsageError("a fenced block and a line <!-- end --> must follow the marker of a table") }
        return fence + 1..<last
    }

    private func table(_ text: String) throws(UsageError) -> [String] {
        let request = try TableRequest(text)
        let report: Report
        do { report = try Report(contentsOf: results.appendingPathComponent(request.file).path) } catch {
            throw UsageError("\(request.file) is no report in \(results.path)")
        }
        return try request.lines(of: report)
    }
}
