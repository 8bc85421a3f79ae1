import Foundation
public import SparseKernels

/// The texts of a folder as one sequence of tokens, on which models are measured.
public struct TextCorpus: Sendable {
    public let tokens: [Int]
    /// The files, by path, in the order in which they are in `tokens`.
    public let files: [String]
    /// Bytes of all files.
    public let byteCount: Int

    /// Reads texts: a file as it is, or of a folder all files with one of these extensions, whatever their depth, in the order of
    /// their paths. Hidden files and folders are left out. Links to folders are not followed.
    ///
    /// An end token follows each file where the tokenizer has one.
    ///
    /// - Throws: `.inputOutput` for a path that cannot be read, `.notFound` when there is no such file.
    public init(
        path: String, extensions: Set<String> = ["swift"], tokenizer: any Tokenizing
    ) throws(SparseKernelsError) {
        var isFolder: ObjCBool = false
        guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
            throw SparseKernelsError(.inputOutput, path, expected: "a text or a folder of texts", actual: "nothing there")
        }
        let files = isFolder.boolValue ? Self.files(in: path, extensions) : [path]
        guard !files.isEmpty else {
            throw SparseKernelsError(
                .notFound, path,
                expected: "a folder with files \(extensions.sorted().map { "*." + $0 }.joined(separator: ", "))",
                actual: "none")
        }
        var (tokens, byteCount): ([Int], Int) = ([], 0)
        let separator = tokenizer.endTokens.min().map { [$0] } ?? []
        for file in files {
            let bytes = Array(try contents(ofFile: file))
            byteCount += bytes.count
            tokens += tokenizer.encode(bytes: bytes) + separator
        }
        (self.tokens, self.files, self.byteCount) = (tokens, files, byteCount)
    }

    /// A corpus of tokens that are there already.
    public init(tokens: [Int], byteCount: Int) {
        self.tokens = tokens
        files = []
        self.byteCount = byteCount
    }

    private static func files(in folder: String, _ extensions: Set<String>) -> [String] {
        let enumerator = FileManager.default.enumerator(atPath: folder)
        var files: [String] = []
        while let name = enumerator?.nextObject() as? String {
            let isHidden = name.split(separator: "/").contains { $0.hasPrefix(".") }
            if !isHidden, extensions.contains(URL(fileURLWithPath: name).pathExtension) { files.append("\(folder)/\(name)") }
        }
        return files.sorted()
    }

    /// The starts of windows that are spread evenly over the corpus, from its start to its end.
    ///
    /// - Parameters:
    ///   - count: the number of windows. Fewer where the corpus has no more places.
    ///   - length: tokens of each.
    /// - Throws: `.invalidArgument` when the corpus is shorter than a window.
    public func windows(_ count: Int, length: Int) throws(SparseKernelsError) -> [Range<Int>] {
        guard length >= 1, length <= tokens.count, count >= 1 else {
            throw SparseKernelsError(
                .invalidArgument, "windows", expected: "one or more, of 1 to \(tokens.count) tokens, as the texts have",
                actual: "\(count) of \(length)")
        }
        let places = tokens.count - length + 1
        let number = min(count, places)
        return (0..<number).map { index in
            let start = number == 1 ? 0 : index * (places - 1) / (number - 1)
            return start..<start + length
        }
    }
}
