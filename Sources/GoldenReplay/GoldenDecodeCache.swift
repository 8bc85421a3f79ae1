internal import SparseKernels

/// A recorded decoding step in a paged cache, for the public operators.
///
/// Pages are in half precision, like the recorded keys and values, so the cache is exact. Quantised pages follow the published
/// rule.
struct GoldenDecodeCache {
    let step: GoldenDecodeStep
    let cache: PagedKVCache
    let sequence: PagedKVCache.SequenceID
    let instructionSet: InstructionSet
    let pool: WorkerPool

    /// - Parameter tokens: the number of tokens that are cached at first.
    init(
        _ step: GoldenDecodeStep, tokens: Int, pageSize: Int, format: KVFormat = .float16, metadata: PageMetadata? = nil,
        keepsKeyEstimates: Bool = false, instructionSet: InstructionSet, pool: WorkerPool
    ) throws(SparseKernelsError) {
        let configuration = try KVCacheConfiguration(
            kvHeads: step.kvHeads, headDim: step.headDim, valueDim: step.value.shape[2], pageSize: pageSize,
            pageCapacity: BlockPartition(length: step.tokens, blockSize: pageSize).count, format: format,
            quantization: .zeroPoint,
            metadata: metadata, keepsKeyEstimates: keepsKeyEstimates)
        cache = try PagedKVCache(configuration, instructionSet: instructionSet)
        sequence = cache.makeSequence()
        (self.step, self.instructionSet, self.pool) = (step, instructionSet, pool)
        try append(0..<tokens)
    }

    func append(_ tokens: Range<Int>) throws(SparseKernelsError) {
        let key = try Self.rows(tokens, of: step.key)
        let value = try Self.rows(tokens, of: step.value)
        try cache.append(key: key.view(named: "in.k"), value: value.view(named: "in.v"), to: sequence, on: pool)
    }

    private static func rows(_ tokens: Range<Int>, of tensor: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
        let (heads, all, channels) = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
        var elements: [Float] = []
        for head in 0..<heads {
            let start = (head * all + tokens.lowerBound) * channels
            elements += tensor.elements[start..<start + tokens.count * channels]
        }
        return try Tensor([heads, tokens.count, channels], elements)
    }

    /// The output of every query head.
    func output(
        mask: KVMask = .causal, selection: KVSelection? = nil
    ) throws(SparseKernelsError) -> [[Double]] {
        let attention = try PagedAttention(
            queryHeads: step.heads, configuration: cache.configuration, mask: mask, instructionSet: instructionSet)
        let state = try attention(
            query: step.query, cache: cache, sequences: [sequence], selection: selection, on: pool)
        let (elements, width) = (state.output.elements, step.value.shape[2])
        return (0..<step.heads).map { head in elements[head * width..<(head + 1) * width].map { Double($0) } }
    }
}

extension KVSelection {
    /// The list of one head of the only sequence.
    func members(head: Int) -> [Int] { list(sequence: 0, head: head).map { Int($0) } }
}
