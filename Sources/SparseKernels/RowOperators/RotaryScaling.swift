internal import Foundation

extension RotaryEmbedding {
    /// How the frequencies of a rotary embedding are changed for longer contexts than the model was first trained with.
    ///
    /// The rules are those of `modeling_rope_utils.py` of Hugging Face transformers, in `Double`.
    public enum Scaling: Hashable, Sendable {
        /// `default`: ω = θ^(−2i/d).
        case none
        /// `_compute_linear_scaling_rope_parameters`: ω / factor.
        case linear(factor: Double)
        /// `_compute_dynamic_ntk_parameters`: θ grows with the length of the sequence once that is above `originalLength`, to
        /// θ·(factor·length/originalLength − (factor − 1))^(d/(d − 2)). The length is one more than the largest position of a table,
        /// or what its maker says.
        case dynamicNTK(factor: Double, originalLength: Int)
        /// `_compute_yarn_parameters` (Peng et al., 2023, arXiv 2309.00071).
        case yarn(YaRN)
        /// `_compute_llama3_parameters`: ω / factor for wavelengths above originalLength / lowFrequencyFactor, ω for those below
        /// originalLength / highFrequencyFactor, and a mean of both between.
        case llama3(factor: Double, lowFrequencyFactor: Double = 1, highFrequencyFactor: Double = 4, originalLength: Int)
    }

    /// The options of YaRN.
    public struct YaRN: Hashable, Sendable {
        /// The ratio of the lengths, at least 1.
        public var factor: Double
        /// `original_max_position_embeddings`, at least 1.
        public var originalLength: Int
        /// Multiplies cosines and sines; nil means what `mscale` and `mscaleAllDim` say, or else 0.1·ln(factor) + 1.
        public var attentionFactor: Double?
        /// With `mscaleAllDim`, the attention factor is (0.1·mscale·ln(factor) + 1) / (0.1·mscaleAllDim·ln(factor) + 1). As in
        /// transformers, both must be there and not 0.
        public var mscale: Double?
        public var mscaleAllDim: Double?
        /// Pairs that turn at least as often in `originalLength` keep their frequency.
        public var betaFast = 32.0
        /// Pairs that turn at most as often are interpolated.
        public var betaSlow = 1.0
        /// Whether the ends of the ramp between both are rounded outward to whole pairs.
        public var truncates = true

        public init(factor: Double, originalLength: Int) {
            self.factor = factor
            self.originalLength = originalLength
        }
    }
}

extension RotaryEmbedding.Scaling {
    /// Throws `.invalidArgument` naming the option that is out of range.
    func check(rotatedChannels: Int) throws(SparseKernelsError) {
        func atLeastOne(_ name: String, _ value: Double) throws(SparseKernelsError) {
            try require(
                value >= 1 && value.isFinite, .invalidArgument, name, expected: "at least 1, and finite", actual: "\(value)")
        }
        func positive(_ name: String, _ value: Double) throws(SparseKernelsError) {
            try require(
                value > 0 && value.isFinite, .invalidArgument, name, expected: "positive and finite", actual: "\(value)")
        }
        func length(_ value: Int) throws(SparseKernelsError) {
            try require(value >= 1, .invalidArgument, "originalLength", expected: "at least 1", actual: "\(value)")
        }
        switch self {
        case .none: break
        case .linear(let factor):
            try positive("factor", factor)
            // The reciprocal of a subnormal number may be infinite, and an infinite frequency has no angle.
            try require(
                (1 / factor).isFinite, .invalidArgument, "factor", expected: "large enough for a finite 1 / factor",
                actual: "\(factor)")
        case .dynamicNTK(let factor, let originalLength):
            try atLeastOne("factor", factor)
            try length(originalLength)
            try require(
                rotatedChannels > 2, .invalidArgument, "rotatedChannels", expected: "more than 2 for dynamic NTK",
                actual: "\(rotatedChannels)")
        case .yarn(let options):
            try atLeastOne("factor", options.factor)
            try length(options.originalLength)
            try positive("betaFast", options.betaFast)
            try positive("betaSlow", options.betaSlow)
            let factor = options.cosineFactor
            try positive("attentionFactor", factor)
        case .llama3(let factor, let low, let high, let originalLength):
            try atLeastOne("factor", factor)
            try positive("lowFrequencyFactor", low)
            try require(
                high > low && high.isFinite, .invalidArgument, "highFrequencyFactor",
                expected: "above the low factor of \(low), and finite", actual: "\(high)")
            try length(originalLength)
        }
    }

    /// The factor on cosines and sines.
    var cosineFactor: Double {
        if case .yarn(let options) = self { return options.cosineFactor }
        return 1
    }

    /// ω of every pair, in radians per position, for a sequence of this length.
    func frequencies(channels: Int, theta: Double, length: Int) -> [Double] {
        var base = theta
        if case .dynamicNTK(let factor, let originalLength) = self {
            let ratio = Double(max(length, originalLength)) / Double(originalLength)
            // Not factor·ratio − (factor − 1), which is 0 for a ratio of 1 and factors above 2⁵³: every frequency would be infinite.
            base *= pow(1 + factor * (ratio - 1), Double(channels) / Double(channels - 2))
        }
        let plain = (0..<channels / 2).map { 1 / pow(base, Double(2 * $0) / Double(channels)) }
        switch self {
        case .none, .dynamicNTK: return plain
        case .linear(let factor): return plain.map { $0 / factor }
        case .yarn(let options):
            let ramp = options.ramp(channels: channels, theta: theta)
            return plain.enumerated().map { pair, frequency in
                // 0 keeps a frequency, 1 interpolates it.
                let part = min(1, max(0, (Double(pair) - ramp.low) / (ramp.high - ramp.low)))
                return frequency / options.factor * part + frequency * (1 - part)
            }
        case .llama3(let factor, let low, let high, let originalLength):
            return plain.map { frequency in
                let wavelength = 2 * Double.pi / frequency
                if wavelength < Double(originalLength) / high { return frequency }
                if wavelength > Double(originalLength) / low { return frequency / factor }
                let part = (Double(originalLength) / wavelength - low) / (high - low)
                return (1 - part) * frequency / factor + part * frequency
            }
        }
    }
}

extension RotaryEmbedding.YaRN {
    /// The attention factor that holds.
    var cosineFactor: Double {
        if let attentionFactor { return attentionFactor }
        func scale(_ mscale: Double) -> Double { factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1 }
        if let mscale, let mscaleAllDim, mscale != 0, mscaleAllDim != 0 { return scale(mscale) / scale(mscaleAllDim) }
        return scale(1)
    }

    /// The pairs between which frequencies go from kept to interpolated.
    func ramp(channels: Int, theta: Double) -> (low: Double, high: Double) {
        /// The pair that turns this often in the original length.
        func pair(turns: Double) -> Double {
            Double(channels) * log(Double(originalLength) / (turns * 2 * Double.pi)) / (2 * log(theta))
        }
        var (low, high) = (pair(turns: betaFast), pair(turns: betaSlow))
        if truncates { (low, high) = (low.rounded(.down), high.rounded(.up)) }
        low = max(low, 0)
        high = min(high, Double(channels - 1))
        // As released, so that nothing is divided by 0.
        if low == high { high += 0.001 }
        return (low, high)
    }
}
