internal import Foundation
public import SparseKernels

/// The scaling of an adapter whose file does not state it: `lora_alpha`, `r` and similar members of `adapter_config.json`.
///
/// The scale of a layer is alpha / rank, or alpha / √rank for rank-stabilised adapters. Patterns give some layers other values.
/// As in PEFT, a pattern is a regular expression for a layer's whole name or for the part after one of its dots, and the first
/// match counts.
///
///     let configuration = try LoRAConfiguration(path: "adapter/adapter_config.json")
///     let adapter = try LoRAAdapter(file: file, layer: layer, configuration: configuration)
///
/// - Source: PEFT, `LoraConfig` and `get_pattern_key`.
public struct LoRAConfiguration: Sendable {
    /// `lora_alpha`; nil means no scaling, except for layers that match a pattern.
    public var alpha: Float?
    /// `r`; nil means the rank of the factors.
    public var rank: Int?
    /// `use_rslora`: alpha / √rank instead of alpha / rank.
    public var isRankStabilized: Bool
    /// `alpha_pattern`.
    public var alphaPatterns: [(pattern: String, alpha: Float)]
    /// `rank_pattern`.
    public var rankPatterns: [(pattern: String, rank: Int)]
    /// The origin for messages: the file or the metadata entry.
    var source = "configuration"

    public init(
        alpha: Float? = nil, rank: Int? = nil, isRankStabilized: Bool = false,
        alphaPatterns: [(pattern: String, alpha: Float)] = [], rankPatterns: [(pattern: String, rank: Int)] = []
    ) {
        self.alpha = alpha
        self.rank = rank
        self.isRankStabilized = isRankStabilized
        self.alphaPatterns = alphaPatterns
        self.rankPatterns = rankPatterns
    }

    /// Reads `adapter_config.json`.
    /// - Throws: `.inputOutput` when the file cannot be read, otherwise as `init(json:named:)`.
    public init(path: String) throws(SparseKernelsError) {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw SparseKernelsError(.inputOutput, path, expected: "a readable file", actual: "none")
        }
        try self.init(json: String(decoding: data, as: UTF8.self), named: path)
    }

    /// Reads the text of `adapter_config.json`.
    ///
    /// - Parameters:
    ///   - text: a JSON object. Without `lora_alpha`, PEFT's default of 8 applies.
    ///   - name: the name of the text in messages.
    /// - Throws: `.malformedFile`, naming the key, for text that is not such an object, values of another kind, and adapters
    ///   that are not just a pair of factors: a `peft_type` other than LORA, `use_dora`, factors that start from a changed
    ///   weight (`init_lora_weights` of PiSSA and similar), or repeated layers.
    public init(json text: String, named name: String = "JSON") throws(SparseKernelsError) {
        guard let members = JSONText(text)?.members else {
            throw SparseKernelsError(
                .malformedFile, name, expected: "a JSON object, as PEFT writes it", actual: quoted(text))
        }
        self.init(alpha: Self.defaultAlpha)
        source = name
        for member in members { try apply(member.key, member.value) }
    }

    /// The default of `lora_alpha` in `LoraConfig`.
    static let defaultAlpha: Float = 8

    // MARK: - The scale of a layer

    /// The factor on the adapter of a layer; nil without an alpha.
    ///
    /// - Parameters:
    ///   - layer: the layer's name in the model.
    ///   - rank: rank of its factors.
    /// - Throws: `.invalidArgument`, or `.malformedFile` when the configuration comes from a file, for a rank that differs from
    ///   that of the factors, an alpha that is not finite, or a pattern that cannot be read.
    public func scale(ofLayer layer: String, rank: Int) throws(SparseKernelsError) -> Float? {
        let alpha = try first(alphaPatterns.map { ($0.pattern, $0.alpha) }, "alpha_pattern", layer) ?? self.alpha
        guard let alpha else { return nil }
        let stated = try first(rankPatterns.map { ($0.pattern, $0.rank) }, "rank_pattern", layer) ?? self.rank
        try check(
            stated ?? rank == rank, "r", expected: "\(rank) for layer \(quoted(layer)), the rank of its factors",
            actual: "\(stated ?? 0)")
        try check(alpha.isFinite, "lora_alpha", expected: "finite", actual: "\(alpha)")
        return Float(Double(alpha) / (isRankStabilized ? Double(rank).squareRoot() : Double(rank)))
    }

    private func first<Value>(
        _ patterns: [(String, Value)], _ key: String, _ layer: String
    ) throws(SparseKernelsError) -> Value? {
        for (pattern, value) in patterns {
            guard let matcher = ModulePattern(pattern) else {
                throw failure(
                    key, expected: "of names, or of regular expressions without back references and assertions",
                    actual: quoted(pattern))
            }
            if matcher.matches(layer) { return value }
        }
        return nil
    }

    // MARK: - Members of an object

    /// Applies a member. Members that do not affect the scale are ignored.
    mutating func apply(_ key: String, _ value: JSONText) throws(SparseKernelsError) {
        switch key {
        case "lora_alpha":
            if value != .null { alpha = try number(key, value) }
        case "r":
            if value != .null { rank = try count(key, value) }
        case "use_rslora": isRankStabilized = try flag(key, value)
        case "alpha_pattern":
            alphaPatterns = try members(key, value).map { member throws(SparseKernelsError) in
                (member.key, try number("\(key), \(member.key)", member.value))
            }
        case "rank_pattern":
            rankPatterns = try members(key, value).map { member throws(SparseKernelsError) in
                (member.key, try count("\(key), \(member.key)", member.value))
            }
        case "peft_type":
            guard case .string(let kind) = value, kind.uppercased() == "LORA" else {
                throw failure(key, expected: "\"LORA\", which is all that is read", actual: value.summary)
            }
        case "use_dora":
            try check(
                !flag(key, value), key, expected: "false: magnitudes (DoRA) need the weight in floating point", actual: "true")
        case "init_lora_weights":
            guard case .string(let kind) = value else { return }
            let changesWeight = ["pissa", "olora", "corda", "loftq", "lora_ga"].contains { kind.lowercased().hasPrefix($0) }
            try check(
                !changesWeight, key,
                expected: "a way that leaves the weight as it is: convert the adapter to plain LoRA when it is saved",
                actual: quoted(kind))
        case "layer_replication", "alora_invocation_tokens":
            try check(value == .null, key, expected: "null", actual: value.summary)
        default: break
        }
    }

    /// The keys that `apply` understands.
    static let keys: Set<String> = [
        "lora_alpha", "r", "use_rslora", "alpha_pattern", "rank_pattern", "peft_type", "use_dora", "init_lora_weights",
        "layer_replication", "alora_invocation_tokens",
    ]

    private func number(_ key: String, _ value: JSONText) throws(SparseKernelsError) -> Float {
        guard case .number(let number) = value, Float(number).isFinite else {
            throw failure(key, expected: "a number", actual: value.summary)
        }
        return Float(number)
    }

    private func count(_ key: String, _ value: JSONText) throws(SparseKernelsError) -> Int {
        guard case .number(let number) = value, let count = Int(exactly: number), count >= 1 else {
            throw failure(key, expected: "an integer of 1 or more", actual: value.summary)
        }
        return count
    }

    private func flag(_ key: String, _ value: JSONText) throws(SparseKernelsError) -> Bool {
        switch value {
        case .bool(let flag): return flag
        case .null: return false
        default: throw failure(key, expected: "true or false", actual: value.summary)
        }
    }

    private func members(_ key: String, _ value: JSONText) throws(SparseKernelsError) -> [JSONText.Member] {
        if value == .null { return [] }
        guard let members = value.members else { throw failure(key, expected: "an object", actual: value.summary) }
        return members
    }

    private func check(
        _ condition: Bool, _ key: String, expected: @autoclosure () -> String, actual: @autoclosure () -> String
    ) throws(SparseKernelsError) {
        if !condition { throw failure(key, expected: expected(), actual: actual()) }
    }

    private func failure(_ key: String, expected: String, actual: String) -> SparseKernelsError {
        SparseKernelsError(
            source == "configuration" ? .invalidArgument : .malformedFile, "\(source), \(quoted(key))", expected: expected,
            actual: actual)
    }
}
