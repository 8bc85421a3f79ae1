// People rename files, download pages instead of files, and pass the wrong one of two files. Such a file is not a damaged
// safetensors file, and its kind is a better message than the number of a wrong byte.

/// The kind of a file that is not safetensors, as text for after "got"; nil when it is not recognised.
///
/// It reads the start of the file and at most a header line or two, whatever the size of the file. Call it only for files whose
/// first bytes cannot be a safetensors header, because it does not check that.
func foreignFormat(of file: Span<UInt8>) -> String? {
    if file.isEmpty { return "an empty file" }
    let start = FileStart(file)
    for (bytes, name) in signatures where start.begins(with: bytes) { return name }
    return start.archive ?? start.pickle ?? start.protobuf ?? start.text ?? start.zeros
}

/// Formats that a fixed sequence of bytes at the start identifies, with hints for the reader of the message.
private let signatures: [(bytes: [UInt8], name: String)] = [
    (
        Array("version https://git-lfs".utf8),
        "a Git LFS pointer, a few lines of text in place of the file: `git lfs pull` fetches the file"
    ),
    (Array("GGUF".utf8), "a GGUF file (llama.cpp)"),
    (Array("FUGG".utf8), "a big-endian GGUF file (llama.cpp)"),
    (Array("lmgg".utf8), "a GGML file (llama.cpp, before GGUF)"), (Array("fmgg".utf8), "a GGML file (llama.cpp, before GGUF)"),
    (Array("tjgg".utf8), "a GGML file (llama.cpp, before GGUF)"),
    (Array("algg".utf8), "a GGML adapter (llama.cpp, before GGUF)"),
    ([0x1f, 0x8b, 0x08], "a gzip archive"), ([0x28, 0xb5, 0x2f, 0xfd], "a Zstandard archive"),
    ([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00], "an xz archive"), (Array("BZh".utf8), "a bzip2 archive"),
    ([0x37, 0x7a, 0xbc, 0xaf, 0x27, 0x1c], "a 7z archive"), (Array("Rar!".utf8), "a RAR archive"),
    ([0x04, 0x22, 0x4d, 0x18], "an LZ4 archive"),
    ([0x93] + Array("NUMPY".utf8), "an array of NumPy (.npy)"),
    ([0x89] + Array("HDF\r\n".utf8), "an HDF5 file (Keras, MATLAB)"),
    (Array("PAR1".utf8), "a Parquet file"), (Array("ARROW1".utf8), "an Arrow file"),
    (Array("SQLite format 3".utf8), "an SQLite database"), (Array("MATLAB 5.0".utf8), "a MATLAB file"),
    ([0x89] + Array("PNG".utf8), "a PNG image"), ([0xff, 0xd8, 0xff], "a JPEG image"), (Array("GIF8".utf8), "a GIF image"),
    (Array("RIFF".utf8), "a RIFF file (WebP, WAV, AVI)"), (Array("%PDF".utf8), "a PDF document"),
    ([0x7f] + Array("ELF".utf8), "an ELF program or library"),
]

/// The start of a file, with tests for its format.
private struct FileStart: ~Escapable {
    private let file: Span<UInt8>

    @_lifetime(copy file)
    init(_ file: Span<UInt8>) { self.file = file }

    func begins(with bytes: [UInt8], at offset: Int = 0) -> Bool {
        guard offset + bytes.count <= file.count else { return false }
        for (i, byte) in bytes.enumerated() where file[offset + i] != byte { return false }
        return true
    }

    private func byte(_ offset: Int) -> UInt8 { offset < file.count ? file[offset] : 0 }

    // MARK: - Archives and objects

    /// ZIP archives, by the name of their first member, and tar archives.
    var archive: String? {
        if begins(with: Array("PK".utf8)) && [[3, 4], [5, 6], [7, 8]].contains([byte(2), byte(3)]) {
            let length = Int(byte(26)) | Int(byte(27)) << 8
            let member = lossyText(30..<30 + min(length, 256))
            if member.hasSuffix(".npy") { return "an archive of NumPy (.npz)" }
            if ["data.pkl", "version", "byteorder", ".format_version", ".storage_alignment"].contains(where: member.hasSuffix) {
                return "a PyTorch checkpoint (.bin, .pt, .ckpt; a ZIP archive with a pickle), which has to be converted"
            }
            return "a ZIP archive, such as a PyTorch checkpoint"
        }
        // The header of a tar member has its magic after the name and the numbers.
        return begins(with: Array("ustar".utf8), at: 257) ? "a tar archive" : nil
    }

    /// A pickle of protocol 2 or later, by its version and an opcode that such a file starts with. A safetensors file with a
    /// header of 640 bytes has the same first two bytes, but then a zero.
    var pickle: String? {
        guard byte(0) == 0x80, (2...5).contains(byte(1)) else { return nil }
        let isFramed = byte(1) >= 4 && byte(2) == 0x95
        guard isFramed || Array("}]c()XKJMNU\u{8a}".unicodeScalars).contains(Unicode.Scalar(byte(2))) else { return nil }
        return "a Python pickle, such as an old PyTorch checkpoint (.bin, .pt, .ckpt), which has to be converted"
    }

    /// ONNX starts with a version and the name of the program that wrote it. TensorFlow Lite has its name after an offset.
    var protobuf: String? {
        if begins(with: Array("TFL3".utf8), at: 4) { return "a TensorFlow Lite model" }
        let isONNX = byte(0) == 0x08 && byte(2) == 0x12 && byte(3) > 0 && (0x20..<0x7f).contains(byte(4))
        return isONNX ? "a protocol buffer, such as an ONNX model" : nil
    }

    var zeros: String? {
        for i in 0..<min(file.count, 4096) where file[i] != 0 { return nil }
        return file.count < 64 ? nil : "zeros, such as a download that was never filled"
    }

    // MARK: - Text

    /// Text of some kind. No safetensors file starts like text, because the upper bytes of its header length are zeros.
    var text: String? {
        let isMarked = begins(with: [0xef, 0xbb, 0xbf])
        var start = isMarked ? 3 : 0
        for i in start..<max(start, min(file.count, 64)) {
            // Letters of other scripts are above 0x7f.
            let byte = file[i]
            if byte < 0x20 ? !(9...13).contains(byte) : byte == 0x7f { return nil }
        }
        while start < file.count && start < 4096, [9, 10, 12, 13, 32].contains(file[start]) { start += 1 }
        let head = lossyText(start..<start + 64).lowercased()
        if head.hasPrefix("{") || head.hasPrefix("[") {
            return contains("\"weight_map\"", within: 1 << 16)
                ? "the JSON index of a model in several files: open those, which its weight_map names" : "JSON text"
        }
        if head.hasPrefix("<!doctype html") || head.hasPrefix("<html") || head.hasPrefix("<head") {
            return "an HTML page, such as a login or an error in place of a download"
        }
        if head.hasPrefix("<?xml") || head.hasPrefix("<error") {
            return "an XML document, such as an error in place of a download"
        }
        var line = ""
        for scalar in lossyText(start..<start + 256).unicodeScalars {
            if scalar == "\n" || scalar == "\r" { break }
            line.unicodeScalars.append(scalar)
        }
        // The last character of a long line may be cut.
        let isCut = line.unicodeScalars.count > 1
        return line.isEmpty || line.unicodeScalars.dropLast(isCut ? 1 : 0).contains("\u{fffd}")
            ? nil : "text that begins with \(quoted(line, limit: 40))"
    }

    /// Bytes of the file as text. The range may leave the file.
    private func lossyText(_ range: Range<Int>) -> String {
        var bytes: [UInt8] = []
        for i in range.clamped(to: 0..<file.count) { bytes.append(file[i]) }
        return String(decoding: bytes, as: UTF8.self)
    }

    private func contains(_ word: String, within limit: Int) -> Bool {
        let bytes = Array(word.utf8)
        for i in 0..<min(file.count, limit) where file[i] == bytes[0] && begins(with: bytes, at: i) { return true }
        return false
    }
}
