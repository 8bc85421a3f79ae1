import Foundation
public import SparseKernels

/// The tokenizer of a model's folder.
public enum TokenizerFolder {
    /// Reads `tokenizer.json` and the ends of texts from `generation_config.json` or `config.json`. A folder without tokenizer,
    /// whose model has 256 tokens, has tokens that are bytes.
    ///
    /// - Throws: `.notFound` for a folder of another vocabulary without `tokenizer.json`, and the errors of the files.
    public static func tokenizer(of folder: String) throws(SparseKernelsError) -> any Tokenizing {
        let path = folder + "/tokenizer.json"
        if FileManager.default.fileExists(atPath: path) {
            return try BPETokenizer(path: path, endTokens: try endTokens(of: folder))
        }
        let size = try ConfigurationFile(path: folder + "/config.json").integer("vocab_size")
        guard size == 256 else {
            throw SparseKernelsError(
                .notFound, path, expected: "there, as the model has other tokens than bytes", actual: "\(size) tokens, no file")
        }
        return ByteTokenizer()
    }

    /// `eos_token_id` is a number, or several.
    private static func endTokens(of folder: String) throws(SparseKernelsError) -> Set<Int> {
        for name in ["generation_config.json", "config.json"] {
            let path = "\(folder)/\(name)"
            guard FileManager.default.fileExists(atPath: path) else { continue }
            let part = TokenizerPart(place: path, value: try JSONTree(Array(contents(ofFile: path)), source: path))
            guard let ids = try part.part("eos_token_id") else { continue }
            guard case .array = ids.value else { return [try ids.integer()] }
            var tokens = Set<Int>()
            for id in try ids.elements() { tokens.insert(try id.integer()) }
            return tokens
        }
        return []
    }
}
