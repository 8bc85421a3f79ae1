import SparseKernels
import Testing

private let zip: [UInt8] = Array("PK\u{3}\u{4}".utf8)

/// The first member of a ZIP archive, stored under the given name.
private func archive(_ member: String) -> [UInt8] {
    zip + [20, 0, 0, 0] + [UInt8](repeating: 0, count: 18) + [UInt8(member.utf8.count), 0, 0, 0] + Array(member.utf8) + [
        0x80, 2,
    ]
}

@Suite("Files that are not safetensors")
struct ForeignFormatTests {
    @Test(
        "the error says what the file is",
        arguments: [
            (Array("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".utf8), "a Git LFS pointer"),
            (Array("GGUF\u{3}\0\0\0\0\0\0\0\0\0".utf8), "a GGUF file"), (Array("GGUF".utf8), "a GGUF file"),
            (Array("tjgg\u{1}\0\0\0\0\0".utf8), "a GGML file"),
            (archive("archive/data.pkl"), "a PyTorch checkpoint"), (archive("pytorch_model/version"), "a PyTorch checkpoint"),
            (archive("weight.npy"), "an archive of NumPy (.npz)"), (archive("readme.txt"), "a ZIP archive"),
            (zip, "a ZIP archive"),
            (Array("PK\u{5}\u{6}".utf8) + [UInt8](repeating: 0, count: 18), "a ZIP archive"),
            ([0x80, 2, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20], "a Python pickle"),
            ([0x80, 2, 0x7d, 0x71, 0, 0x2e], "a Python pickle"),
            ([0x80, 4, 0x95, 1, 0, 0, 0, 0, 0, 0, 0, 0x7d], "a Python pickle"),
            (
                Array(#"{"metadata":{"total_size":1},"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#.utf8),
                "the JSON index"
            ),
            (Array("\n {\n  \"weight_map\": {}\n}\n".utf8), "the JSON index"),
            (Array(#"{"architectures":["X"]}"#.utf8), "JSON text"),
            (Array("[1,2]".utf8), "JSON text"), (Array("{}".utf8), "JSON text"),
            (Array("<!DOCTYPE html>\n<html><body>Sign in</body></html>".utf8), "an HTML page"),
            (Array("\u{feff}\n<HTML lang=\"en\">".utf8), "an HTML page"),
            (Array("<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>".utf8), "an XML document"),
            ([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2], "a gzip archive"),
            ([0x1f, 0x8b, 8, 8, 0x55, 0x66, 0x77, 0x68, 0, 3] + Array("model".utf8), "a gzip archive"),
            ([0x28, 0xb5, 0x2f, 0xfd, 4, 0, 0, 0, 0, 0], "a Zstandard archive"),
            ([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0, 0, 4], "an xz archive"), (Array("BZh91AY&SY".utf8), "a bzip2 archive"),
            ([0x93] + Array("NUMPY\u{1}\0v\0{'descr'".utf8), "an array of NumPy"),
            ([0x89] + Array("HDF\r\n\u{1a}\n\0\0\0\0".utf8), "an HDF5 file"),
            ([0x89] + Array("PNG\r\n\u{1a}\n".utf8), "a PNG image"),
            ([0xff, 0xd8, 0xff, 0xe0, 0, 0x10, 0x4a, 0x46], "a JPEG image"), (Array("%PDF-1.7\n%".utf8), "a PDF document"),
            ([8, 7, 0x12, 7] + Array("pytorch".utf8), "a protocol buffer, such as an ONNX model"),
            ([0x20, 0, 0, 0] + Array("TFL3".utf8), "a TensorFlow Lite model"),
            ([UInt8](repeating: 0x61, count: 100) + [UInt8](repeating: 0, count: 157) + Array("ustar\0".utf8), "a tar archive"),
            (Array("Entry not found".utf8), "text that begins with \"Entry not found\""),
            (Array("Invalid username or password.\nmore".utf8), "text that begins with \"Invalid username or password.\""),
            (Array("Не найдено".utf8), "text that begins with \"Не найдено\""), ([], "an empty file"),
            ([UInt8](repeating: 0, count: 100_000), "zeros"),
        ] as [([UInt8], String)])
    func isNamed(_ bytes: [UInt8], _ name: String) {
        expectMalformed(bytes, "malformed file: hostile.safetensors must be a safetensors file, got \(name)")
        // Most files have many more bytes after the beginning.
        if !bytes.isEmpty && bytes.count < 100_000 && bytes.contains(where: { $0 < 9 }) {
            expectMalformed(bytes + [UInt8](repeating: 1, count: 100_000), "got \(name)")
        }
    }

    @Test("text in a message is short and has no control characters")
    func textIsQuoted() {
        let long = String(repeating: "long ", count: 1000)
        expectMalformed(Array(long.utf8), "text that begins with \"long long")
        expectMalformed(Array("\u{1b}[31mred and more".utf8), "header length")
        expectMalformed(Array("evil text so far, and then so much more of it \u{1b}[31m".utf8), "header length")
    }

    @Test(
        "what cannot be read as any of these is told by its header",
        arguments: [[0xff, 0xff, 0xff], [0x80], [0x80, 2, 0, 0, 0, 0, 0]])
    func unknownFormats(_ bytes: [UInt8]) {
        expectMalformed(bytes + [UInt8](repeating: 0xfe, count: 100), "header length")
        expectMalformed(bytes, "8 bytes of header length or more")
    }

    /// A header of 640 bytes begins as a pickle does, and one of 0x88b1f bytes as a gzip archive.
    @Test(
        "files whose length looks like a signature are read, and told by their damage",
        arguments: [0x280, 0x580, 0x88b1f, 0x2380])
    func lengthsThatLookLikeSignatures(_ length: Int) throws {
        let header = #"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#
        let padded = header + String(repeating: " ", count: length - header.utf8.count)
        #expect(try SafetensorsFile(bytes: fileBytes(padded, data: 1)).tensors.count == 1)
        expectMalformed(fileBytes(padded, data: 2), "where the last tensor ends")
        if length != 0x88b1f { expectMalformed(Array(fileBytes(padded).prefix(100)), "header length must be at most") }
    }
}
