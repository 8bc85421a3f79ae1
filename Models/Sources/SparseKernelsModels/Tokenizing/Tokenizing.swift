/// Text to tokens and back.
///
/// Tokens stand for bytes and not for characters, because a character may be spread over several tokens. Text that is shown
/// while it is generated goes through `StreamedText`, which waits for whole characters.
public protocol Tokenizing: Sendable {
    /// Ids are 0 to `vocabularySize` − 1. Some of them may stand for nothing.
    var vocabularySize: Int { get }

    /// The tokens after which a model has nothing more to say.
    var endTokens: Set<Int> { get }

    /// The tokens that stand before every prompt, such as "begin of text". `encode` does not add them.
    var startTokens: [Int] { get }

    /// The tokens of a text. Names of special tokens in it become these tokens.
    func encode(_ text: String) -> [Int]

    /// The tokens of bytes that are UTF-8, as nearly as the tokenizer can represent others.
    func encode(bytes: [UInt8]) -> [Int]

    /// The bytes that a token adds to a text that was begun before. None for special tokens and unknown ids.
    func bytes(of token: Int) -> [UInt8]

    /// The bytes of a text that begins with these tokens.
    func decode(_ tokens: [Int]) -> [UInt8]
}

extension Tokenizing {
    public var startTokens: [Int] { [] }

    /// Bytes that are not UTF-8 become replacement characters before they are encoded.
    public func encode(bytes: [UInt8]) -> [Int] { encode(String(decoding: bytes, as: UTF8.self)) }

    public func decode(_ tokens: [Int]) -> [UInt8] { tokens.flatMap(bytes(of:)) }

    /// The tokens of a prompt: `startTokens`, then the text.
    public func prompt(_ text: String) -> [Int] { startTokens + encode(text) }

    /// The text that begins with these tokens. Bytes that are not UTF-8 become replacement characters.
    public func text(_ tokens: [Int]) -> String { String(decoding: decode(tokens), as: UTF8.self) }
}

/// A token is a byte. The zero byte separates files, and so ends a text.
public struct ByteTokenizer: Tokenizing {
    public let vocabularySize = 256
    public let endTokens: Set<Int> = [0]

    public init() {}

    public func encode(_ text: String) -> [Int] { text.utf8.map(Int.init) }
    public func encode(bytes: [UInt8]) -> [Int] { bytes.map(Int.init) }
    public func bytes(of token: Int) -> [UInt8] { UInt8(exactly: token).map { [$0] } ?? [] }
    public func decode(_ tokens: [Int]) -> [UInt8] { tokens.compactMap(UInt8.init(exactly:)) }
}
