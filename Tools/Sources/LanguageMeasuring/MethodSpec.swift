public import SparseKernels
public import SparseKernelsModels

/// Tokens that a method may read: a number, or a part of the context.
public enum TokenBudget: Hashable, Sendable {
    case tokens(Int)
    case part(Double)

    /// Reads "1024" or "12.5%".
    init?(_ text: Substring) {
        if text.hasSuffix("%") {
            guard let percent = Double(text.dropLast()), percent > 0, percent <= 100 else { return nil }
            self = .part(percent / 100)
        } else {
            guard let tokens = Int(text), tokens >= 1 else { return nil }
            self = .tokens(tokens)
        }
    }

    /// The budget at a context. Parts are whole pages of 64 tokens, one or more.
    public func tokens(at context: Int) -> Int {
        switch self {
        case .tokens(let tokens): tokens
        case .part(let part): max(64, Int((Double(context) * part / 64).rounded()) * 64)
        }
    }
}

/// Methods of prefill and decoding, as people write them: `xattention:0.9+twilight:25%:0.85`.
///
/// The part before `+` is the prefill, and that after it the decoding, which is dense if it is missing. Values follow a name after
/// colons; those that are missing have defaults. Budgets of tokens may be parts of the context.
public struct MethodSpec: Hashable, Sendable, CustomStringConvertible {
    public let description: String
    private let prefillName: String
    private let prefillValues: [Substring]
    private let decodingName: String
    private let decodingValues: [Substring]

    /// The forms of all methods.
    public static let help = """
        Prefill: dense, xattention:THRESHOLD:STRIDE (0.9:16), minference:VERTICAL:SLASH (1000:4096), sparge:KEEP_RATIO (0.5), \
        streaming:SINK:LOCAL (128:1024), lserve:SINK:LOCAL (128:4096). Decoding, after +: dense, streaming:SINK:LOCAL, quest:TOKENS \
        (25%), twilight:TOKENS:TOP_P (50%:0.9), lserve:TOKENS:INTERVAL (25%:4), polar:HEADS and polar:GROUPS:groups with routers that are fitted when the model is loaded. Numbers of tokens may be parts of the context: 12.5%.
        """

    /// - Throws: `.invalidArgument` for a name or value that is not known.
    public init(_ text: String) throws(SparseKernelsError) {
        description = text
        let halves = text.split(separator: "+", omittingEmptySubsequences: false)
        guard halves.count <= 2 else { throw Self.failure("a method of prefill, and one of decoding behind +", text) }
        func parts(_ half: Substring) -> (String, [Substring]) {
            let parts = half.split(separator: ":", omittingEmptySubsequences: false)
            return (parts.first.map(String.init) ?? "", Array(parts.dropFirst()))
        }
        (prefillName, prefillValues) = parts(halves[0])
        (decodingName, decodingValues) = halves.count == 2 ? parts(halves[1]) : ("dense", [])
        // Budgets have no error that depends on the context.
        _ = try prefill(at: 1024)
        _ = try decoding(at: 1024)
    }

    /// Reads a list with commas between.
    public static func list(_ text: String) throws(SparseKernelsError) -> [MethodSpec] {
        var specs: [MethodSpec] = []
        for part in text.split(separator: ",", omittingEmptySubsequences: false) { specs.append(try MethodSpec(String(part))) }
        return specs
    }

    private static func failure(_ expected: String, _ actual: some Any) -> SparseKernelsError {
        SparseKernelsError(.invalidArgument, "method", expected: expected, actual: "\"\(actual)\"")
    }

    /// The values of a method, in order, with defaults.
    private struct Values {
        let values: [Substring]
        let name: String

        func expect(atMost count: Int) throws(SparseKernelsError) {
            if values.count > count { throw failure("\(name) with at most \(count) values", values.joined(separator: ":")) }
        }

        func tokens(_ index: Int, _ standard: TokenBudget, at context: Int) throws(SparseKernelsError) -> Int {
            guard index < values.count else { return standard.tokens(at: context) }
            guard let budget = TokenBudget(values[index]) else {
                throw failure(
                    "a number of tokens or a part of the context such as 25% as value \(index + 1) of \(name)", values[index])
            }
            return budget.tokens(at: context)
        }

        func number(_ index: Int, _ standard: Double) throws(SparseKernelsError) -> Double {
            guard index < values.count else { return standard }
            guard let number = Double(values[index]), number >= 0, number <= 1 else {
                throw failure("a number from 0 to 1 as value \(index + 1) of \(name)", values[index])
            }
            return number
        }

        func integer(_ index: Int, _ standard: Int) throws(SparseKernelsError) -> Int {
            guard index < values.count else { return standard }
            guard let number = Int(values[index]), number >= 1 else {
                throw failure("a whole number above 0 as value \(index + 1) of \(name)", values[index])
            }
            return number
        }
    }

    /// The method of prefill at a context.
    public func prefill(at context: Int) throws(SparseKernelsError) -> PrefillMethod {
        let values = Values(values: prefillValues, name: prefillName)
        try values.expect(atMost: ["dense": 0, "sparge": 1][prefillName] ?? 2)
        switch prefillName {
        case "dense": return .dense
        case "xattention": return .xAttention(threshold: try values.number(0, 0.9), stride: try values.integer(1, 16))
        case "minference":
            return .mInference(
                vertical: try values.tokens(0, .tokens(1000), at: context),
                slash: try values.tokens(1, .tokens(4096), at: context))
        case "sparge": return .sparge(keepRatio: try values.number(0, 0.5))
        case "streaming":
            return .streaming(
                sink: try values.tokens(0, .tokens(128), at: context), local: try values.tokens(1, .tokens(1024), at: context))
        case "lserve":
            return .lServe(
                sink: try values.tokens(0, .tokens(128), at: context), local: try values.tokens(1, .tokens(4096), at: context))
        default:
            throw Self.failure("a prefill of dense, xattention, minference, sparge, streaming and lserve", prefillName)
        }
    }

    /// The method of decoding at a context.
    public func decoding(at context: Int) throws(SparseKernelsError) -> DecodingMethod {
        let values = Values(values: decodingValues, name: decodingName)
        try values.expect(atMost: ["dense": 0, "quest": 1][decodingName] ?? 2)
        switch decodingName {
        case "polar":
            if decodingValues.isEmpty || decodingValues.count == 2 && !routesGroups {
                throw Self.failure("polar:HEADS, or polar:GROUPS:groups", "polar" + decodingValues.map { ":" + $0 }.joined())
            }
            return .polar(heads: try values.integer(0, 1))
        case "dense": return .dense
        case "streaming":
            return .streaming(
                sink: try values.tokens(0, .tokens(128), at: context), local: try values.tokens(1, .tokens(1024), at: context))
        case "quest": return .quest(tokens: try values.tokens(0, .part(0.25), at: context))
        case "twilight":
            return .twilight(tokens: try values.tokens(0, .part(0.5), at: context), topP: try values.number(1, 0.9))
        case "lserve":
            return .lServe(tokens: try values.tokens(0, .part(0.25), at: context), interval: try values.integer(1, 4))
        default: throw Self.failure("a decoding of dense, streaming, quest, twilight, lserve and polar", decodingName)
        }
    }

    /// Whether decoding needs routers of heads.
    public var needsHeadRouters: Bool { decodingName == "polar" }
    /// Whether they choose key/value heads, whose query heads attend together.
    public var routesGroups: Bool { needsHeadRouters && decodingValues.count == 2 && decodingValues[1] == "groups" }
    /// Whether both are dense.
    public var isDense: Bool { prefillName == "dense" && decodingName == "dense" }
    /// Whether decoding is dense.
    public var hasDenseDecoding: Bool { decodingName == "dense" }
    /// Whether prefill is dense.
    public var hasDensePrefill: Bool { prefillName == "dense" }
}
