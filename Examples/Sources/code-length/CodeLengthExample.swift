import Foundation
import SparseKernels
import SparseKernelsModels
import Terminal

/// The quality of a byte-level Llama model's predictions of a text, in bits per byte.
///
///     swift run --package-path Examples -c release code-length MODEL-FOLDER TEXT
///
/// The folder has `config.json` and `model.safetensors`, with the 256 byte values as the vocabulary.
@main
struct CodeLengthExample {
    static func main() throws {
        guard CommandLine.arguments.count == 3 else {
            printError("usage: code-length MODEL-FOLDER TEXT")
            exit(2)
        }
        let model = try LanguageModel(folder: CommandLine.arguments[1])
        let bytes = try contents(ofFile: CommandLine.arguments[2]).map(Int.init)
        let parts = stride(from: 0, to: bytes.count, by: 2048).map { Array(bytes[$0..<min($0 + 2048, bytes.count)]) }
        let progress = ProgressLine(total: parts.count)
        var bits = 0.0
        for (index, part) in parts.enumerated() {
            progress.begin("part \(index + 1)")
            bits += try LanguageModel.codeLength(model.logits(part), part)
            progress.finishCase()
        }
        progress.clear()
        // The first byte of a part is not predicted.
        print("\(Format.number(bits / Double(max(1, bytes.count - parts.count)))) bits per byte")
    }
}
