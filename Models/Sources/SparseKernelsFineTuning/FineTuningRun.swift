import Foundation
public import SparseKernels
import SparseKernelsModels
import SparseKernelsTraining

/// A whole run: steps, measurements of the windows that are held out, checkpoints, and the adapter at the end.
///
/// ```swift
/// let run = try FineTuningRun(trainer, on: windows, folder: output)
/// try run.resume()
/// try run.run { update in
///     print(update.step, update.loss)
///     return true  // false ends it
/// }
/// ```
///
/// The folder gets `checkpoint.safetensors`, which is replaced in one step and removed by nobody, and in the end
/// `adapter_model.safetensors` and `adapter_config.json`.
public final class FineTuningRun {
    public let trainer: LoRATrainer
    public let windows: TrainingWindows
    public let folder: String
    /// Steps from one checkpoint to the next; nil writes one at the end only.
    public let checkpointInterval: Int?
    /// Steps from one measurement of the windows that are held out to the next; nil measures before the first step and at the end.
    public let validationInterval: Int?
    public private(set) var curve = FineTuningCurve()
    private let held: [TrainingBatch]

    /// - Parameters:
    ///   - trainer: has the settings.
    ///   - windows: cut by the same settings.
    ///   - folder: is made if it is not there.
    ///   - checkpointInterval: steps between checkpoints, 1 or more.
    ///   - validationInterval: steps between measurements, 1 or more.
    /// - Throws: `.invalidArgument` for an interval below 1, or windows that were cut by other settings; `.inputOutput` for a folder
    ///   that cannot be made.
    public init(
        _ trainer: LoRATrainer, on windows: TrainingWindows, folder: String, checkpointInterval: Int? = 50,
        validationInterval: Int? = 50
    ) throws(SparseKernelsError) {
        for (name, interval) in [("checkpointInterval", checkpointInterval), ("validationInterval", validationInterval)] {
            guard interval ?? 1 >= 1 else {
                throw SparseKernelsError(.invalidArgument, name, expected: "1 or more", actual: "\(interval ?? 0)")
            }
        }
        let c = trainer.configuration
        let (expected, actual) = (
            [c.length, c.scored, c.validation], [windows.length, windows.scored, windows.validation.count]
        )
        guard expected == actual, windows.seed == c.seed else {
            throw SparseKernelsError(
                .invalidArgument, "windows",
                expected: "\(expected) tokens, tokens that count, and windows held out; seed \(c.seed)",
                actual: "\(actual); seed \(windows.seed)")
        }
        do {
            try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        } catch {
            throw SparseKernelsError(
                .inputOutput, folder, expected: "a folder that can be made", actual: error.localizedDescription)
        }
        (self.trainer, self.windows, self.folder) = (trainer, windows, folder)
        (self.checkpointInterval, self.validationInterval) = (checkpointInterval, validationInterval)
        held = windows.validationBatches(size: c.batch)
    }

    public var checkpointPath: String { folder + "/checkpoint.safetensors" }

    /// Goes on from the checkpoint of the folder, where there is one.
    /// - Returns: whether there was one.
    /// - Throws: as `FineTuningCheckpoint.restore`.
    @discardableResult
    public func resume() throws(SparseKernelsError) -> Bool {
        guard FileManager.default.fileExists(atPath: checkpointPath) else { return false }
        curve = try FineTuningCheckpoint.restore(from: checkpointPath, trainer, windows: windows)
        return true
    }

    /// What has just been done.
    public struct Update: Hashable, Sendable {
        /// Steps that are done.
        public let step: Int
        /// Nats per token of the last step; nil before the first.
        public let loss: Double?
        /// Nats per token of the windows that are held out, when they were last measured.
        public let validation: Double?
        /// Seconds of the step; nil after a measurement.
        public let seconds: Double?
    }

    /// Runs what remains of the steps.
    ///
    /// - Parameters:
    ///   - limit: ends the run when so many steps are done, with a checkpoint, as if it had been interrupted.
    ///   - onUpdate: called after each step and each measurement. When it returns false, the run ends with a checkpoint.
    /// - Returns: whether all steps are done, and the adapter written.
    /// - Throws: `.inputOutput` for files that cannot be written, and the errors of `LoRATrainer.step`.
    @discardableResult
    public func run(
        until limit: Int? = nil,
        onUpdate: (Update) throws(SparseKernelsError) -> Bool = { _ throws(SparseKernelsError) in true }
    ) throws(SparseKernelsError) -> Bool {
        let c = trainer.configuration
        if trainer.completedSteps == 0, curve.validations.isEmpty, try !measure(onUpdate) { return false }
        while trainer.completedSteps < min(limit ?? c.steps, c.steps) {
            let report = try trainer.step(windows.batch(step: trainer.completedSteps, size: c.batch))
            curve.steps.append(
                FineTuningCurve.Step(
                    loss: report.loss, gradientNorm: report.gradientNorm, learningRate: report.learningRate,
                    isSparse: report.isSparse, seconds: report.seconds))
            let done = trainer.completedSteps
            var goesOn = try onUpdate(
                Update(
                    step: done, loss: report.loss, validation: curve.validations.last?.loss, seconds: report.seconds.total))
            if done == c.steps || validationInterval.map({ done.isMultiple(of: $0) }) ?? false {
                goesOn = try measure(onUpdate) && goesOn
            }
            if !goesOn || done == c.steps || checkpointInterval.map({ done.isMultiple(of: $0) }) ?? false {
                try writeCheckpoint()
            }
            if !goesOn { break }
        }
        guard trainer.completedSteps == c.steps else {
            try writeCheckpoint()
            return false
        }
        try trainer.writeAdapter(to: folder)
        return true
    }

    private func writeCheckpoint() throws(SparseKernelsError) {
        try FineTuningCheckpoint.write(to: checkpointPath, trainer, windows: windows, curve: curve)
    }

    /// Measures the windows that are held out.
    private func measure(_ onUpdate: (Update) throws(SparseKernelsError) -> Bool) throws(SparseKernelsError) -> Bool {
        guard !held.isEmpty else { return true }
        let loss = try trainer.validate(held).mean
        curve.validations.append(FineTuningCurve.Validation(step: trainer.completedSteps, loss: loss))
        return try onUpdate(
            Update(
                step: trainer.completedSteps, loss: curve.steps.last?.loss, validation: loss, seconds: nil))
    }
}
