import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

@Suite("Damaged files of tokenizers")
struct TokenizerFileTests {
    private static let good = TinyTokenizer.byteLevel(merges: [("a", "b")])

    private func error(_ text: String) throws -> SparseKernelsError {
        let file = try TinyTokenizer(text)
        return try #require(throws: SparseKernelsError.self, "\(text.prefix(100))") { _ = try BPETokenizer(path: file.path) }
    }

    @Test(
        "what is not known or does not fit is named",
        arguments: [
            (#""type": "BPE""#, #""type": "WordPiece""#, "model", "WordPiece"),
            (#""end_of_word_suffix": null"#, #""end_of_word_suffix": "</w>""#, "end_of_word_suffix", "</w>"),
            (#""normalizer": null"#, #""normalizer": {"type": "BertNormalizer"}"#, "normalizer", "BertNormalizer"),
            (
                #""normalizer": null"#, #""normalizer": {"type": "Replace", "pattern": {"Regex": "x"}, "content": ""}"#,
                "pattern", "String"
            ),
            (#"{"type": "ByteLevel", "add"#, #"{"type": "Whitespace", "add"#, "pre_tokenizer", "Whitespace"),
            (#""decoder": {"type": "ByteLevel"}"#, #""decoder": {"type": "WordPiece"}"#, "decoder", "WordPiece"),
            (#""post_processor": null"#, #""post_processor": {"type": "BertProcessing"}"#, "post_processor", "BertProcessing"),
            (#""added_tokens": []"#, #""added_tokens": [{"id": 7}]"#, "added_tokens[0]", "content"),
            (#""added_tokens": []"#, #""added_tokens": [{"id": 1e9, "content": "x"}]"#, "added_tokens[0]", "1000000000"),
            (#""a b""#, #""a q b""#, "merges[0]", "a q b"),
            (#""a b""#, #""b a""#, "merges[0]", "ba"),
            (#""ab": 256"#, #""ab": 255"#, "vocab", "255"),
            (#""ab": 256"#, #""ab": -1"#, "ab", "-1"),
            (#""ab": 256"#, #""ab": 1e8"#, "vocab", "100000000"),
            (#""ab": 256"#, #""a": 256"#, "vocab", "\"a\""),
            (#""vocab""#, #""words""#, "model", "vocab"),
            (#""unk_token": null"#, #""unk_token": "?!""#, "unk_token", "?!"),
            (#""fuse_unk": false"#, #""fuse_unk": 0"#, "fuse_unk", "0"),
        ])
    func refusals(old: String, new: String, place: String, word: String) throws {
        let text = Self.good.replacingOccurrences(of: old, with: new)
        #expect(text != Self.good)
        let error = try error(text)
        #expect(error.code == .malformedFile && error.argument.contains("tokenizer.json"), "\(error)")
        #expect("\(error)".contains(place) && "\(error)".contains(word), "\(error)")
    }

    @Test("a pattern that is not known is shown")
    func pattern() throws {
        let error = try error(TinyTokenizer.byteLevel(pattern: #"\w+|\s"#))
        #expect(error.argument.contains("Regex") && error.actual.contains(#"\w+|\s"#), "\(error)")
    }

    @Test("no JSON, broken JSON, too deep JSON, JSON that is not UTF-8")
    func syntax() throws {
        let texts = [
            "", "[", "{", "nul", "{}", "[]", "1", "{\"model\": 1}", "{\"model\": {\"vocab\": {}, \"merges\": {}}}",
            Self.good + "x",
            "{\"a\" 1}", "{\"a\": \"\\x\"}", "{\"a\": \"\\ud800\"}", "{\"a\": \"\\ud800\\u0041\"}", "{\"a\": \"\n\"}",
            "{\"a\": 1e999}",
            "{\"a\": -}", "{\"a\": .5}", String(repeating: "[", count: 100_000), "{\"model\": {}, \"model\": {}}",
        ]
        for text in texts { #expect(try error(text).code == .malformedFile, "\(text.prefix(60))") }
        let file = try TinyTokenizer("")
        try Data([0x7b, 0x22, 0xff, 0x22, 0x7d]).write(to: URL(fileURLWithPath: file.path))
        let error = try #require(throws: SparseKernelsError.self) { _ = try BPETokenizer(path: file.path) }
        #expect(error.expected == "UTF-8")
        #expect(throws: SparseKernelsError.self) { try BPETokenizer(path: file.folder + "/none") }
    }

    @Test("a file that breaks off anywhere is an error and no crash")
    func truncation() throws {
        let bytes = Array(Self.good.utf8)
        for length in stride(from: 0, to: bytes.count - 1, by: 37) {
            _ = try error(String(decoding: bytes[..<length], as: UTF8.self))
        }
    }

    @Test("escapes of JSON are read, and an empty vocabulary encodes everything to nothing")
    func escapes() throws {
        let text = Self.good.replacingOccurrences(
            of: "\"ab\": 256", with: "\"\\u0061\\u0062\": 256, \"\\ud83d\\ude00\\/\": 257")
        let file = try TinyTokenizer(text)
        let tokenizer = try BPETokenizer(path: file.path)
        #expect(tokenizer.encode("ab") == [256] && tokenizer.text([257]) == "😀/")
        let empty = try TinyTokenizer(#"{"model": {"vocab": {}, "merges": []}}"#)
        #expect(try BPETokenizer(path: empty.path).encode("text").isEmpty)
    }
}
