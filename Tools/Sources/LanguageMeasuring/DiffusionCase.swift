public import FastDLLM

/// A way to decode with a masked-diffusion model, and its name in tables.
public struct DiffusionCase: Hashable, Sendable {
    public let name: String
    public let configuration: FastDLLMConfiguration

    public init(_ name: String, _ configuration: FastDLLMConfiguration) {
        (self.name, self.configuration) = (name, configuration)
    }

    private init(_ name: String, _ rule: CommitRule, _ cache: FastDLLMConfiguration.Cache, _ blockLength: Int) {
        self.init(name, FastDLLMConfiguration(blockLength: blockLength, rule: rule, cache: cache))
    }

    /// The plain sampler, the cache alone, parallel decoding alone, and both. The first one is what the others are compared
    /// with.
    public static func main(blockLength: Int) -> [DiffusionCase] {
        [
            DiffusionCase("one, no cache", .tokensPerStep(1), .none, blockLength),
            DiffusionCase("one, prefix", .tokensPerStep(1), .prefix, blockLength),
            DiffusionCase("one, dual", .tokensPerStep(1), .dual, blockLength),
            DiffusionCase("threshold 0.9, no cache", .threshold(0.9), .none, blockLength),
            DiffusionCase("threshold 0.9, prefix", .threshold(0.9), .prefix, blockLength),
            DiffusionCase("threshold 0.9, dual", .threshold(0.9), .dual, blockLength),
        ]
    }

    /// Thresholds and factors of the paper's sweeps, with one cache.
    public static func sweep(blockLength: Int, cache: FastDLLMConfiguration.Cache = .dual) -> [DiffusionCase] {
        let thresholds = [0.5, 0.6, 0.7, 0.8, 0.95, 1].map { threshold in
            DiffusionCase("threshold \(threshold), \(cache)", .threshold(threshold), cache, blockLength)
        }
        let factors = [0.7, 1, 1.3, 1.6, 1.9].map { factor in
            DiffusionCase("factor \(factor), \(cache)", .factor(factor), cache, blockLength)
        }
        return thresholds + factors
    }
}
