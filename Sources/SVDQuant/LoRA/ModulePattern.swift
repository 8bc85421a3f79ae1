/// A pattern for the names of a model's modules, as in PEFT's `rank_pattern` and `alpha_pattern`: a regular expression for the
/// whole name or for the part after one of its dots, `(.*\.)?(pattern)$`.
///
/// Most patterns are plain names. The supported regular expressions have characters, `.`, classes, `\d \w \s` and their
/// opposites, escaped characters, groups, alternatives, `^ $`, and the repetitions `* + ? {m} {m,} {m,n}`, lazy or not. All
/// states advance in parallel, so that matching takes at most the pattern's length times the name's.
struct ModulePattern {
    private let program: [Instruction]

    /// Returns nil for an unsupported expression, such as one with lookahead.
    init?(_ pattern: String) {
        var parser = Parser(Array(pattern.unicodeScalars))
        guard let tree = parser.alternatives(depth: 0), parser.isAtEnd else { return nil }
        var compiler = Compiler()
        guard compiler.add(tree) else { return nil }
        program = compiler.program + [.match]
    }

    /// Whether the pattern matches the name, or the part after one of its dots.
    func matches(_ name: String) -> Bool {
        let text = Array(name.unicodeScalars)
        var starts = Set<Int>([0])
        for (index, scalar) in text.enumerated() where scalar == "." { starts.insert(index + 1) }
        var states = StateSet(count: program.count)
        for position in 0...text.count {
            if starts.contains(position) { follow(0, into: &states, at: position, of: text.count) }
            if position == text.count { return states.list.contains { if case .match = program[$0] { true } else { false } } }
            var next = StateSet(count: program.count)
            for state in states.list {
                if case .scalar(let set) = program[state], set.contains(text[position]) {
                    follow(state + 1, into: &next, at: position + 1, of: text.count)
                }
            }
            states = next
        }
        return false
    }

    /// Adds a state and the states that it reaches without a character.
    private func follow(_ state: Int, into states: inout StateSet, at position: Int, of count: Int) {
        var pending = [state]
        while let state = pending.popLast() {
            guard states.insert(state) else { continue }
            switch program[state] {
            case .scalar, .match: break
            case .jump(let target): pending.append(target)
            case .fork(let first, let second): pending += [second, first]
            case .start: if position == 0 { pending.append(state + 1) }
            case .end: if position == count { pending.append(state + 1) }
            }
        }
    }

    private struct StateSet {
        private(set) var list: [Int] = []
        private var isIn: [Bool]

        init(count: Int) { isIn = Array(repeating: false, count: count) }

        mutating func insert(_ state: Int) -> Bool {
            if isIn[state] { return false }
            isIn[state] = true
            list.append(state)
            return true
        }
    }
}

// MARK: - Programs

extension ModulePattern {
    /// Some characters, or all except them.
    struct Scalars {
        var ranges: [ClosedRange<Unicode.Scalar>]
        var isNegated = false

        func contains(_ scalar: Unicode.Scalar) -> Bool { ranges.contains { $0.contains(scalar) } != isNegated }

        static let digits = Scalars(ranges: ["0"..."9"])
        static let words = Scalars(ranges: ["0"..."9", "A"..."Z", "_"..."_", "a"..."z"])
        static let spaces = Scalars(ranges: ["\t"..."\r", " "..." "])
        static let any = Scalars(ranges: ["\n"..."\n"], isNegated: true)
    }

    fileprivate enum Instruction {
        case scalar(Scalars)
        case jump(Int)
        case fork(Int, Int)
        case start
        case end
        case match
    }

    fileprivate indirect enum Tree {
        case scalar(Scalars)
        case start
        case end
        case sequence([Tree])
        case alternatives([Tree])
        case repeated(Tree, least: Int, most: Int?)
    }

    fileprivate struct Compiler {
        var program: [Instruction] = []
        private var steps = 0

        /// Returns false when the program, or the work to make it, becomes too long.
        mutating func add(_ tree: Tree) -> Bool {
            steps += 1
            guard program.count < 4096 && steps < 1 << 16 else { return false }
            switch tree {
            case .scalar(let set): program.append(.scalar(set))
            case .start: program.append(.start)
            case .end: program.append(.end)
            case .sequence(let parts): return parts.allSatisfy { add($0) }
            case .alternatives(let parts):
                var ends: [Int] = []
                for (index, part) in parts.enumerated() {
                    let fork = program.count
                    if index + 1 < parts.count { program.append(.jump(0)) }
                    guard add(part) else { return false }
                    if index + 1 < parts.count {
                        ends.append(program.count)
                        program.append(.jump(0))
                        program[fork] = .fork(fork + 1, program.count)
                    }
                }
                for end in ends { program[end] = .jump(program.count) }
            case .repeated(let part, let least, let most):
                for _ in 0..<least { guard add(part) else { return false } }
                if let most {
                    var forks: [Int] = []
                    for _ in least..<most {
                        forks.append(program.count)
                        program.append(.jump(0))
                        guard add(part) else { return false }
                    }
                    for fork in forks { program[fork] = .fork(fork + 1, program.count) }
                } else {
                    let fork = program.count
                    program.append(.jump(0))
                    guard add(part) else { return false }
                    program.append(.jump(fork))
                    program[fork] = .fork(fork + 1, program.count)
                }
            }
            return true
        }
    }
}

// MARK: - Parsing

extension ModulePattern {
    fileprivate struct Parser {
        private let text: [Unicode.Scalar]
        private var position = 0

        init(_ text: [Unicode.Scalar]) { self.text = text }

        var isAtEnd: Bool { position == text.count }

        private mutating func take(_ scalar: Unicode.Scalar) -> Bool {
            guard position < text.count, text[position] == scalar else { return false }
            position += 1
            return true
        }

        mutating func alternatives(depth: Int) -> Tree? {
            guard depth < 64 else { return nil }
            var parts: [Tree] = []
            repeat {
                var sequence: [Tree] = []
                while position < text.count, text[position] != "|", text[position] != ")" {
                    guard let part = repetition(depth: depth) else { return nil }
                    sequence.append(part)
                }
                parts.append(.sequence(sequence))
            } while take("|")
            return parts.count == 1 ? parts[0] : .alternatives(parts)
        }

        private mutating func repetition(depth: Int) -> Tree? {
            guard var tree = atom(depth: depth) else { return nil }
            while position < text.count {
                var (least, most): (Int, Int?)
                switch text[position] {
                case "*": (least, most) = (0, nil)
                case "+": (least, most) = (1, nil)
                case "?": (least, most) = (0, 1)
                case "{":
                    guard let bounds = bounds() else { return nil }
                    (least, most) = bounds
                default: return tree
                }
                position += 1
                // Lazy repetitions match the same names as greedy ones.
                _ = take("?")
                tree = .repeated(tree, least: least, most: most)
            }
            return tree
        }

        /// Parses `{m}`, `{m,}` or `{m,n}` without its closing brace.
        private mutating func bounds() -> (Int, Int?)? {
            position += 1
            guard let least = number() else { return nil }
            var most: Int? = least
            if take(",") { most = number() }
            guard position < text.count, text[position] == "}", most ?? least >= least else { return nil }
            return (least, most)
        }

        private mutating func number() -> Int? {
            var digits = ""
            while position < text.count, digits.count < 4, ("0"..."9").contains(text[position]) {
                digits.unicodeScalars.append(text[position])
                position += 1
            }
            return Int(digits)
        }

        private mutating func atom(depth: Int) -> Tree? {
            let scalar = text[position]
            position += 1
            switch scalar {
            case "^": return .start
            case "$": return .end
            case ".": return .scalar(.any)
            case "(":
                if take("?") { guard take(":") else { return nil } }
                guard let tree = alternatives(depth: depth + 1), take(")") else { return nil }
                return tree
            case "[": return bracket().map { .scalar($0) }
            case "\\": return escaped().map { .scalar($0) }
            case "*", "+", "?", "{", ")": return nil
            default: return .scalar(Scalars(ranges: [scalar...scalar]))
            }
        }

        private mutating func escaped() -> Scalars? {
            guard position < text.count else { return nil }
            let scalar = text[position]
            position += 1
            switch scalar {
            case "d": return .digits
            case "w": return .words
            case "s": return .spaces
            case "D": return Scalars(ranges: Scalars.digits.ranges, isNegated: true)
            case "W": return Scalars(ranges: Scalars.words.ranges, isNegated: true)
            case "S": return Scalars(ranges: Scalars.spaces.ranges, isNegated: true)
            case "t": return Scalars(ranges: ["\t"..."\t"])
            case "n": return Scalars(ranges: ["\n"..."\n"])
            default:
                // Other escaped letters and digits are not literal characters.
                return Scalars.words.contains(scalar) && scalar != "_" ? nil : Scalars(ranges: [scalar...scalar])
            }
        }

        private mutating func bracket() -> Scalars? {
            var set = Scalars(ranges: [], isNegated: take("^"))
            var isFirst = true
            while position < text.count {
                if take("]") {
                    if !isFirst { return set }
                    set.ranges.append("]"..."]")
                    isFirst = false
                    continue
                }
                isFirst = false
                var low = text[position]
                position += 1
                if low == "\\" {
                    guard let escaped = escaped(), !escaped.isNegated else { return nil }
                    guard escaped.ranges.count == 1, escaped.ranges[0].lowerBound == escaped.ranges[0].upperBound else {
                        set.ranges += escaped.ranges
                        continue
                    }
                    low = escaped.ranges[0].lowerBound
                }
                if position + 1 < text.count, text[position] == "-", text[position + 1] != "]" {
                    let high = text[position + 1]
                    guard high != "\\", low <= high else { return nil }
                    position += 2
                    set.ranges.append(low...high)
                } else {
                    set.ranges.append(low...low)
                }
            }
            return nil
        }
    }
}
