import Foundation
import ModelQuantization
import SparseKernels
import SparseKernelsReference

/// A directory with a small model. It is removed when the test ends.
final class Workshop {
    let path: String
    var model: String { "\(path)/model.safetensors" }
    var output: String { "\(path)/out.safetensors" }
    var partial: String { "\(output).partial" }

    init() throws {
        path = NSTemporaryDirectory() + "sparsekernels-tools-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        try writeModel()
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// Writes three layers of awkward sizes, an embedding, a norm, a small layer and integers.
    func writeModel(seed: UInt64 = 1, changing weight: ((inout Tensor<Float>) -> Void)? = nil) throws {
        var writer = SafetensorsWriter(metadata: ["format": "pt", "origin": "test"])
        try writer.add("embed_tokens.weight", Tensor<Float>.normal([100, 72], seed: seed))
        try writer.add("norm.weight", Tensor<Float>.normal([72], seed: seed))
        try writer.add("step", Tensor<Int64>([1], [7]))
        try writer.add("blocks.2.up.weight", Tensor<BFloat16>.normal([67, 72], seed: seed + 2))
        try writer.add("blocks.2.up.bias", Tensor<Float>.normal([67], seed: seed + 3))
        var last = try Tensor<Float>.normal([72, 67], seed: seed + 4)
        weight?(&last)
        try writer.add("blocks.10.down.weight", last)
        try writer.add("blocks.1.qkv.weight", Tensor<Float>.normal([80, 72], seed: seed + 5))
        try writer.add("tiny.weight", Tensor<Float>.normal([8, 72], seed: seed))
        try writer.write(to: model)
    }

    func quantizer(
        options: QuantizationOptions = Workshop.options, calibration: CalibrationSource = .gaussian(tokens: 24),
        force: Bool = false
    ) throws -> ModelQuantizer {
        try ModelQuantizer(
            model: SafetensorsFile(path: model), options: options, calibration: calibration, output: output,
            replacesOutput: force)
    }

    static var options: QuantizationOptions {
        var options = QuantizationOptions()
        options.rank = 4
        options.smoothing = .fixed(alpha: 0.5, beta: 0.5)
        return options
    }

    var contents: [String] { (try? FileManager.default.contentsOfDirectory(atPath: path).sorted()) ?? [] }
    func bytes(_ file: String) -> Data? { FileManager.default.contents(atPath: file) }
}

/// The events of a run.
struct Log {
    var finished: [String] = []
    var reused: [String] = []

    mutating func note(_ event: ModelQuantizer.Event) {
        guard case .finished(let report, let isReused) = event else { return }
        if isReused { reused.append(report.layer) } else { finished.append(report.layer) }
    }
}

let stop = SparseKernelsError(.inputOutput, "test", expected: "going on", actual: "stopped")
