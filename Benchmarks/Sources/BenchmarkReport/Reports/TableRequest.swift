import Foundation

/// The request in the marker of a page: "FILE.json section=denseAttention,prefill filter="N 8192" isa=avx512 threads=2".
struct TableRequest {
    let file: String
    private var sections: [ReportSection]?
    private var filter = RowFilter(nil)
    private var isas: [String]?
    private var threads: [Int]?
    private var metrics: [Metric]?

    private static let known = "section=NAME, filter=TEXT, isa=NAME, threads=COUNT and columns=KEY, with commas between several"

    init(_ text: String) throws(UsageError) {
        let words = try Self.words(text)
        guard let file = words.first, !file.contains("=") else { throw UsageError("a table begins with the file of a report") }
        self.file = file
        for word in words.dropFirst() {
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            guard parts.count == 2, !parts[1].isEmpty else { throw UsageError("\"\(word)\" is none of \(Self.known)") }
            let values = parts[1].split(separator: ",").map(String.init)
            switch parts[0] {
            case "section": sections = try Self.all(values, "section", among: ReportSection.allCases, by: \.rawValue)
            case "columns": metrics = try Self.all(values, "column", among: Metric.all, by: \.key)
            case "filter": filter = RowFilter(parts[1])
            case "isa": isas = values
            case "threads":
                threads = values.compactMap { Int($0) }
                if threads?.count != values.count { throw UsageError("threads=\(parts[1]) is no list of counts") }
            default: throw UsageError("\"\(word)\" is none of \(Self.known)")
            }
        }
    }

    private static func all<Value>(
        _ names: [String], _ noun: String, among values: [Value], by name: (Value) -> String
    ) throws(UsageError) -> [Value] {
        var found: [Value] = []
        for text in names {
            guard let value = values.first(where: { name($0) == text }) else {
                throw UsageError("no \(noun) is called \"\(text)\"; there are \(values.map(name).joined(separator: ", "))")
            }
            found.append(value)
        }
        return found
    }

    /// Words between spaces. Spaces within quotation marks belong to the word.
    private static func words(_ text: String) throws(UsageError) -> [String] {
        var (words, isQuoted) = ([""], false)
        for character in text {
            if character == "\"" {
                isQuoted.toggle()
            } else if character == " " && !isQuoted {
                words.append("")
            } else {
                words[words.count - 1].append(character)
            }
        }
        if isQuoted { throw UsageError("a quotation mark is missing") }
        return words.filter { !$0.isEmpty }
    }

    /// The lines that `show` prints for these rows, without trailing spaces. A single section has no title.
    func lines(of report: Report) throws(UsageError) -> [String] {
        var report = report
        report.rows.removeAll { row in
            sections.map { !$0.contains(ReportSection(op: row.op)) } ?? false
                || isas.map { !$0.contains(row.isa) } ?? false || threads.map { !$0.contains(row.threads) } ?? false
        }
        try filter.require(in: report.rows.map { ($0.op, $0.caseName) })
        report.rows.removeAll { !filter.matches(op: $0.op, name: $0.caseName) }
        if report.rows.isEmpty { throw UsageError("\(file) has no such row") }
        let tables = report.tables(metrics: metrics)
        let lines = tables.flatMap { table, rows in table.header.dropFirst(tables.count == 1 ? 2 : 0) + rows.map(table.line) }
        return lines.drop { $0.isEmpty }.map { $0.replacing(/\ +$/, with: "") }
    }
}
