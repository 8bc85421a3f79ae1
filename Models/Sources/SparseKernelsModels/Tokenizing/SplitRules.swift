/// The patterns by which tokenizers of the GPT family cut a text into words before they merge bytes, written as code.
///
/// Each is an alternation whose branches are tried in order at the end of the match before: contractions, letters, numbers, other
/// characters, line ends, white space. The regular expressions of the families differ in few places, and these are the
/// properties here. Every scalar is in some match, so the matches are the pieces.
///
/// - Complexity: O(scalars). A regular expression engine that goes back step by step may need the square on texts such as many
///   spaces.
struct SplitRules: Hashable, Sendable {
    /// What a branch for letters takes in front of them.
    enum Letters: Hashable, Sendable {
        /// ` ?\p{L}+`
        case afterSpace
        /// `[^\r\n\p{L}\p{N}]?\p{L}+`
        case afterAny
        /// The same, but a word ends before a capital letter that follows a small one.
        case afterAnyByCase
    }

    /// Where `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` and `'d` are.
    enum Contractions: Hashable, Sendable {
        case none
        /// A branch of its own, the first; small letters only.
        case own
        /// The same, capital letters too.
        case ownAnyCase
        /// The optional end of the branch for letters.
        case afterLetters
    }

    var letters: Letters
    var contractions: Contractions
    /// ` ?\p{N}+` if nil, otherwise `\p{N}` at most so many times.
    var digits: Int?
    /// What other characters take behind them, any number of times.
    var tail: Set<Unicode.Scalar>
    /// Whether `\s*[\r\n]+` is a branch.
    var splitsLines: Bool

    /// GPT-2, and byte-level tokenizers that do not say otherwise.
    static let gpt2 = SplitRules(letters: .afterSpace, contractions: .own, digits: nil, tail: [], splitsLines: false)
    /// GPT-4 and Llama 3.
    static let llama3 = SplitRules(
        letters: .afterAny, contractions: .ownAnyCase, digits: 3, tail: ["\r", "\n"], splitsLines: true)
    /// Qwen 2 to 3.
    static let qwen2 = SplitRules(
        letters: .afterAny, contractions: .ownAnyCase, digits: 1, tail: ["\r", "\n"], splitsLines: true)
    /// GPT-4o and gpt-oss.
    static let gpt4o = SplitRules(
        letters: .afterAnyByCase, contractions: .afterLetters, digits: 3, tail: ["\r", "\n", "/"], splitsLines: true)
    /// Mistral since Nemo.
    static let tekken = SplitRules(
        letters: .afterAnyByCase, contractions: .none, digits: 1, tail: ["\r", "\n", "/"], splitsLines: true)

    /// The rules of a regular expression; nil when it is not one of those that are known.
    init?(pattern: String) {
        let contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
        let end = #"|\s*[\r\n]+|\s+(?!\S)|\s+"#
        let (upper, lower) = (#"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"#, #"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"#)
        func words(_ suffix: String) -> String {
            let any = #"[^\r\n\p{L}\p{N}]?"#
            return "\(any)\(upper)*\(lower)+\(suffix)|\(any)\(upper)+\(lower)*\(suffix)|"
        }
        let known: [String: SplitRules] = [
            #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#: .gpt2,
            contractions + #"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"# + end: .llama3,
            contractions + #"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"# + end: .qwen2,
            words(contractions + "?") + #"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"# + end: .gpt4o,
            words("") + #"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"# + end: .tekken,
        ]
        guard let rules = known[pattern] else { return nil }
        self = rules
    }

    private init(letters: Letters, contractions: Contractions, digits: Int?, tail: Set<Unicode.Scalar>, splitsLines: Bool) {
        self.letters = letters
        self.contractions = contractions
        self.digits = digits
        self.tail = tail
        self.splitsLines = splitsLines
    }

    /// The pieces of a text, as ranges that follow each other from its start to its end.
    func pieces(of text: ArraySlice<Unicode.Scalar>) -> [Range<Int>] {
        let matcher = Matcher(rules: self, text: text, classes: text.map(ScalarClasses.of))
        var (result, start): ([Range<Int>], Int) = ([], 0)
        while start < text.count {
            let end = matcher.end(from: start)
            result.append(text.startIndex + start..<text.startIndex + end)
            start = end
        }
        return result
    }
}

/// The rules over one text. Positions count from 0.
private struct Matcher {
    let rules: SplitRules
    let text: ArraySlice<Unicode.Scalar>
    let classes: [ScalarClasses]

    private func scalar(_ position: Int) -> Unicode.Scalar { text[text.startIndex + position] }

    /// Whether there is a scalar of one of these classes.
    private func isOf(_ wanted: ScalarClasses, _ position: Int) -> Bool {
        position < classes.count && !classes[position].isDisjoint(with: wanted)
    }

    /// Whether there is a scalar of none of these classes.
    private func isNone(of unwanted: ScalarClasses, _ position: Int) -> Bool {
        position < classes.count && classes[position].isDisjoint(with: unwanted)
    }

    private func run(of wanted: ScalarClasses, from start: Int) -> Int {
        var end = start
        while isOf(wanted, end) { end += 1 }
        return end
    }

    /// The end of the match that begins at a position; it is behind it.
    func end(from start: Int) -> Int {
        if rules.contractions == .own || rules.contractions == .ownAnyCase {
            if let end = contraction(start, anyCase: rules.contractions == .ownAnyCase) { return end }
        }
        return word(start) ?? number(start) ?? other(start) ?? whiteSpace(start)
    }

    private func contraction(_ start: Int, anyCase: Bool) -> Int? {
        guard start + 1 < classes.count, scalar(start) == "'" else { return nil }
        func letter(_ position: Int) -> Unicode.Scalar? {
            guard position < classes.count else { return nil }
            let scalar = scalar(position)
            guard anyCase else { return scalar }
            // The long s is an s to a regular expression that ignores case.
            if scalar == "ſ" { return "s" }
            return ("A"..."Z").contains(scalar) ? Unicode.Scalar(scalar.value + 32) : scalar
        }
        switch letter(start + 1) {
        case "s", "t", "m", "d": return start + 2
        case "r" where letter(start + 2) == "e": return start + 3
        case "v" where letter(start + 2) == "e": return start + 3
        case "l" where letter(start + 2) == "l": return start + 3
        default: return nil
        }
    }

    private func word(_ start: Int) -> Int? {
        switch rules.letters {
        case .afterSpace:
            let first = scalar(start) == " " ? start + 1 : start
            return isOf(.letter, first) ? run(of: .letter, from: first) : nil
        case .afterAny:
            let first = isNone(of: [.letter, .number, .newline], start) ? start + 1 : start
            return isOf(.letter, first) ? run(of: .letter, from: first) : nil
        case .afterAnyByCase:
            let takesAny = isNone(of: [.letter, .number, .newline], start)
            let end =
                (takesAny ? endsInLower(start + 1) : nil) ?? endsInLower(start) ?? (takesAny ? allUpper(start + 1) : nil)
                ?? allUpper(start)
            guard let end, rules.contractions == .afterLetters else { return end }
            return contraction(end, anyCase: true) ?? end
        }
    }

    /// `U*L+`. Where U* took everything that L+ could begin with, it gives back up to the last such scalar.
    private func endsInLower(_ start: Int) -> Int? {
        let end = run(of: .upper, from: start)
        if isOf(.lower, end) { return run(of: .lower, from: end) }
        var last = end - 1
        while last >= start, !isOf(.lower, last) { last -= 1 }
        return last >= start ? last + 1 : nil
    }

    /// `U+L*` where `U*L+` does not match, so that no L follows.
    private func allUpper(_ start: Int) -> Int? {
        let end = run(of: .upper, from: start)
        return end > start ? end : nil
    }

    private func number(_ start: Int) -> Int? {
        guard let most = rules.digits else {
            let first = scalar(start) == " " ? start + 1 : start
            return isOf(.number, first) ? run(of: .number, from: first) : nil
        }
        var end = start
        while end < start + most, isOf(.number, end) { end += 1 }
        return end > start ? end : nil
    }

    private func other(_ start: Int) -> Int? {
        var end = scalar(start) == " " ? start + 1 : start
        guard isNone(of: [.letter, .number, .space], end) else { return nil }
        while isNone(of: [.letter, .number, .space], end) { end += 1 }
        while end < classes.count, rules.tail.contains(scalar(end)) { end += 1 }
        return end
    }

    private func whiteSpace(_ start: Int) -> Int {
        let end = run(of: .space, from: start)
        if rules.splitsLines {
            var last = end - 1
            while last >= start, !isOf(.newline, last) { last -= 1 }
            if last >= start { return last + 1 }
        }
        // White space leaves its last scalar to the word that follows.
        return end == classes.count || end == start + 1 ? end : end - 1
    }
}
