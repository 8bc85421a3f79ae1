import Foundation
import SparseKernels
import SparseKernelsModels

/// A linear layer of a trained model with recorded inputs.
struct RecordedLayer {
    let name: String
    var followsGELU = false
    /// Reads weight, bias and input. The closure announces slow steps to the user.
    let read: (_ announce: (String) -> Void) throws -> (weight: Tensor<Float>, bias: Tensor<Float>?, input: Tensor<Float>)

    /// Loads the layer, with the first three quarters of the tokens to calibrate it and the others to judge it.
    func load(_ announce: (String) -> Void) throws -> (LinearLayer, Tensor<Float>) {
        let (weight, bias, input) = try read(announce)
        let (tokens, columns) = (input.shape[0], input.shape[1])
        let seen = tokens * 3 / 4
        let layer = LinearLayer(
            name: name, weight: weight, bias: bias, calibration: try input.firstRows(seen), followsGELU: followsGELU)
        let source = input.span
        return (layer, try Tensor([tokens - seen, columns]) { source[seen * columns + $0] })
    }
}

extension RecordedLayer {
    /// The layers of the file that is shipped with the benchmarks; none if the file is not beside the program.
    ///
    /// `record` writes such a file. For each layer it has the input `[tokens, inFeatures]` under the layer's name, and
    /// `[outFeatures, inFeatures]` under the name with ".weight".
    static var shipped: [RecordedLayer] {
        guard let path = DataFiles.capture("code-lm-layers"), let file = try? SafetensorsFile(path: path) else { return [] }
        return file.tensors.map(\.name).filter { file["\($0).weight"] != nil }.sorted().map { name in
            RecordedLayer(name: shortened(name)) { _ in
                try (file.floatTensor("\(name).weight"), nil, file.floatTensor(name))
            }
        }
    }

    /// Every linear layer of two blocks of code-lm and of video-dit, if `SPARSEKERNELS_DATA` has them. Inputs are recorded on
    /// demand.
    static var models: [RecordedLayer] { codeLayers + videoLayers }

    private static var codeLayers: [RecordedLayer] {
        guard let folder = DataFiles.external("models/code-lm"), let text = DataFiles.text,
            let file = try? SafetensorsFile(path: folder + "/model.safetensors")
        else { return [] }
        let recording = Recording { try RecordCommand.record(folder: folder, text: text, tokens: 2048) }
        return layers(of: file, blocks: ["layers.1.", "layers.4."], suffix: "_proj").map { name in
            RecordedLayer(name: shortened(name)) { announce in
                announce("running the model")
                return try (file.floatTensor("\(name).weight"), nil, recording.get().sample(of: name))
            }
        }
    }

    /// Inputs of every other token of the denoising step that is among the golden cases.
    private static var videoLayers: [RecordedLayer] {
        guard let folder = DataFiles.external("models/video-dit"),
            let step = DataFiles.external("goldens/models/video_dit_step.safetensors"),
            let file = try? SafetensorsFile(path: folder + "/model.safetensors")
        else { return [] }
        let recording = Recording { try videoInputs(folder: folder, step: step) }
        return layers(of: file, blocks: ["blocks.2.", "blocks.7."], suffix: "").map { name in
            let parts = name.split(separator: ".")
            return RecordedLayer(name: "video-dit \(parts[1]) \(parts[2])", followsGELU: parts[2] == "down") { announce in
                announce("running the model")
                let input = try recording.get()[name]!
                return try (file.floatTensor("\(name).weight"), file.floatTensor("\(name).bias"), input)
            }
        }
    }

    private static func videoInputs(folder: String, step path: String) throws -> [String: Tensor<Float>] {
        let step = try SafetensorsFile(path: path)
        var inputs: [String: Tensor<Float>] = [:]
        _ = try VideoTransformer(folder: folder).velocity(
            of: step.floatTensor("in.x"), prompt: step.tensor("in.tokens", as: Int32.self).elements.map(Int.init), time: 0.7
        ) { name, input throws(SparseKernelsError) in
            let columns = input.shape[1]
            let source = input.span
            inputs[name] = try Tensor([input.shape[0] / 2, columns]) { source[$0 / columns * 2 * columns + $0 % columns] }
        }
        return inputs
    }

    private static func layers(of file: SafetensorsFile, blocks: [String], suffix: String) -> [String] {
        file.tensors.map(\.name).filter { name in
            name.hasSuffix(suffix + ".weight") && blocks.contains { name.contains($0) }
        }.map { String($0.dropLast(".weight".count)) }.sorted()
    }

    /// Shortens "model.layers.3.mlp.down_proj" to "code-lm 3 down_proj".
    private static func shortened(_ name: String) -> String {
        let parts = name.split(separator: ".")
        return "code-lm " + parts.drop { $0 != "layers" }.dropFirst().prefix(1).joined() + " " + (parts.last ?? "")
    }

    /// The recorded result of one run of a model, made when the first layer needs it.
    private final class Recording<Result> {
        private let make: () throws -> Result
        private var result: Result?

        init(_ make: @escaping () throws -> Result) { self.make = make }

        func get() throws -> Result {
            if let result { return result }
            let made = try make()
            result = made
            return made
        }
    }
}
