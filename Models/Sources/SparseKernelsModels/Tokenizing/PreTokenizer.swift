import SparseKernels

/// Cuts a text into pieces, within which tokens are merged.
struct PreTokenizer: Sendable {
    enum Pattern: Hashable, Sendable {
        case rules(SplitRules)
        case literal([Unicode.Scalar])
        /// `\p{N}`: each, or as many as follow each other
        case digits(individually: Bool)
    }

    /// What becomes of the matches of a pattern.
    enum Behavior: String, Hashable, Sendable {
        case removed = "Removed"
        case isolated = "Isolated"
        case mergedWithPrevious = "MergedWithPrevious"
        case mergedWithNext = "MergedWithNext"
        case contiguous = "Contiguous"
    }

    enum Step: Hashable, Sendable {
        case split(Pattern, Behavior, inverts: Bool)
        /// Spaces become a mark, which also begins the text, or every part of it between special tokens.
        case metaspace(Unicode.Scalar, prepends: Prepending, splits: Bool)
        case prependSpace
    }

    enum Prepending: String, Hashable, Sendable { case always, never, first }

    let steps: [Step]
    /// Whether the symbols that are merged are bytes, in an alphabet of 256 printable characters.
    let isByteLevel: Bool

    /// - Throws: `.malformedFile` naming a step that is not known.
    init(_ part: TokenizerPart?) throws(SparseKernelsError) {
        var (steps, isByteLevel): ([Step], Bool) = ([], false)
        for component in try part?.components("pretokenizers") ?? [] {
            if isByteLevel { throw component.failure(expected: "no step behind ByteLevel") }
            switch try component.text("type") {
            case "ByteLevel":
                isByteLevel = true
                if try component.flag("add_prefix_space", default: true) { steps.append(.prependSpace) }
                if try component.flag("use_regex", default: true) {
                    steps.append(.split(.rules(.gpt2), .isolated, inverts: false))
                }
            case "Split": steps.append(try Self.split(component))
            case "Digits":
                let individually = try component.flag("individual_digits", default: false)
                steps.append(.split(.digits(individually: individually), .isolated, inverts: false))
            case "Metaspace": steps.append(try Self.metaspace(component))
            default: throw try component.unknown("pre-tokenizer", "Sequence, ByteLevel, Split, Digits, Metaspace")
            }
        }
        (self.steps, self.isByteLevel) = (steps, isByteLevel)
    }

    private static func split(_ part: TokenizerPart) throws(SparseKernelsError) -> Step {
        let pattern = try part.required("pattern")
        let known: Pattern
        if let literal = try pattern.part("String") {
            known = .literal(Array(try literal.text().unicodeScalars))
        } else {
            let regex = try pattern.required("Regex")
            guard let rules = SplitRules(pattern: try regex.text()) else {
                throw regex.failure(
                    expected: "a pattern that is known: those of GPT-2, GPT-4o, Llama 3, Qwen 2 and Tekken",
                    actual: "\"\(try regex.text().prefix(300))\"")
            }
            known = .rules(rules)
        }
        let behavior = try part.required("behavior")
        guard let value = Behavior(rawValue: try behavior.text()) else {
            throw behavior.failure(expected: "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous")
        }
        return .split(known, value, inverts: try part.flag("invert", default: false))
    }

    private static func metaspace(_ part: TokenizerPart) throws(SparseKernelsError) -> Step {
        let mark = Array(try part.part("replacement")?.text().unicodeScalars ?? "▁".unicodeScalars)
        guard mark.count == 1 else { throw part.failure(expected: "with a replacement of one character", actual: "another") }
        var prepends = try part.flag("add_prefix_space", default: true) ? Prepending.always : .never
        if let scheme = try part.part("prepend_scheme") {
            guard let value = Prepending(rawValue: try scheme.text()) else {
                throw scheme.failure(expected: "always, never or first")
            }
            prepends = value
        }
        return .metaspace(mark[0], prepends: prepends, splits: try part.flag("split", default: true))
    }

    /// The pieces of a text, none of them empty.
    /// - Parameter isFirst: whether the text has no special token in front.
    func pieces(of text: [Unicode.Scalar], isFirst: Bool) -> [[Unicode.Scalar]] {
        steps.reduce(text.isEmpty ? [] : [text]) { pieces, step in
            pieces.enumerated().flatMap { index, piece in Self.apply(step, to: piece, isFirst: isFirst && index == 0) }
        }
    }

    private static func apply(_ step: Step, to text: [Unicode.Scalar], isFirst: Bool) -> [[Unicode.Scalar]] {
        switch step {
        case .prependSpace: return [text.first == " " ? text : [" "] + text]
        case .metaspace(let mark, let prepends, let splits):
            var marked = text.map { $0 == " " ? mark : $0 }
            if prepends == .always || (prepends == .first && isFirst), marked.first != mark { marked.insert(mark, at: 0) }
            return splits ? cut(marked, at: .literal([mark]), .mergedWithNext, inverts: false) : [marked]
        case .split(let pattern, let behavior, let inverts): return cut(text, at: pattern, behavior, inverts: inverts)
        }
    }

    private static func cut(
        _ text: [Unicode.Scalar], at pattern: Pattern, _ behavior: Behavior, inverts: Bool
    ) -> [[Unicode.Scalar]] {
        var matches: [Range<Int>]
        switch pattern {
        case .rules(let rules): matches = rules.pieces(of: text[...])
        case .literal(let literal): matches = text.occurrences(of: literal).map { $0..<$0 + literal.count }
        case .digits(let individually):
            matches = text.indices.filter { ScalarClasses.of(text[$0]).contains(.number) }.map { $0..<$0 + 1 }
            if !individually { matches = joined(matches) }
        }
        return parts(of: text.count, matches: matches, behavior, inverts: inverts).map { Array(text[$0]) }
    }

    private static func joined(_ ranges: [Range<Int>]) -> [Range<Int>] {
        ranges.reduce(into: []) { result, range in
            if let last = result.last, last.upperBound == range.lowerBound {
                result[result.count - 1] = last.lowerBound..<range.upperBound
            } else {
                result.append(range)
            }
        }
    }

    /// The ranges of pieces, from the ranges of matches and what is between them.
    private static func parts(
        of count: Int, matches: [Range<Int>], _ behavior: Behavior, inverts: Bool
    ) -> [Range<Int>] {
        var (all, position): ([(range: Range<Int>, isMatch: Bool)], Int) = ([], 0)
        for match in matches {
            if match.lowerBound > position { all.append((position..<match.lowerBound, inverts)) }
            all.append((match, !inverts))
            position = match.upperBound
        }
        if position < count { all.append((position..<count, inverts)) }
        switch behavior {
        case .isolated: return all.map(\.range)
        case .removed: return all.filter { !$0.isMatch }.map(\.range)
        case .contiguous, .mergedWithPrevious, .mergedWithNext:
            var result: [Range<Int>] = []
            var last: Bool?
            for part in all {
                let joins =
                    switch behavior {
                    case .contiguous: last == part.isMatch
                    case .mergedWithPrevious: part.isMatch && last == false
                    default: last == true && !part.isMatch
                    }
                if joins {
                    result[result.count - 1] = result.last!.lowerBound..<part.range.upperBound
                } else {
                    result.append(part.range)
                }
                last = part.isMatch
            }
            return result
        }
    }
}
