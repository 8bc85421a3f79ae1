internal import Foundation

/// The learning rate of each step of training: a linear rise over the first steps, then a constant, a line or half a cosine.
///
/// ```swift
/// let schedule = LearningRateSchedule.cosine(peak: 1e-4, warmupSteps: 20, totalSteps: 600)
/// let rate = schedule.rate(step: 0)
/// ```
///
/// - Source: `get_constant_schedule_with_warmup`, `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup` of Hugging Face
///   transformers, with half a cycle. There, too, the first step of a warm-up has a rate of 0.
public struct LearningRateSchedule: Hashable, Sendable, Codable {
    /// What follows the rise.
    public enum Shape: String, Hashable, Sendable, Codable, CaseIterable {
        /// The peak, to the end.
        case constant
        /// A straight line to 0.
        case linear
        /// ½ (1 + cos πs), with s the share of the steps after the rise that are done.
        case cosine
    }

    public var shape: Shape
    /// The highest rate.
    public var peak: Double
    /// Steps of the rise from 0 to the peak; 0 for none.
    public var warmupSteps: Int
    /// Steps of the training, with those of the rise. A constant rate does not read it.
    public var totalSteps: Int

    public init(_ shape: Shape, peak: Double, warmupSteps: Int = 0, totalSteps: Int = 0) {
        self.shape = shape
        self.peak = peak
        self.warmupSteps = warmupSteps
        self.totalSteps = totalSteps
    }

    /// A constant rate after the rise.
    public static func constant(peak: Double, warmupSteps: Int = 0) -> LearningRateSchedule {
        LearningRateSchedule(.constant, peak: peak, warmupSteps: warmupSteps)
    }

    /// A rate that falls to 0 along a line.
    public static func linear(peak: Double, warmupSteps: Int = 0, totalSteps: Int) -> LearningRateSchedule {
        LearningRateSchedule(.linear, peak: peak, warmupSteps: warmupSteps, totalSteps: totalSteps)
    }

    /// A rate that falls to 0 along half a cosine.
    public static func cosine(peak: Double, warmupSteps: Int = 0, totalSteps: Int) -> LearningRateSchedule {
        LearningRateSchedule(.cosine, peak: peak, warmupSteps: warmupSteps, totalSteps: totalSteps)
    }

    /// The rate of a step, counted from 0. Steps before the first have a rate of 0, and so have steps after the last of a line or cosine.
    public func rate(step: Int) -> Double {
        let (position, warmup) = (Double(max(0, step)), Double(max(0, warmupSteps)))
        if position < warmup { return peak * position / max(1, warmup) }
        let total = Double(totalSteps)
        let rest = max(1, total - warmup)
        switch shape {
        case .constant: return peak
        case .linear: return peak * max(0, (total - position) / rest)
        case .cosine:
            if position >= total { return 0 }
            return peak * max(0, 0.5 * (1 + cos(.pi * (position - warmup) / rest)))
        }
    }
}
