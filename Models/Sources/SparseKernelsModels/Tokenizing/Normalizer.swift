import Foundation
import SparseKernels

/// What a tokenizer does to a text before it looks at it, as steps.
struct Normalizer: Sendable {
    enum Step: Hashable, Sendable {
        case prepend([Unicode.Scalar])
        case replace([Unicode.Scalar], with: [Unicode.Scalar])
        case composed, decomposed, composedCompatibly, decomposedCompatibly
        case lowercased
        case stripped(left: Bool, right: Bool)
    }

    let steps: [Step]

    init(steps: [Step] = []) { self.steps = steps }

    /// - Throws: `.malformedFile` naming a step that is not known.
    init(_ part: TokenizerPart?) throws(SparseKernelsError) {
        guard let part else {
            self.init()
            return
        }
        var steps: [Step] = []
        for component in try part.components("normalizers") { steps.append(try Self.step(component)) }
        self.init(steps: steps)
    }

    private static func step(_ part: TokenizerPart) throws(SparseKernelsError) -> Step {
        switch try part.text("type") {
        case "Prepend": return .prepend(Array(try part.text("prepend").unicodeScalars))
        case "Replace":
            let pattern = Array(try part.required("pattern").text("String").unicodeScalars)
            guard !pattern.isEmpty else { throw part.failure(expected: "with a pattern that is not empty", actual: "\"\"") }
            return .replace(pattern, with: Array(try part.text("content").unicodeScalars))
        case "NFC": return .composed
        case "NFD": return .decomposed
        case "NFKC": return .composedCompatibly
        case "NFKD": return .decomposedCompatibly
        case "Lowercase": return .lowercased
        case "Strip":
            return .stripped(
                left: try part.flag("strip_left", default: true), right: try part.flag("strip_right", default: true))
        default:
            throw try part.unknown("normalizer", "Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip")
        }
    }

    /// - Complexity: O(scalars · steps).
    func callAsFunction(_ text: [Unicode.Scalar]) -> [Unicode.Scalar] { steps.reduce(text, Self.apply) }

    private static func apply(_ text: [Unicode.Scalar], _ step: Step) -> [Unicode.Scalar] {
        func mapped(_ transform: (String) -> String) -> [Unicode.Scalar] {
            var string = ""
            string.unicodeScalars.append(contentsOf: text)
            return Array(transform(string).unicodeScalars)
        }
        switch step {
        case .prepend(let scalars): return text.isEmpty ? text : scalars + text
        case .replace(let pattern, let replacement): return text.replacing(pattern, with: replacement)
        case .composed: return mapped(\.precomposedStringWithCanonicalMapping)
        case .decomposed: return mapped(\.decomposedStringWithCanonicalMapping)
        case .composedCompatibly: return mapped(\.precomposedStringWithCompatibilityMapping)
        case .decomposedCompatibly: return mapped(\.decomposedStringWithCompatibilityMapping)
        case .lowercased: return mapped { $0.lowercased() }
        case .stripped(let left, let right):
            let start = left ? text.firstIndex { !$0.properties.isWhitespace } ?? text.endIndex : 0
            let end = right ? (text.lastIndex { !$0.properties.isWhitespace } ?? -1) + 1 : text.count
            return start < end ? Array(text[start..<end]) : []
        }
    }
}

extension Array where Element: Equatable {
    /// The starts of a pattern's occurrences, from left to right, none over another.
    /// - Complexity: O(count · pattern.count) at worst.
    func occurrences(of pattern: [Element]) -> [Int] {
        var (starts, position): ([Int], Int) = ([], 0)
        while !pattern.isEmpty, position + pattern.count <= count {
            if self[position..<position + pattern.count].elementsEqual(pattern) {
                starts.append(position)
                position += pattern.count
            } else {
                position += 1
            }
        }
        return starts
    }

    func replacing(_ pattern: [Element], with replacement: [Element]) -> [Element] {
        var (result, position): ([Element], Int) = ([], 0)
        for start in occurrences(of: pattern) {
            result += self[position..<start]
            result += replacement
            position = start + pattern.count
        }
        return position == 0 ? self : result + self[position...]
    }
}
