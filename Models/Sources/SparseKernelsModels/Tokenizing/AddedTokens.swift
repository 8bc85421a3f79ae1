import SparseKernels

/// Tokens that are found in a text before anything else is done to it, such as "<|endoftext|>".
struct AddedTokens: Sendable {
    struct Token: Sendable {
        let id: Int
        let content: [Unicode.Scalar]
        /// Only where no letter, digit or underscore is beside it.
        let isSingleWord: Bool
        /// Takes white space before and behind it.
        let stripsLeft: Bool
        let stripsRight: Bool
        /// Whether it is looked for in the normalised text.
        let isNormalized: Bool
        /// Whether it is no part of the text that people see.
        let isSpecial: Bool
    }

    /// A piece of a text: a token, or a range without one.
    enum Part: Hashable, Sendable {
        case token(Int)
        case text(Range<Int>)
    }

    let tokens: [Token]
    /// A trie: from a node and a scalar to the next node. Node 0 is the root.
    private var children: [UInt64: Int] = [:]
    /// The token that ends at a node.
    private var ends: [Int: Int] = [:]

    init(_ tokens: [Token]) {
        self.tokens = tokens
        var nodes = 1
        for (index, token) in tokens.enumerated() where !token.content.isEmpty {
            var node = 0
            for scalar in token.content {
                let key = Self.key(node, scalar)
                if let next = children[key] {
                    node = next
                } else {
                    children[key] = nodes
                    node = nodes
                    nodes += 1
                }
            }
            ends[node] = index
        }
    }

    private static func key(_ node: Int, _ scalar: Unicode.Scalar) -> UInt64 { UInt64(node) << 32 | UInt64(scalar.value) }

    /// - Throws: `.malformedFile` for an entry without id or content.
    static func read(_ part: TokenizerPart?) throws(SparseKernelsError) -> [Token] {
        var tokens: [Token] = []
        for entry in try part?.elements() ?? [] {
            let isSpecial = try entry.flag("special", default: false)
            let id = try entry.required("id").integer()
            guard id < BPEModel.idLimit else {
                throw entry.failure(expected: "an id below \(BPEModel.idLimit)", actual: "\(id)")
            }
            tokens.append(
                Token(
                    id: id, content: Array(try entry.text("content").unicodeScalars),
                    isSingleWord: try entry.flag("single_word", default: false),
                    stripsLeft: try entry.flag("lstrip", default: false),
                    stripsRight: try entry.flag("rstrip", default: false),
                    isNormalized: try entry.flag("normalized", default: !isSpecial), isSpecial: isSpecial))
        }
        return tokens
    }

    /// Cuts a text at the tokens in it. At each place the longest is taken.
    /// - Complexity: O(scalars · the longest content).
    func parts(of text: [Unicode.Scalar]) -> [Part] {
        guard !ends.isEmpty else { return text.isEmpty ? [] : [.text(0..<text.count)] }
        var (parts, start, position): ([Part], Int, Int) = ([], 0, 0)
        while position < text.count {
            guard let (token, end) = match(in: text, at: position) else {
                position += 1
                continue
            }
            var (left, right) = (position, end)
            if token.stripsLeft { while left > start, text[left - 1].properties.isWhitespace { left -= 1 } }
            if token.stripsRight { while right < text.count, text[right].properties.isWhitespace { right += 1 } }
            if left > start { parts.append(.text(start..<left)) }
            parts.append(.token(token.id))
            (start, position) = (right, right)
        }
        if start < text.count { parts.append(.text(start..<text.count)) }
        return parts
    }

    private func match(in text: [Unicode.Scalar], at start: Int) -> (token: Token, end: Int)? {
        var (node, position, best): (Int, Int, (token: Token, end: Int)?) = (0, start, nil)
        while position < text.count, let next = children[Self.key(node, text[position])] {
            node = next
            position += 1
            guard let index = ends[node] else { continue }
            let token = tokens[index]
            if token.isSingleWord, isWord(text, start - 1) || isWord(text, position) { continue }
            best = (token, position)
        }
        return best
    }

    private func isWord(_ text: [Unicode.Scalar], _ position: Int) -> Bool {
        guard text.indices.contains(position) else { return false }
        let classes = ScalarClasses.of(text[position])
        return !classes.isDisjoint(with: [.letter, .number]) || text[position] == "_"
    }
}
