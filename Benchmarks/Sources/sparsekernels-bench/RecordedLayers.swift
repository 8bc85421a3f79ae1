import Foundation
import ModelRunner
import SparseKernels

/// Linear layers of trained models with inputs that were recorded while a model ran.
///
/// A file of recorded layers has, for each, the input `[tokens, inFeatures]` under the layer's name and `[outFeatures, inFeatures]` under
/// the name with ".weight". The quantiser sees three quarters of the tokens, errors are taken over the others.
struct RecordedLayer {
    let name: String
    private let read: (_ announce: (String) -> Void) throws -> (weight: Tensor<Float>, input: Tensor<Float>)

    init(
        _ name: String, read: @escaping (_ announce: (String) -> Void) throws -> (weight: Tensor<Float>, input: Tensor<Float>)
    ) {
        self.name = name
        self.read = read
    }

    /// The layer with tokens to calibrate it by, and others to judge it by.
    func load(_ announce: (String) -> Void) throws -> (LinearLayer, Tensor<Float>) {
        let (weight, input) = try read(announce)
        let (tokens, columns) = (input.shape[0], input.shape[1])
        let seen = tokens * 3 / 4
        let layer = LinearLayer(name: name, weight: weight, bias: nil, calibration: try input.firstRows(seen))
        let source = input.span
        return (layer, try Tensor([tokens - seen, columns]) { source[seen * columns + $0] })
    }
}

enum RecordedLayers {
    /// The layers of the file that comes with the benchmarks; none where the file is not beside the program.
    static var shipped: [RecordedLayer] {
        guard let path = DataFiles.capture("code-lm-layers"), let file = try? SafetensorsFile(path: path) else { return [] }
        return file.tensors.map(\.name).filter { file["\($0).weight"] != nil }.sorted().map { name in
            RecordedLayer(shortened(name)) { _ in try (file.floatTensor("\(name).weight"), file.floatTensor(name)) }
        }
    }

    /// Every linear layer of two blocks of code-lm, where `SPARSEKERNELS_DATA` has the model: inputs are recorded on the spot.
    static var models: [RecordedLayer] {
        guard let folder = DataFiles.external("models/code-lm"), let text = DataFiles.text,
            let file = try? SafetensorsFile(path: folder + "/model.safetensors")
        else { return [] }
        let recording = Recording(folder: folder, text: text)
        return file.tensors.map(\.name).filter { name in
            name.hasSuffix("_proj.weight") && ["layers.1.", "layers.4."].contains { name.contains($0) }
        }.sorted().map { weight in
            let name = String(weight.dropLast(".weight".count))
            return RecordedLayer(shortened(name)) { announce in
                announce("running the model")
                return try (file.floatTensor(weight), recording.layers().sample(of: name))
            }
        }
    }

    /// "model.layers.3.mlp.down_proj" as "code-lm 3 down_proj".
    private static func shortened(_ name: String) -> String {
        let parts = name.split(separator: ".")
        return "code-lm " + parts.drop { $0 != "layers" }.dropFirst().prefix(1).joined() + " " + (parts.last ?? "")
    }

    /// One run of the model over a text, when the first layer asks for it.
    private final class Recording {
        let folder: String
        let text: String
        private var recorder: CalibrationRecorder?

        init(folder: String, text: String) {
            self.folder = folder
            self.text = text
        }

        func layers() throws -> CalibrationRecorder {
            if let recorder { return recorder }
            let recorder = try RecordCommand.record(folder: folder, text: text, tokens: 2048)
            self.recorder = recorder
            return recorder
        }
    }
}
