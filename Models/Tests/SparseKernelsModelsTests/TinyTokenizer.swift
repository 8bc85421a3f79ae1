import Foundation
import SparseKernelsModels

/// A folder with a small `tokenizer.json`. It is removed when the test ends.
final class TinyTokenizer {
    let folder = NSTemporaryDirectory() + "sparsekernels-tokenizer-\(UUID().uuidString)"
    var path: String { folder + "/tokenizer.json" }

    init(_ text: String) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try write(text, to: "tokenizer.json")
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    func write(_ text: String, to name: String) throws {
        try Data(text.utf8).write(to: URL(fileURLWithPath: "\(folder)/\(name)"))
    }

    /// A text as JSON has it.
    static func json(_ text: String) -> String {
        let escaped = text.unicodeScalars.map { scalar -> String in
            switch scalar {
            case "\"": "\\\""
            case "\\": "\\\\"
            default: scalar.value < 0x20 ? String(format: "\\u%04x", scalar.value) : String(scalar)
            }
        }
        return "\"\(escaped.joined())\""
    }

    /// The characters that stand for bytes, from the description of GPT-2's encoder: printable ones for themselves, and the others, in
    /// order, those from U+0100 on.
    static let byteCharacters: [String] = {
        var others = 0
        return (0..<256).map { byte in
            let isPrintable = (33...126).contains(byte) || (161...172).contains(byte) || (174...255).contains(byte)
            if !isPrintable { others += 1 }
            return String(Unicode.Scalar(UInt32(isPrintable ? byte : 255 + others))!)
        }
    }()

    /// A byte-level tokenizer: ids 0 to 255 are the bytes, then the merges in their order. Merges are written with the characters
    /// that stand for bytes.
    static func byteLevel(
        merges: [(String, String)] = [], asPairs: Bool = false, pattern: String? = nil, ignoresMerges: Bool = false,
        moreTokens: [String] = [], added: String = "[]", postProcessor: String = "null", normalizer: String = "null"
    ) -> String {
        var vocabulary: [String] = byteCharacters
        for (left, right) in merges where !vocabulary.contains(where: { $0.utf8.elementsEqual((left + right).utf8) }) {
            vocabulary.append(left + right)
        }
        vocabulary += moreTokens
        let entries = vocabulary.enumerated().map { "\(json($1)): \($0)" }.joined(separator: ", ")
        let rules = merges.map { asPairs ? "[\(json($0.0)), \(json($0.1))]" : json("\($0.0) \($0.1)") }
        let byteLevel =
            #"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": \#(pattern == nil)}"#
        let preTokenizer =
            pattern.map {
                #"{"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": \#(json($0))}, "behavior": "Isolated", "invert": false}, \#(byteLevel)]}"#
            } ?? byteLevel
        return """
            {"version": "1.0", "truncation": null, "padding": null, "added_tokens": \(added), "normalizer": \(normalizer),
             "pre_tokenizer": \(preTokenizer), "post_processor": \(postProcessor), "decoder": {"type": "ByteLevel"},
             "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": \(ignoresMerges),
              "vocab": {\(entries)}, "merges": [\(rules.joined(separator: ", "))]}}
            """
    }
}
