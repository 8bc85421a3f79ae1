public import SparseKernels

/// Byte-pair encoding as a Hugging Face `tokenizer.json` describes it.
///
/// Two kinds are read. Byte-level ones (GPT-2, GPT-4o, Llama 3, Qwen, Tekken) cut a text into words by a pattern and merge the
/// bytes of each. SentencePiece-like ones (Llama 2, Mistral, Gemma) turn spaces into "▁" and merge characters; a character
/// that has no token becomes its bytes. A component that is not known is an error that names it, because the tokens would be those
/// of another tokenizer.
///
/// Differences from the program that the format belongs to: bytes that form no character are decoded as they are, not as
/// replacement characters; dropout, truncation, padding and what a post-processor adds behind a text are ignored. Special tokens
/// and unknown ids are decoded to nothing.
///
/// - Complexity: encoding takes O(n log n) for a piece of n bytes, and pieces are independent. There is no worse text.
public struct BPETokenizer: Tokenizing {
    public let vocabularySize: Int
    public let endTokens: Set<Int>
    public let startTokens: [Int]
    let normalizer: Normalizer
    let preTokenizer: PreTokenizer
    let model: BPEModel
    /// Looked for in the text as it is, and in the normalised text.
    private let plainTokens: AddedTokens
    private let normalizedTokens: AddedTokens
    private let decoder: TokenDecoder
    /// The ids of special tokens by their names.
    private let specials: [String: Int]

    /// Reads a `tokenizer.json`.
    ///
    /// - Parameters:
    ///   - path: the file.
    ///   - endTokens: what ends a text. The file does not say it: it is `eos_token_id` of `generation_config.json`.
    /// - Throws: `.inputOutput` when the file cannot be read; `.malformedFile`, naming the place in it, when it is damaged or
    ///   has a component that is not known.
    public init(path: String, endTokens: Set<Int> = []) throws(SparseKernelsError) {
        let root = TokenizerPart(place: path, value: try JSONTree(Array(contents(ofFile: path)), source: path))
        try self.init(root, endTokens: endTokens)
    }

    init(_ root: TokenizerPart, endTokens: Set<Int>) throws(SparseKernelsError) {
        normalizer = try Normalizer(try root.part("normalizer"))
        preTokenizer = try PreTokenizer(try root.part("pre_tokenizer"))
        let model = try BPEModel(try root.required("model"), isByteLevel: preTokenizer.isByteLevel)
        let added = try AddedTokens.read(try root.part("added_tokens"))
        self.model = model
        plainTokens = AddedTokens(added.filter { !$0.isNormalized })
        let normalizer = normalizer
        // They are looked for in the normalised text, so they are normalised as well.
        normalizedTokens = AddedTokens(
            added.filter(\.isNormalized).map { token in
                AddedTokens.Token(
                    id: token.id, content: normalizer(token.content), isSingleWord: token.isSingleWord,
                    stripsLeft: token.stripsLeft, stripsRight: token.stripsRight, isNormalized: true, isSpecial: token.isSpecial
                )
            })
        vocabularySize = max(model.count, (added.map(\.id).max() ?? -1) + 1)
        decoder = try TokenDecoder(
            try root.part("decoder"), model: model, added: added, count: vocabularySize, isByteLevel: preTokenizer.isByteLevel)
        startTokens = try Self.startTokens(try root.part("post_processor"))
        specials = Dictionary(
            added.map { (Self.string($0.content), $0.id) }, uniquingKeysWith: { first, _ in first })
        self.endTokens = endTokens
        if let token = endTokens.first(where: { $0 < 0 || $0 >= vocabularySize }) {
            throw SparseKernelsError(
                .invalidArgument, "end tokens", expected: "ids from 0 to \(vocabularySize - 1)", actual: "\(token)")
        }
    }

    /// The id of an added token such as "<|eot_id|>"; nil when there is none of this name.
    public func special(_ name: String) -> Int? { specials[name] }

    private static func string(_ scalars: [Unicode.Scalar]) -> String {
        var text = ""
        text.unicodeScalars.append(contentsOf: scalars)
        return text
    }

    /// What a template puts before a text.
    private static func startTokens(_ part: TokenizerPart?) throws(SparseKernelsError) -> [Int] {
        var tokens: [Int] = []
        for component in try part?.components("processors") ?? [] {
            switch try component.text("type") {
            case "ByteLevel": continue
            case "TemplateProcessing":
                for item in try component.required("single").elements() {
                    guard let special = try item.part("SpecialToken") else { break }
                    let name = try special.text("id")
                    let ids = try component.required("special_tokens").required(name).required("ids")
                    for id in try ids.elements() { tokens.append(try id.integer()) }
                }
            default: throw try component.unknown("post-processor", "Sequence, ByteLevel, TemplateProcessing")
            }
        }
        return tokens
    }

    public func encode(_ text: String) -> [Int] { encode(text, readsSpecialTokens: true) }

    /// The tokens of a text.
    /// - Parameter readsSpecialTokens: whether names of added tokens in the text become these tokens. A text from outside may
    ///   contain them, and should not end a conversation.
    public func encode(_ text: String, readsSpecialTokens: Bool) -> [Int] {
        var result: [Int] = []
        func appendText(_ scalars: [Unicode.Scalar], isFirst: Bool) {
            for piece in preTokenizer.pieces(of: scalars, isFirst: isFirst) { model.append(piece, to: &result) }
        }
        let scalars = Array(text.unicodeScalars)
        guard readsSpecialTokens else {
            appendText(normalizer(scalars), isFirst: true)
            return result
        }
        for (index, part) in plainTokens.parts(of: scalars).enumerated() {
            guard case .text(let range) = part else {
                if case .token(let id) = part { result.append(id) }
                continue
            }
            let normalized = normalizer(Array(scalars[range]))
            for (inner, part) in normalizedTokens.parts(of: normalized).enumerated() {
                switch part {
                case .token(let id): result.append(id)
                case .text(let range): appendText(Array(normalized[range]), isFirst: index == 0 && inner == 0)
                }
            }
        }
        return result
    }

    public func bytes(of token: Int) -> [UInt8] { decoder.bytes(of: token) }

    public func decode(_ tokens: [Int]) -> [UInt8] { decoder.decode(tokens) }
}
