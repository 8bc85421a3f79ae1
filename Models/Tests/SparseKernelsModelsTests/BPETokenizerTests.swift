import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

@Suite("Byte-pair encoding")
struct BPETokenizerTests {
    /// "he", "ll", "hell", "Ġhe", "lo" as merges 256 to 260.
    private static let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "he"), ("l", "o")]

    @Test("merges are applied in their order, within words", arguments: [false, true])
    func order(asPairs: Bool) throws {
        let file = try TinyTokenizer(TinyTokenizer.byteLevel(merges: Self.merges, asPairs: asPairs))
        let tokenizer = try BPETokenizer(path: file.path)
        let (o, space) = (Int(UInt8(ascii: "o")), 32)
        #expect(tokenizer.vocabularySize == 261)
        #expect(tokenizer.encode("hello") == [258, o])
        // "Ġhe" comes after "ll" and "hell": the word is Ġ hell o, and then nothing fits.
        #expect(tokenizer.encode("hello hello") == [258, o, space, 258, o])
        #expect(tokenizer.encode(" he") == [259])
        #expect(tokenizer.encode("lo llo") == [260, space, 257, o])
        // No merge goes over the border of words.
        #expect(tokenizer.encode("h e") == [104, space, 101])
        #expect(tokenizer.encode("").isEmpty)
        #expect(tokenizer.text([258, o, 259]) == "hello he")
    }

    @Test("a piece that is a token is taken whole only where merges are ignored")
    func ignoredMerges() throws {
        for ignores in [false, true] {
            let file = try TinyTokenizer(
                TinyTokenizer.byteLevel(merges: Self.merges, ignoresMerges: ignores, moreTokens: ["hello", "Ġ€"]))
            #expect(try BPETokenizer(path: file.path).encode("hello") == (ignores ? [261] : [258, 111]))
        }
    }

    /// Merges as the format describes them: the pair of the lowest rank, leftmost first, again and again.
    private static func naive(_ text: [UInt8], _ merges: [(Int, Int)]) -> [Int] {
        var tokens = text.map(Int.init)
        while true {
            var best: (rank: Int, place: Int)?
            for place in tokens.indices.dropLast() {
                let pair = (tokens[place], tokens[place + 1])
                if let rank = merges.firstIndex(where: { $0 == pair }), rank < best?.rank ?? .max { best = (rank, place) }
            }
            guard let best else { return tokens }
            tokens.replaceSubrange(best.place...best.place + 1, with: [256 + best.rank])
        }
    }

    @Test("random merges over random words agree with the description of the format")
    func randomMerges() throws {
        var generator = SplitMix64(seed: 3)
        for _ in 0..<20 {
            var (names, merges): ([String], [(String, String)]) = (["a", "b", "c"], [])
            var ids = ["a": 97, "b": 98, "c": 99]
            while merges.count < 30 {
                let pair = (names.randomElement(using: &generator)!, names.randomElement(using: &generator)!)
                let name = pair.0 + pair.1
                guard ids[name] == nil, name.count < 12 else { continue }
                ids[name] = 256 + merges.count
                names.append(name)
                merges.append(pair)
            }
            let file = try TinyTokenizer(TinyTokenizer.byteLevel(merges: merges))
            let tokenizer = try BPETokenizer(path: file.path)
            let rules = merges.map { (ids[$0.0]!, ids[$0.1]!) }
            for _ in 0..<30 {
                let text = (0..<Int.random(in: 0...60, using: &generator)).map { _ in
                    "abc".utf8.randomElement(using: &generator)!
                }
                #expect(tokenizer.encode(bytes: text) == Self.naive(text, rules))
            }
        }
    }

    @Test("all bytes and all kinds of scalars go there and back; damaged UTF-8 becomes replacement characters")
    func roundTrips() throws {
        let file = try TinyTokenizer(TinyTokenizer.byteLevel(merges: Self.merges))
        let tokenizer = try BPETokenizer(path: file.path)
        for byte in 0..<256 {
            #expect(tokenizer.bytes(of: byte) == [UInt8(byte)])
        }
        #expect(tokenizer.decode(Array(0..<256)) == Array(0...255))
        // Composed and decomposed é are different texts and stay so.
        for text in [
            "h\u{e9}llo", "he\u{301}llo", "😀👩‍👩‍👧", "\u{0}\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}", "a\r\nb\t  c",
        ] {
            #expect(tokenizer.decode(tokenizer.encode(text)) == Array(text.utf8))
        }
        let damaged: [UInt8] = [0x68, 0xff, 0xc0, 0x80, 0xed, 0xa0, 0x80, 0xf0, 0x9f, 0x98, 0x65]
        #expect(tokenizer.decode(tokenizer.encode(bytes: damaged)) == Array(String(decoding: damaged, as: UTF8.self).utf8))
        // A part of a character is decoded as it is, and an id that is none to nothing.
        #expect(tokenizer.decode([0xf0, 0x9f, -1, 9999, .max, .min]) == [0xf0, 0x9f])
    }

    @Test("a long run of one letter takes no square of time")
    func longRun() throws {
        var merges = [("a", "a")]
        while merges.count < 12 { merges.append((merges.last!.0 + merges.last!.1, merges.last!.0 + merges.last!.1)) }
        let file = try TinyTokenizer(TinyTokenizer.byteLevel(merges: merges))
        let tokenizer = try BPETokenizer(path: file.path)
        // 2¹² letters are one token. A square of 4 · 10⁵ symbols would take minutes.
        let tokens = tokenizer.encode(String(repeating: "a", count: 100 * 4096 + 3))
        #expect(tokens == Array(repeating: 267, count: 100) + [256, 97])
        #expect(tokenizer.encode(String(repeating: "\n ", count: 100_000)).count == 200_000)
    }

    @Test("added tokens are found first: the longest, with white space or as whole words where they say so")
    func addedTokens() throws {
        let added = """
            [{"id": 300, "content": "<|end|>", "special": true},
             {"id": 301, "content": "<|end|><|end|>", "special": true},
             {"id": 302, "content": "<tool>", "special": false, "lstrip": true, "rstrip": true, "normalized": false},
             {"id": 303, "content": "let", "special": false, "single_word": true, "normalized": false}]
            """
        let file = try TinyTokenizer(TinyTokenizer.byteLevel(merges: Self.merges, added: added))
        let tokenizer = try BPETokenizer(path: file.path, endTokens: [300])
        #expect(tokenizer.vocabularySize == 304 && tokenizer.endTokens == [300])
        #expect(tokenizer.special("<|end|>") == 300 && tokenizer.special("<|start|>") == nil)
        #expect(tokenizer.encode("he<|end|>he") == [256, 300, 256])
        #expect(tokenizer.encode("<|end|><|end|><|end|>") == [301, 300])
        #expect(tokenizer.encode("he \n<tool>  he") == [256, 302, 256])
        #expect(tokenizer.encode("outlet") == Array("outlet".utf8).map(Int.init))
        #expect(tokenizer.encode("let") == [303])
        #expect(tokenizer.encode("<|end|>", readsSpecialTokens: false).count == 7)
        // Special tokens are no part of the text; others are.
        #expect(tokenizer.text([256, 300, 302, 303]) == "he<tool>let")
        #expect(throws: SparseKernelsError.self) { try BPETokenizer(path: file.path, endTokens: [304]) }
    }

    @Test("templates say what is before a prompt")
    func templates() throws {
        let processor = """
            {"type": "Sequence", "processors": [{"type": "ByteLevel", "trim_offsets": false},
             {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
              "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}}]}
            """
        let file = try TinyTokenizer(TinyTokenizer.byteLevel(moreTokens: ["<s>"], postProcessor: processor))
        let tokenizer = try BPETokenizer(path: file.path)
        #expect(tokenizer.startTokens == [256] && tokenizer.prompt("a") == [256, 97] && tokenizer.encode("a") == [97])
    }

    /// Spaces are ▁, a ▁ comes first, unknown characters are bytes.
    private static let sentencePiece: String = {
        let bytes = (0..<256).map { String(format: "\"<0x%02X>\": %d", $0, $0 + 3) }.joined(separator: ", ")
        return """
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
              {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
             "pre_tokenizer": null,
             "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
              {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
             "added_tokens": [{"id": 1, "content": "<s>", "special": true}],
             "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
              "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, \(bytes), "▁": 259, "a": 260, "b": 261, "▁a": 262, "ab": 263, "▁ab": 264},
              "merges": ["▁ a", "a b", "▁ ab", "▁a b"]}}
            """
    }()

    @Test("SentencePiece-like files: marks for spaces, bytes for unknown characters")
    func marks() throws {
        let file = try TinyTokenizer(Self.sentencePiece)
        let tokenizer = try BPETokenizer(path: file.path)
        #expect(tokenizer.encode("a") == [262])
        // "▁ a" is first, so "ab" is not made; "▁a b" makes the whole.
        #expect(tokenizer.encode("ab ba") == [264, 259, 261, 260])
        #expect(tokenizer.encode("é") == [259, 0xc3 + 3, 0xa9 + 3])
        // A special token begins a new text, which gets its own mark.
        #expect(tokenizer.encode("<s>a") == [1, 262])
        // A text that begins loses the mark; a token in the middle does not.
        #expect(tokenizer.text([264, 262]) == "ab a" && tokenizer.bytes(of: 262) == Array(" a".utf8))
        for text in ["ab  é\n😀 b", "", " a", "▁"] {
            let back = tokenizer.text(tokenizer.encode(text))
            #expect(back == text.replacingOccurrences(of: "▁", with: " "), "\(text)")
        }
    }

    @Test("metaspace: a mark before each word, or before the first text only")
    func metaspace() throws {
        func file(_ scheme: String) throws -> TinyTokenizer {
            try TinyTokenizer(
                """
                {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "\(scheme)", "split": true},
                 "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "\(scheme)"},
                 "added_tokens": [{"id": 5, "content": "<s>", "special": true}],
                 "model": {"vocab": {"▁": 0, "a": 1, "▁a": 2, "a▁": 3, "?": 4}, "unk_token": "?", "merges": ["▁ a", "a ▁"]}}
                """)
        }
        let always = try file("always")
        let first = try file("first")
        let never = try file("never")
        #expect(try BPETokenizer(path: always.path).encode("a a<s>a") == [2, 2, 5, 2])
        #expect(try BPETokenizer(path: first.path).encode("a a<s>a") == [2, 2, 5, 1])
        #expect(try BPETokenizer(path: never.path).encode("a a<s>a") == [1, 2, 5, 1])
        #expect(try BPETokenizer(path: never.path).encode("xya") == [4, 4, 1])
        #expect(try BPETokenizer(path: always.path).text([2, 2]) == "a a")
    }

    @Test("normalisers: composition changes which bytes are encoded, and added tokens are found in the result")
    func normalizers() throws {
        let added = #"[{"id": 256, "content": "É", "special": false, "normalized": true}]"#
        let file = try TinyTokenizer(TinyTokenizer.byteLevel(added: added, normalizer: #"{"type": "NFD"}"#))
        let tokenizer = try BPETokenizer(path: file.path)
        #expect(tokenizer.encode("e\u{e9}") == [101, 101, 0xcc, 0x81])
        #expect(tokenizer.encode("E\u{301}") == [256])
        let lower = try TinyTokenizer(
            TinyTokenizer.byteLevel(
                normalizer: #"{"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "Strip"}]}"#))
        #expect(try BPETokenizer(path: lower.path).text(BPETokenizer(path: lower.path).encode("  Ab C ")) == "ab c")
    }

    @Test("the tokenizer of a folder: its file, bytes without one, and what ends a text")
    func folders() throws {
        let file = try TinyTokenizer(TinyTokenizer.byteLevel(moreTokens: ["<end>"]))
        try file.write(#"{"vocab_size": 257, "eos_token_id": 3}"#, to: "config.json")
        #expect(try TokenizerFolder.tokenizer(of: file.folder).endTokens == [3])
        try file.write(#"{"eos_token_id": [256, 5]}"#, to: "generation_config.json")
        #expect(try TokenizerFolder.tokenizer(of: file.folder).endTokens == [256, 5])
        try FileManager.default.removeItem(atPath: file.path)
        #expect(throws: SparseKernelsError.self) { try TokenizerFolder.tokenizer(of: file.folder) }
        try file.write(#"{"vocab_size": 256}"#, to: "config.json")
        let bytes = try TokenizerFolder.tokenizer(of: file.folder)
        #expect(bytes.endTokens == [0] && bytes.encode("é\u{0}") == [0xc3, 0xa9, 0])
        #expect(
            bytes.decode([0xff, 256, -1, 65]) == [0xff, 65] && bytes.bytes(of: 300).isEmpty && bytes.vocabularySize == 256)
    }
}
