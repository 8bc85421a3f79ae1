import Foundation
import SparseKernels
import Testing

@testable import SparseKernelsModels

/// The regular expressions as the files of the families have them.
private let patterns: [String: String] = [
    "gpt2": #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#,
    "llama3":
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#,
    "qwen2":
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#,
    "gpt4o":
        #"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"#,
    "tekken":
        #"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"#,
]

/// The pieces of a text by a regular expression engine.
private func expected(_ text: String, _ pattern: String) throws -> [String] {
    let expression = try NSRegularExpression(pattern: pattern)
    let string = text as NSString
    return expression.matches(in: text, range: NSRange(location: 0, length: string.length)).map {
        string.substring(with: $0.range)
    }
}

private func pieces(_ text: String, _ rules: SplitRules) -> [String] {
    let scalars = Array(text.unicodeScalars)
    return rules.pieces(of: scalars[...]).map { range in
        var piece = ""
        piece.unicodeScalars.append(contentsOf: scalars[range])
        return piece
    }
}

@Suite("Patterns that split texts")
struct SplitRulesTests {
    /// Capital, small, title-case, modifier and other letters, marks, three kinds of numbers, white space, line ends, the long s,
    /// contractions, symbols, and characters outside of the basic plane.
    private static let alphabet = Array(
        "AzßǅʰЖж中ا\u{0301}\u{0903}07٣Ⅷ½ \t\r\n\u{a0}\u{3000}'stmdreveLLſ.,/_-+€😀𝔘\u{10400}\u{10428}".unicodeScalars)

    @Test("every rule agrees with a regular expression engine on random texts", arguments: patterns.keys.sorted())
    func random(name: String) throws {
        let pattern = try #require(patterns[name])
        let rules = try #require(SplitRules(pattern: pattern))
        var generator = SplitMix64(seed: 5)
        for round in 0..<600 {
            var text = ""
            // Some rounds from few characters, so that runs are long.
            let few = (0..<4).map { _ in Self.alphabet.randomElement(using: &generator)! }
            for _ in 0..<Int.random(in: 0...40, using: &generator) {
                let source = round.isMultiple(of: 3) ? few : Self.alphabet
                text.unicodeScalars.append(source.randomElement(using: &generator)!)
            }
            let (actual, wanted) = (pieces(text, rules), try expected(text, pattern))
            #expect(actual.map { Array($0.utf8) } == wanted.map { Array($0.utf8) }, "\(text.debugDescription)")
        }
    }

    @Test("known sentences")
    func sentences() throws {
        #expect(pieces("Hello world's 1234  end", .gpt2) == ["Hello", " world", "'s", " 1234", " ", " end"])
        #expect(pieces("It'S 12345\n\n  x", .llama3) == ["It", "'S", " ", "123", "45", "\n\n", " ", " x"])
        #expect(pieces("x = 42;\n", .qwen2) == ["x", " =", " ", "4", "2", ";\n"])
        #expect(pieces("parseHTTPRequest's", .gpt4o) == ["parse", "HTTPRequest's"])
        #expect(SplitRules(pattern: #"\w+"#) == nil && pieces("", .gpt2).isEmpty)
    }

    @Test("long runs take linear time", arguments: [" ", "\n ", "A", "aA", "中", "\u{0301}", "'", "1", "."])
    func runs(unit: String) {
        let text = String(repeating: unit, count: 200_000) + "B"
        for rules in [SplitRules.gpt2, .llama3, .gpt4o] {
            let scalars = Array(text.unicodeScalars)
            let ranges = rules.pieces(of: scalars[...])
            #expect(ranges.first?.lowerBound == 0 && ranges.last?.upperBound == scalars.count)
            #expect(zip(ranges, ranges.dropFirst()).allSatisfy { $0.upperBound == $1.lowerBound && !$0.isEmpty })
        }
    }
}
