import Foundation

/// The filter of `--filter`: a comma-separated list of texts, at least one of which a case must contain.
///
/// Texts are searched in the operation and name of a case as a report shows them ("gemm.tile tile, 256 deep"), and in the name
/// of the section ("denseAttention", which "dense attention" and "dense-attention" also match). Case is ignored.
public struct RowFilter: Sendable {
    private let terms: [String]

    /// - Parameter text: nil for a filter that accepts everything.
    public init(_ text: String?) {
        terms = (text ?? "").split(separator: ",").map { $0.trimmingCharacters(in: .whitespaces) }.filter { !$0.isEmpty }
    }

    public func matches(op: String, name: String) -> Bool {
        terms.isEmpty || terms.contains { Self.matches($0, op: op, name: name) }
    }

    private static func matches(_ term: String, op: String, name: String) -> Bool {
        "\(op) \(name)".localizedCaseInsensitiveContains(term)
            || squeezed(ReportSection(op: op).rawValue).contains(squeezed(term))
    }

    /// Lower case without the characters that people put between words.
    private static func squeezed(_ text: String) -> String { text.lowercased().filter { !" -_".contains($0) } }

    // MARK: Texts without a match

    /// Checks that every text of the list matches something. A text without a match is a mistake, even beside others.
    ///
    /// - Throws: an error with the nearest existing name and all operations, section by section.
    public func require(in cases: [(op: String, name: String)]) throws(UsageError) {
        guard let missing = terms.first(where: { term in !cases.contains { Self.matches(term, op: $0.op, name: $0.name) } })
        else { return }
        let ops = cases.map(\.op).reduce(into: [String]()) { if !$0.contains($1) { $0.append($1) } }
        let sections = ReportSection.allCases.compactMap { section in
            let own = ops.filter { ReportSection(op: $0) == section }.joined(separator: ", ")
            return own.isEmpty ? nil : (name: section.rawValue, ops: own)
        }
        let nearest = Self.nearest(to: missing, among: sections.map(\.name) + ops + cases.map(\.name))
        let width = sections.map(\.name.count).max() ?? 0
        let list = sections.map { "\n  " + $0.name + String(repeating: " ", count: width - $0.name.count + 2) + $0.ops }
        throw UsageError(
            "nothing matches \"\(missing)\"" + (nearest.map { "; the nearest is \"\($0)\"" } ?? "")
                + (list.isEmpty ? "" : ". Sections and operations:") + list.joined())
    }

    /// The candidate with the part that is most similar to the text, the shortest one of several; nil when none is similar.
    static func nearest(to text: String, among candidates: [String]) -> String? {
        let ranked = candidates.map { (name: $0, edits: edits(from: Array(text.lowercased()), into: Array($0.lowercased()))) }
        let best = ranked.min { ($0.edits, $0.name.count, $0.name) < ($1.edits, $1.name.count, $1.name) }
        return best.flatMap { $0.edits * 2 <= text.count ? $0.name : nil }
    }

    /// The least number of insertions, deletions and substitutions that turn `text` into a part of `whole` (Sellers, 1980).
    private static func edits(from text: [Character], into whole: [Character]) -> Int {
        // A part may start anywhere, so the first row is 0, and end anywhere, so the minimum of the last row counts.
        var row = [Int](repeating: 0, count: whole.count + 1)
        for (index, character) in text.enumerated() {
            var diagonal = row[0]
            row[0] = index + 1
            for column in whole.indices {
                let replaced = diagonal + (whole[column] == character ? 0 : 1)
                diagonal = row[column + 1]
                row[column + 1] = min(replaced, diagonal + 1, row[column] + 1)
            }
        }
        return row.min()!
    }
}
