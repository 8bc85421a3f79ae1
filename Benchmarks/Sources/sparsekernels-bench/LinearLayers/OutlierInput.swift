import SparseKernels
import SparseKernelsReference

/// Normal activations with a few channels that are much larger than the others, as in trained transformers.
struct OutlierInput {
    let channels: Int
    private let factors: [Float]

    /// - Parameters:
    ///   - outliers: the number of channels, drawn at random, that are `factor` times as large.
    init(channels: Int, outliers: Int = 12, factor: Float = 30, seed: UInt64) {
        self.channels = channels
        var generator = SplitMix64(seed: seed)
        var factors = [Float](repeating: 1, count: channels)
        for channel in (0..<channels).shuffled(using: &generator).prefix(outliers) { factors[channel] = factor }
        self.factors = factors
    }

    /// `[count, channels]`.
    func tokens(_ count: Int, seed: UInt64) throws -> Tensor<Float> {
        var generator = SplitMix64(seed: seed)
        return try Tensor([count, channels]) { generator.normal() * factors[$0 % channels] }
    }
}
