internal import SparseKernels

/// One head of one sample, for trying settings. Its operands, summaries and dense result are computed once.
struct SpargeAttentionTrial {
    private let shape: AttentionShape
    /// The tuner's configuration, with the slope of this head alone.
    private let configuration: SpargeAttentionConfiguration
    private let instructionSet: InstructionSet?
    private let pool: WorkerPool
    private let query: Tensor<Float>
    private let key: Tensor<Float>
    private let value: Tensor<Float>
    private let querySummary: BlockSummary
    private let keySummary: BlockSummary
    private let dense: Tensor<Float>
    private var errors: [Run: Double] = [:]

    /// The inputs of an attention run, for reusing results: different settings often give the same mask.
    private struct Run: Hashable {
        var mask: BlockMask
        var pvSkipThreshold: Float?
    }

    /// Number of attention runs so far, including the dense one.
    var evaluations: Int { errors.count + 1 }

    init(
        _ tuner: SpargeAttentionTuner, _ sample: SpargeAttentionTuner.Sample, head: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let whole = sample.shape
        self.pool = pool
        shape = try AttentionShape(
            queryLength: whole.queryLength, keyLength: whole.keyLength, queryHeads: 1, kvHeads: 1, headDim: whole.headDim,
            valueDim: whole.valueDim)
        var configuration = tuner.configuration
        if let slopes = configuration.modifiers.aliBiSlopes {
            try require(
                slopes.count == whole.queryHeads, .invalidShape, "aliBiSlopes",
                expected: "one per query head (\(whole.queryHeads))", actual: "\(slopes.count)")
            configuration.modifiers.aliBiSlopes = [slopes[head]]
        }
        self.configuration = configuration
        instructionSet = tuner.instructionSet
        let query = try Self.head(head, of: sample.query)
        let key = try Self.head(head / whole.queryHeadsPerKVHead, of: sample.key)
        let value = try Self.head(head / whole.queryHeadsPerKVHead, of: sample.value)
        let prefill = try SpargeAttentionPrefill(
            shape, configuration, heads: [.dense], instructionSet: tuner.instructionSet)
        querySummary = try prefill.querySummary(query.view(named: "query"), on: pool)
        keySummary = try prefill.keySummary(key.view(named: "key"), on: pool)
        dense = try DenseAttention(
            shape, mask: configuration.isCausal ? .causal : .full, modifiers: configuration.modifiers,
            instructionSet: tuner.instructionSet)(
                query: query, key: key, value: value, on: pool
            ).output
        (self.query, self.key, self.value) = (query, key, value)
    }

    /// Kept fraction of the reachable blocks.
    func density(_ settings: SpargeAttentionHead) throws(SparseKernelsError) -> Double {
        try mask(prefill(settings)).density
    }

    /// Relative L1 distance to dense attention.
    mutating func error(_ settings: SpargeAttentionHead) throws(SparseKernelsError) -> Double {
        let prefill = try prefill(settings)
        let run = try Run(mask: mask(prefill), pvSkipThreshold: settings.pvSkipThreshold)
        if let known = errors[run] { return known }
        let output = try prefill.attention(over: run.mask)(query: query, key: key, value: value, on: pool).output
        let distance = Self.relativeL1(output, dense)
        errors[run] = distance
        return distance
    }

    /// Σ|a − b| / Σ|b|.
    private static func relativeL1(_ a: Tensor<Float>, _ b: Tensor<Float>) -> Double {
        let (actual, expected) = (a.span, b.span)
        var (difference, magnitude) = (0.0, 0.0)
        for index in 0..<actual.count {
            difference += Double(abs(actual[index] - expected[index]))
            magnitude += Double(abs(expected[index]))
        }
        return difference == 0 ? 0 : difference / magnitude
    }

    private func mask(_ prefill: SpargeAttentionPrefill) throws(SparseKernelsError) -> BlockMask {
        try prefill.mask(query: querySummary, key: keySummary, on: pool)
    }

    private func prefill(_ settings: SpargeAttentionHead) throws(SparseKernelsError) -> SpargeAttentionPrefill {
        try SpargeAttentionPrefill(shape, configuration, heads: [settings], instructionSet: instructionSet)
    }

    /// One head of a tensor `[heads, tokens, channels]`, or the only one of `[tokens, channels]`.
    private static func head(_ head: Int, of tensor: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
        let (tokens, channels) = (tensor.shape[tensor.shape.count - 2], tensor.shape[tensor.shape.count - 1])
        let first = head * tokens * channels
        return try Tensor([1, tokens, channels]) { tensor[flat: first + $0] }
    }
}
