import Foundation
public import SparseKernels
import SparseKernelsModels
import SparseKernelsTraining

/// The state of a run in one file, which is replaced in one step: factors, moments, steps, the place in the text, the seed of all random
/// numbers, and the losses so far.
///
/// A run that goes on from it has the bits of one that was never interrupted, on processors of one instruction set.
public enum FineTuningCheckpoint {
    static let format = "sparsekernels.finetuning"
    static let version = "1"

    /// Writes the state of a trainer.
    ///
    /// - Parameters:
    ///   - path: the file. What was there before stays until the new file is whole and on the disk.
    ///   - trainer: the run.
    ///   - windows: the text.
    ///   - curve: the losses so far.
    /// - Throws: `.inputOutput`.
    public static func write(
        to path: String, _ trainer: LoRATrainer, windows: TrainingWindows, curve: FineTuningCurve
    ) throws(SparseKernelsError) {
        var writer = SafetensorsWriter(metadata: [
            "format": format, "version": version, "settings": try text(trainer.configuration), "model": trainer.model.digest,
            "text": windows.digest, "steps": "\(trainer.completedSteps)",
            "windows": "\(trainer.completedSteps * trainer.configuration.batch)", "seed": "\(trainer.configuration.seed)",
            "curve": try text(curve),
        ])
        let adapters = trainer.adapters
        for place in adapters.factors.indices {
            let name = adapters.layer(place)
            for (tensor, values) in zip(names(name), adapters.tensors(place)) { try writer.add(tensor, values) }
        }
        try writer.write(to: path)
    }

    /// Puts a trainer into the state of a file.
    ///
    /// - Returns: the losses so far.
    /// - Throws: `.inputOutput` when the file cannot be read; `.malformedFile` for one that is damaged or something else;
    ///   `.invalidArgument` for a run with other settings, of another model or on another text, naming what differs. The trainer is
    ///   as it was then.
    public static func restore(
        from path: String, _ trainer: LoRATrainer, windows: TrainingWindows
    ) throws(SparseKernelsError) -> FineTuningCurve {
        let file = try SafetensorsFile(path: path)
        let expected = [("format", format), ("version", version)]
        for (key, value) in expected where file.metadata[key] != value {
            throw SparseKernelsError(
                .malformedFile, "\(path), metadata \"\(key)\"", expected: "\"\(value)\", of a checkpoint of fine-tuning",
                actual: file.metadata[key].map { "\"\($0.prefix(40))\"" } ?? "none")
        }
        func entry(_ key: String) throws(SparseKernelsError) -> String {
            guard let text = file.metadata[key] else {
                throw SparseKernelsError(.malformedFile, "\(path), metadata \"\(key)\"", expected: "there", actual: "none")
            }
            return text
        }
        func decode<Value: Decodable>(_ key: String, as type: Value.Type) throws(SparseKernelsError) -> Value {
            let text = try entry(key)
            guard let value = try? JSONDecoder().decode(Value.self, from: Data(text.utf8)) else {
                throw SparseKernelsError(
                    .malformedFile, "\(path), metadata \"\(key)\"", expected: "as a checkpoint has it", actual: "something else"
                )
            }
            return value
        }
        if let difference = difference(try entry("settings"), try text(trainer.configuration)) {
            throw SparseKernelsError(
                .invalidArgument, "setting \"\(difference.key)\"",
                expected: "\(difference.before), as the run of \(path) began",
                actual: difference.now)
        }
        guard try entry("model") == trainer.model.digest else {
            throw SparseKernelsError(
                .invalidArgument, "model",
                expected: "the one with which the run of \(path) began, with digest \(try entry("model"))",
                actual: "\(trainer.model.name), with digest \(trainer.model.digest)")
        }
        guard try entry("text") == windows.digest else {
            throw SparseKernelsError(
                .invalidArgument, "text",
                expected: "the one with which the run of \(path) began, with digest \(try entry("text"))",
                actual: "one with digest \(windows.digest)")
        }
        let curve = try decode("curve", as: FineTuningCurve.self)
        guard let steps = Int(try entry("steps")), (0...trainer.configuration.steps).contains(steps), curve.steps.count == steps
        else {
            throw SparseKernelsError(
                .malformedFile, "\(path), metadata \"steps\"",
                expected: "from 0 to \(trainer.configuration.steps), with a loss for each step",
                actual: "\(try entry("steps").prefix(40)) with \(curve.steps.count) losses")
        }
        var adapters = trainer.adapters
        for place in adapters.factors.indices {
            var tensors: [Tensor<Float>] = []
            for (name, like) in zip(names(adapters.layer(place)), adapters.tensors(place)) {
                let tensor: Tensor<Float> = try file.tensor(name)
                guard tensor.shape == like.shape else {
                    throw SparseKernelsError(
                        .malformedFile, "\(path), tensor \"\(name)\"", expected: "\(like.shape)", actual: "\(tensor.shape)")
                }
                tensors.append(tensor)
            }
            try adapters.replace(place, tensors, steps: steps)
        }
        trainer.adapters = adapters
        trainer.completedSteps = steps
        return curve
    }

    /// The names of the tensors of a layer, in the order of `TrainedAdapters.tensors`.
    private static func names(_ layer: String) -> [String] {
        ["lora_A", "lora_B"].flatMap { factor in
            ["weight", "first_moment", "second_moment"].map { "\(layer).\(factor).\($0)" }
        }
    }

    private static func text(_ value: some Encodable) throws(SparseKernelsError) -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        // A loss may have become infinite.
        encoder.nonConformingFloatEncodingStrategy = .throw
        guard let data = try? encoder.encode(value) else {
            throw SparseKernelsError(
                .invalidArgument, "checkpoint", expected: "of a run whose losses are finite", actual: "one that has diverged")
        }
        return String(decoding: data, as: UTF8.self)
    }

    /// The first member in which two JSON objects differ, by the order of the keys; nil for equal ones.
    static func difference(_ before: String, _ now: String) -> (key: String, before: String, now: String)? {
        func members(_ text: String) -> [String: String] {
            let object = try? JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
            return (object ?? [:]).mapValues { value in
                let data = try? JSONSerialization.data(
                    withJSONObject: value, options: [.fragmentsAllowed, .sortedKeys, .withoutEscapingSlashes])
                return String(decoding: data ?? Data(), as: UTF8.self)
            }
        }
        let (old, new) = (members(before), members(now))
        for key in Set(old.keys).union(new.keys).sorted() where old[key] != new[key] {
            return (key, old[key] ?? "none", new[key] ?? "none")
        }
        return nil
    }
}
