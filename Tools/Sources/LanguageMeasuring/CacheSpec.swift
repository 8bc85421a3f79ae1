public import SparseKernels
public import SparseKernelsModels

/// How keys and values are cached, as people write it: `int4`, `int8/int4` for keys and values, `int4r` for rotated ones.
public struct CacheSpec: Hashable, Sendable, CustomStringConvertible {
    public let key: KVFormat
    public let value: KVFormat
    public let rotatesKeys: Bool
    public let rotatesValues: Bool

    public static let float16 = CacheSpec(.float16, .float16)

    private init(_ key: KVFormat, _ value: KVFormat) {
        (self.key, self.value) = (key, value)
        (rotatesKeys, rotatesValues) = (false, false)
    }

    /// - Throws: `.invalidArgument` for a format that is not known.
    public init(_ text: String) throws(SparseKernelsError) {
        func format(_ text: Substring) throws(SparseKernelsError) -> (KVFormat, Bool) {
            if let format = KVFormat(rawValue: String(text)) { return (format, false) }
            if text.hasSuffix("r"), let format = KVFormat(rawValue: String(text.dropLast())) { return (format, true) }
            throw SparseKernelsError(
                .invalidArgument, "cache format",
                expected:
                    "\(KVFormat.allCases.map(\.rawValue).joined(separator: ", ")), each with r behind it for rotated rows, "
                    + "and with / between those of keys and values",
                actual: "\"\(text)\"")
        }
        let halves = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
        (key, rotatesKeys) = try format(halves[0])
        (value, rotatesValues) = try format(halves[halves.count - 1])
    }

    /// Reads a list with commas between.
    public static func list(_ text: String) throws(SparseKernelsError) -> [CacheSpec] {
        var specs: [CacheSpec] = []
        for part in text.split(separator: ",", omittingEmptySubsequences: false) { specs.append(try CacheSpec(String(part))) }
        return specs
    }

    /// Bytes of the cache for one token, in all layers: keys and values, and two 16-bit numbers per head for those that are codes.
    public func bytesPerToken(_ model: LanguageModelConfiguration) -> Int {
        func bytes(_ format: KVFormat) -> Int {
            let bits =
                switch format {
                case .float32: 32
                case .float16, .bfloat16: 16
                case .int8: 8
                case .int4: 4
                }
            return model.headDim * bits / 8 + (format.isQuantized ? 4 : 0)
        }
        return model.attentionLayers * model.kvHeads * (bytes(key) + bytes(value))
    }

    public var description: String {
        let (key, value) = (key.rawValue + (rotatesKeys ? "r" : ""), value.rawValue + (rotatesValues ? "r" : ""))
        return key == value ? key : "\(key)/\(value)"
    }
}

/// How a session of a command is made.
public struct SessionSpec: Hashable, Sendable {
    public var method: MethodSpec
    public var cache: CacheSpec
    /// The most tokens of a pass; nil means the default of sessions.
    public var chunk: Int?
    /// Layers, from the first on, that stay dense.
    public var denseLayers = 0
    /// The last tokens of a prompt that attend to everything; nil means the default of sessions.
    public var denseTail: Int?
    /// For every layer, whether each KV head is a retrieval head, which matters to LServe only. nil means that all are.
    public var retrievalHeads: [[Bool]]?

    public init(method: MethodSpec, cache: CacheSpec = .float16) {
        self.method = method
        self.cache = cache
    }

    /// The options of a session.
    ///
    /// - Parameters:
    ///   - context: the tokens of a sequence, which budgets are parts of.
    ///   - sequences: how many share the first one's tokens.
    ///   - extra: tokens that they have beyond these, together.
    public func options(context: Int, sequences: Int = 1, extra: Int = 0) throws(SparseKernelsError) -> SessionOptions {
        var options = SessionOptions(
            prefill: try method.prefill(at: context), decoding: try method.decoding(at: context), keyFormat: cache.key,
            valueFormat: cache.value, tokenCapacity: context + extra)
        options.rotatesKeys = cache.rotatesKeys
        options.rotatesValues = cache.rotatesValues
        options.sequenceCapacity = sequences
        options.denseLayers = denseLayers
        options.retrievalHeads = retrievalHeads
        if let chunk { options.chunk = chunk }
        if let denseTail { options.denseTail = denseTail }
        return options
    }
}
