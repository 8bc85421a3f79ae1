import ArgumentParser
import Foundation
import SparseKernels
import SparseKernelsModels

struct RecordCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "record", abstract: "Runs code-lm over a text and writes weights and inputs of some layers, in 16 bits.")

    @Argument(help: "Folder with config.json and model.safetensors.")
    var model: String

    @Option(help: "The text: its bytes are the tokens, up to 4096 of them.")
    var text: String

    @Option(help: "Names of layers, comma-separated, such as model.layers.3.self_attn.o_proj.")
    var layers: String

    @Option(help: "Tokens to keep, drawn evenly from those of the text.")
    var tokens = 384

    @Option(help: "The file to write.")
    var output: String

    func run() throws {
        let weights = try SafetensorsFile(path: model + "/model.safetensors")
        let recorder = try Self.record(folder: model, text: text, tokens: tokens)
        var writer = SafetensorsWriter(metadata: [
            "layout": "name: inputs, [tokens, inFeatures]; name.weight: [outFeatures, inFeatures]",
            "source": "code-lm over \(URL(fileURLWithPath: text).lastPathComponent)",
        ])
        for name in layers.split(separator: ",").map(String.init) {
            try writer.add(name, recorder.sample(of: name).converted(to: Float16.self))
            try writer.add("\(name).weight", weights.floatTensor("\(name).weight").converted(to: Float16.self))
        }
        try writer.write(to: output)
    }

    static func record(folder: String, text: String, tokens: Int) throws -> CalibrationRecorder {
        let bytes = try Data(contentsOf: URL(fileURLWithPath: text)).prefix(4096)
        var recorder = try CalibrationRecorder(capacity: tokens)
        try recorder.record(bytes.map(Int.init), through: LanguageModel(folder: folder))
        return recorder
    }
}
