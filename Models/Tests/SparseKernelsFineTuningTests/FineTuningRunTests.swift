import Foundation
import SparseKernels
import SparseKernelsModels
import SparseLoRA
import Testing

@testable import SparseKernelsFineTuning

@Suite("Runs of fine-tuning")
struct FineTuningRunTests {
    /// A text with something to learn: numbers that count up and start again.
    private static let corpus = TextCorpus(tokens: (0..<2000).map { $0 * $0 % 37 % 8 + $0 % 5 }, byteCount: 2000)

    private static func configuration(_ change: (inout FineTuningConfiguration) -> Void = { _ in }) -> FineTuningConfiguration {
        var c = FineTuningConfiguration()
        (c.rank, c.alpha, c.batch, c.length, c.scored, c.steps, c.validation) = (2, 4, 2, 12, 4, 6, 3)
        c.learningRate = 1e-2
        change(&c)
        return c
    }

    private static func run(
        _ tiny: TinyTrainee, _ c: FineTuningConfiguration, in folder: String, corpus: TextCorpus = corpus
    ) throws -> FineTuningRun {
        let windows = try TrainingWindows(
            corpus, length: c.length, scored: c.scored, validation: c.validation, seed: c.seed)
        let trainer = try LoRATrainer(FrozenModel(folder: tiny.folder, rank: c.rank, on: .serial), c, on: .serial)
        return try FineTuningRun(trainer, on: windows, folder: folder, checkpointInterval: 2, validationInterval: 2)
    }

    private static func bits(_ run: FineTuningRun) -> [Tensor<Float>] {
        run.trainer.adapters.factors.indices.flatMap { run.trainer.adapters.tensors($0) }
    }

    @Test("learn: losses of both kinds fall")
    func learning() throws {
        let (tiny, folder) = (try TinyTrainee(), RunFolder())
        let c = Self.configuration {
            ($0.rank, $0.alpha, $0.steps, $0.learningRate) = (8, 64, 20, 2e-2)
        }
        let run = try Self.run(tiny, c, in: folder.path)
        #expect(try run.run())
        let (steps, validations) = (run.curve.steps.map(\.loss), run.curve.validations)
        #expect(steps.count == 20)
        #expect(validations.map(\.step) == Array(stride(from: 0, through: 20, by: 2)))
        #expect(validations.last!.loss < validations[0].loss - 0.1, "\(validations)")
        let lines = run.curve.csv.split(separator: "\n")
        #expect(lines.count == 22 && lines[1].hasPrefix("0,,\(validations[0].loss)") && lines[2].hasPrefix("1,\(steps[0]),,"))
    }

    @Test("that are stopped go on to the same bits, also with channels left out", arguments: [false, true])
    func resuming(sparse: Bool) throws {
        let (tiny, whole, parts) = (try TinyTrainee(), RunFolder(), RunFolder())
        let c = Self.configuration {
            if sparse {
                $0.sparsity = SparseLoRAConfiguration(layers: [.init(mlp: 0.5, attention: 0.5), .init(mlp: 0.5)], start: 2)
            }
        }
        let straight = try Self.run(tiny, c, in: whole.path)
        #expect(try straight.run())
        #expect(straight.curve.steps.map(\.isSparse) == (0..<6).map { sparse && $0 >= 2 })
        let first = try Self.run(tiny, c, in: parts.path)
        #expect(try !first.resume())
        #expect(try !first.run(until: 3))
        let second = try Self.run(tiny, c, in: parts.path)
        #expect(try second.resume() && second.trainer.completedSteps == 3 && second.curve == first.curve)
        #expect(try second.run())
        #expect(Self.bits(second) == Self.bits(straight))
        #expect(second.curve.withoutTimes == straight.curve.withoutTimes)
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            #expect(try contents(ofFile: "\(parts.path)/\(name)") == contents(ofFile: "\(whole.path)/\(name)"))
        }
    }

    @Test("do not go on with other settings, another model or another text")
    func refusals() throws {
        let (tiny, folder) = (try TinyTrainee(), RunFolder())
        _ = try Self.run(tiny, Self.configuration(), in: folder.path).run(until: 1)
        func error(_ run: FineTuningRun) -> SparseKernelsError? {
            let before = Self.bits(run)
            let error = #expect(throws: SparseKernelsError.self) { _ = try run.resume() }
            #expect(run.trainer.completedSteps == 0 && Self.bits(run) == before)
            return error
        }
        let rank = error(try Self.run(tiny, Self.configuration { $0.rank = 3 }, in: folder.path))
        #expect(rank?.argument == "setting \"rank\"" && rank?.actual == "3" && rank?.expected.hasPrefix("2, as") == true)
        let rate = error(try Self.run(tiny, Self.configuration { $0.learningRate = 0.5 }, in: folder.path))
        #expect(rate?.argument == "setting \"learningRate\"" && rate?.code == .invalidArgument)
        let sparsity = error(
            try Self.run(
                tiny, Self.configuration { $0.sparsity = .init(layers: [.init(mlp: 0.5), .init()]) }, in: folder.path))
        #expect(sparsity?.argument == "setting \"sparsity\"" && sparsity?.expected.hasPrefix("none") == true)
        let other = error(try Self.run(TinyTrainee(seed: 2), Self.configuration(), in: folder.path))
        #expect(other?.argument == "model" && other?.code == .invalidArgument)
        let text = error(
            try Self.run(
                tiny, Self.configuration(), in: folder.path,
                corpus: TextCorpus(tokens: Array(repeating: 1, count: 2000), byteCount: 2000)))
        #expect(text?.argument == "text")
    }

    @Test("a damaged checkpoint is an error, and one that was left half-written is not looked at")
    func damage() throws {
        let (tiny, folder) = (try TinyTrainee(), RunFolder())
        let run = try Self.run(tiny, Self.configuration(), in: folder.path)
        _ = try run.run(until: 2)
        let whole = try contents(ofFile: run.checkpointPath)
        try whole.prefix(whole.count / 2).write(to: URL(fileURLWithPath: folder.path + "/.sparsekernels-1234.tmp"))
        let next = try Self.run(tiny, Self.configuration(), in: folder.path)
        #expect(try next.resume() && Self.bits(next) == Self.bits(run))
        for count in [0, 7, 100, whole.count / 2, whole.count - 1] {
            try whole.prefix(count).write(to: URL(fileURLWithPath: run.checkpointPath))
            let error = #expect(throws: SparseKernelsError.self) {
                _ = try Self.run(tiny, Self.configuration(), in: folder.path).resume()
            }
            #expect(error?.code == .malformedFile || error?.code == .inputOutput, "\(error!)")
        }
        var writer = SafetensorsWriter(metadata: ["format": "other"])
        try writer.add("x", Tensor<Float>(zeros: [1]))
        try writer.write(to: run.checkpointPath)
        let error = #expect(throws: SparseKernelsError.self) { _ = try next.resume() }
        #expect(error?.code == .malformedFile && error?.argument.contains("metadata \"format\"") == true)
    }

    @Test("that are killed while they write leave the last whole checkpoint")
    func killing() async throws {
        // The child writes checkpoints without end, and dies at once when the parent's limit comes.
        let tiny = try TinyTrainee()
        let folder = NSTemporaryDirectory() + "sparsekernels-killed-\(getpid())"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        await #expect(processExitsWith: .signal(SIGKILL)) {
            let tiny = try TinyTrainee()
            let folder = NSTemporaryDirectory() + "sparsekernels-killed-\(getppid())"
            let run = try FineTuningRunTests.run(tiny, FineTuningRunTests.configuration(), in: folder)
            _ = try run.run(until: 2)
            try FileManager.default.removeItem(atPath: tiny.folder)
            Thread.detachNewThread {
                usleep(20_000)
                kill(getpid(), SIGKILL)
            }
            while true {
                try FineTuningCheckpoint.write(to: run.checkpointPath, run.trainer, windows: run.windows, curve: run.curve)
            }
        }
        let run = try Self.run(tiny, Self.configuration(), in: folder)
        #expect(try run.resume() && run.trainer.completedSteps == 2)
        #expect(try run.run())
    }

    @Test("the sparsities for code-lm are in the repository")
    func shippedSparsities() throws {
        let data = try #require(ModelData.code).split(separator: "/").dropLast().joined(separator: "/")
        let sparsity = try SparseLoRAConfiguration(path: "/\(data)/code-lm-sparselora.json")
        try sparsity.validate(layerCount: 6)
        // Only tokens that count are read from the last block, so its MLP is nearly free.
        #expect(sparsity.layers.last?.mlp == 0.99 && sparsity.layers[0] == .init() && sparsity.outputTokensAreDense)
    }

    @Test("settings out of range, and batches that do not fit, are errors")
    func settings() throws {
        let tiny = try TinyTrainee()
        let model = try FrozenModel(folder: tiny.folder, rank: 2, on: .serial)
        func error(_ change: (inout FineTuningConfiguration) -> Void) -> SparseKernelsError? {
            #expect(throws: SparseKernelsError.self) { _ = try LoRATrainer(model, Self.configuration(change), on: .serial) }
        }
        #expect(error { $0.rank = 0 }?.argument == "rank" && error { $0.rank = 33 }?.expected == "from 1 to 32")
        #expect(error { $0.rank = 3 }?.expected == "2, for which the model was read")
        #expect(error { $0.targets = [] }?.argument == "targets" && error { $0.alpha = .nan }?.argument == "alpha")
        #expect(error { $0.batch = 0 }?.argument == "batch" && error { $0.scored = 13 }?.expected == "from 1 to length (12)")
        #expect(error { $0.maximumNorm = 0 }?.argument == "maximumNorm" && error { $0.warmup = 7 }?.argument == "warmup")
        #expect(error { $0.sparsity = .init(layers: [.init()]) }?.argument == "layers")
        #expect(error { $0.sparsity = .init(layers: [.init(mlp: 1), .init()]) }?.actual == "1.0")
        let trainer = try LoRATrainer(model, Self.configuration(), on: .serial)
        func refusal(_ length: Int, _ tokens: [Int], _ targets: [Int]) -> SparseKernelsError? {
            var batch = TrainingBatch(length: length)
            if length > 0 { batch.append(tokens, targets: targets) }
            return #expect(throws: SparseKernelsError.self) { _ = try trainer.step(batch) }
        }
        let (zeros, ignored) = (Array(repeating: 0, count: 12), Array(repeating: -100, count: 12))
        #expect(refusal(11, Array(zeros[1...]), Array(zeros[1...]))?.code == .invalidShape)
        #expect(refusal(12, zeros, ignored)?.argument == "targets")
        #expect(refusal(12, Array(zeros[1...]) + [40], zeros)?.argument == "tokens")
        #expect(refusal(12, zeros, Array(zeros[1...]) + [40])?.argument == "targets")
        #expect(trainer.completedSteps == 0)
    }
}
