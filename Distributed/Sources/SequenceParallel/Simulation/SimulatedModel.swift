/// The sizes of a language model, for ``PrefillSimulation`` and ``DecodeSimulation``.
public struct SimulatedModel: Hashable, Sendable, Codable {
    public var name: String
    public var layers: Int
    /// Width of the rows between layers.
    public var hidden: Int
    /// Inner width of the gated MLP.
    public var intermediate: Int
    public var queryHeads: Int
    public var kvHeads: Int
    public var headDim: Int
    public var vocabulary: Int
    /// Bits of a weight.
    public var weightBits: Int
    /// Bytes of an element of queries, keys, values and outputs, as attention gets them and as they are sent.
    public var operandBytes: Int
    /// Bytes of an element of the cache.
    public var cacheBytes: Int

    public init(
        name: String, layers: Int, hidden: Int, intermediate: Int, queryHeads: Int, kvHeads: Int, headDim: Int, vocabulary: Int,
        weightBits: Int = 16, operandBytes: Int = 4, cacheBytes: Int = 2
    ) {
        (self.name, self.layers, self.hidden, self.intermediate) = (name, layers, hidden, intermediate)
        (self.queryHeads, self.kvHeads, self.headDim, self.vocabulary) = (queryHeads, kvHeads, headDim, vocabulary)
        (self.weightBits, self.operandBytes, self.cacheBytes) = (weightBits, operandBytes, cacheBytes)
    }

    /// Eight billion parameters in the shape of Llama 3, which LongVILA extends.
    public static let eightBillion = SimulatedModel(
        name: "8B", layers: 32, hidden: 4096, intermediate: 14336, queryHeads: 32, kvHeads: 8, headDim: 128, vocabulary: 128_256
    )

    /// Half a billion parameters in the shape of Qwen 2, whose two key/value heads leave Ulysses little.
    public static let halfBillion = SimulatedModel(
        name: "0.5B", layers: 24, hidden: 896, intermediate: 4864, queryHeads: 14, kvHeads: 2, headDim: 64, vocabulary: 151_936)

    /// The models that have a name.
    public static let all = [eightBillion, halfBillion]

    /// Attention of a layer.
    public var costs: SequenceParallelCosts {
        SequenceParallelCosts(
            queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim, queryElementBytes: operandBytes,
            keyElementBytes: operandBytes, outputElementBytes: operandBytes)
    }

    /// Weights of a layer, which is also its multiply-adds per token beside attention.
    public var layerWeights: Int {
        hidden * headDim * (2 * queryHeads + 2 * kvHeads) + 3 * hidden * intermediate
    }

    /// Bytes of all weights, with a matrix for the embedding and one for the logits.
    public var weightBytes: Int { (layers * layerWeights + 2 * vocabulary * hidden) * weightBits / 8 }

    /// Bytes of a token in the caches of all layers.
    public var cacheBytesPerToken: Int { layers * 2 * kvHeads * headDim * cacheBytes }

    /// - Throws: `.invalidArgument`, naming the size, for one outside of 1...2²⁰, and for query heads that are no multiple of the
    ///   key/value heads.
    public func validate() throws(SparseKernelsError) {
        for (name, value) in [
            ("layers", layers), ("hidden", hidden), ("intermediate", intermediate), ("queryHeads", queryHeads),
            ("kvHeads", kvHeads), ("headDim", headDim), ("vocabulary", vocabulary), ("weightBits", weightBits),
            ("operandBytes", operandBytes), ("cacheBytes", cacheBytes),
        ] {
            guard value >= 1 && value <= 1 << 20 else {
                throw SparseKernelsError(.invalidArgument, name, expected: "of 1 to 2²⁰", actual: "\(value)")
            }
        }
        guard queryHeads % kvHeads == 0 else {
            throw SparseKernelsError(
                .invalidArgument, "queryHeads", expected: "a multiple of kvHeads (\(kvHeads))", actual: "\(queryHeads)")
        }
    }
}
