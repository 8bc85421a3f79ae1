import ArgumentParser
import BenchmarkReport
import Foundation

struct TablesCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tables",
        abstract: "Makes the tables of Markdown pages anew, from the stored reports that the pages name.",
        discussion: """
            A table is a line <!-- table: FILE.json OPTIONS -->, a fenced block, which is replaced, and a line <!-- end -->. FILE.json is \
            a report in Benchmarks/Results. Options: section=NAME, filter=TEXT, isa=NAME, threads=COUNT, columns=KEY, with commas \
            between several and quotation marks around what has spaces.
            """)

    @Argument(help: "The pages. Default: the README and all pages of Docs.")
    var pages: [String] = []

    @Flag(help: "Change nothing; exit with 1 if a page is out of date.")
    var check = false

    func run() throws {
        let tables = PageTables()
        var stale: [String] = []
        for page in pages.isEmpty ? PageTables.pages : pages {
            let text = try String(contentsOfFile: page, encoding: .utf8)
            let updated: String
            do { updated = try tables.updated(text) } catch { throw ValidationError("\(page), \(error)") }
            if updated == text { continue }
            stale.append(page)
            if !check { try updated.write(toFile: page, atomically: true, encoding: .utf8) }
        }
        for page in stale { print(check ? "out of date: \(page)" : "wrote \(page)") }
        if check && !stale.isEmpty { throw ExitCode.failure }
    }
}
