import BenchmarkReport
import SparseKernels

/// The contents of a cache and their formats.
struct CacheLayout: Hashable {
    var format = KVFormat.float16
    var pageSize = 64
    var metadata: PageMetadata?
    var keepsEstimates = false

    func configuration(kvHeads: Int, headDim: Int, tokens: Int, sequences: Int) throws -> KVCacheConfiguration {
        // One more page each: an append may start one, and forks copy their last one.
        try KVCacheConfiguration(
            kvHeads: kvHeads, headDim: headDim, pageSize: pageSize,
            pageCapacity: sequences * ((tokens + pageSize - 1) / pageSize + 1), format: format, metadata: metadata,
            keepsKeyEstimates: keepsEstimates)
    }

    /// Memory of a cache for the decoding cases, whose sizes cannot overflow.
    func byteCount(context: Int, sequences: Int) -> Int {
        let configuration = try! configuration(
            kvHeads: DecodeOperands.kvHeads, headDim: DecodeOperands.headDim, tokens: context, sequences: sequences)
        return configuration.bytesPerPage * configuration.pageCapacity
    }

    /// The bytes that a step reads, by the layouts in Docs/Layouts/README.md. Every row's test compares them with the cache's.
    func traffic(headDim: Int) -> KVTraffic {
        let row = KVTraffic.rowBytes(channels: headDim, bits: format.bits)
        var traffic = KVTraffic(keyRow: row, valueRow: row)
        if let metadata {
            let channels = metadata.kind == .minMax ? 2 * headDim : headDim
            traffic.summary = KVTraffic.rowBytes(channels: channels, bits: metadata.format.bits)
            traffic.logicalPageSize = metadata.logicalPageSize
        }
        if keepsEstimates { traffic.estimateRow = KVTraffic.rowBytes(channels: headDim, bits: KVFormat.int4.bits) }
        return traffic
    }
}

extension KVFormat {
    /// Bits per element.
    var bits: Int {
        switch self {
        case .float32: 32
        case .float16, .bfloat16: 16
        case .int8: 8
        case .int4: 4
        }
    }

    /// The label in tables.
    var label: String {
        switch self {
        case .float32: "f32"
        case .float16: "f16"
        case .bfloat16: "bf16"
        case .int8: "int8"
        case .int4: "int4"
        }
    }
}

/// A filled cache.
final class DecodeCache {
    let layout: CacheLayout
    let cache: PagedKVCache
    private(set) var sequences: [PagedKVCache.SequenceID]

    /// Makes a cache without sequences.
    init(_ layout: CacheLayout, configuration: KVCacheConfiguration, _ set: InstructionSet) throws {
        self.layout = layout
        cache = try PagedKVCache(configuration, instructionSet: set)
        sequences = []
    }

    /// Counts a sequence of the cache among those that are attended.
    func add(_ sequence: PagedKVCache.SequenceID) { sequences.append(sequence) }

    /// Makes sequences of the same tokens, each in its own memory.
    init(_ layout: CacheLayout, _ operands: DecodeOperands, sequences count: Int, _ set: InstructionSet, on pool: WorkerPool)
        throws
    {
        self.layout = layout
        cache = try PagedKVCache(
            layout.configuration(
                kvHeads: DecodeOperands.kvHeads, headDim: DecodeOperands.headDim, tokens: operands.context, sequences: count),
            instructionSet: set)
        sequences = []
        for _ in 0..<count {
            let sequence = cache.makeSequence()
            try append(tokens: 0..<operands.context, of: operands.key, operands.value, to: sequence, on: pool)
            sequences.append(sequence)
        }
    }

    /// Makes forks that share all tokens except their last.
    init(_ layout: CacheLayout, _ operands: DecodeOperands, forks count: Int, _ set: InstructionSet, on pool: WorkerPool) throws
    {
        self.layout = layout
        let configuration = try layout.configuration(
            kvHeads: DecodeOperands.kvHeads, headDim: DecodeOperands.headDim, tokens: operands.context, sequences: 2)
        cache = try PagedKVCache(configuration, instructionSet: set)
        sequences = [cache.makeSequence()]
        try append(tokens: 0..<operands.context, of: operands.key, operands.value, to: sequences[0], on: pool)
        for _ in 1..<count {
            let fork = try cache.fork(sequences[0], at: operands.context - 1)
            try append(tokens: operands.context - 1..<operands.context, of: operands.key, operands.value, to: fork, on: pool)
            sequences.append(fork)
        }
    }

    /// Makes a sequence for each of the last `steps` tokens, which ends with it, like the cache after that step of decoding.
    /// Each is a fork of the one before with one token appended.
    init(
        _ layout: CacheLayout, key: Tensor<Float>, value: Tensor<Float>, steps: Int, _ set: InstructionSet, on pool: WorkerPool
    ) throws {
        self.layout = layout
        let (kvHeads, tokens) = (key.shape[0], key.shape[1])
        let configuration = try layout.configuration(
            kvHeads: kvHeads, headDim: key.shape[2], tokens: tokens + steps * layout.pageSize, sequences: 1)
        cache = try PagedKVCache(configuration, instructionSet: set)
        sequences = [cache.makeSequence()]
        try append(tokens: 0..<tokens - steps + 1, of: key, value, to: sequences[0], on: pool)
        for token in tokens - steps + 1..<tokens {
            let fork = try cache.fork(sequences.last!)
            try append(tokens: token..<token + 1, of: key, value, to: fork, on: pool)
            sequences.append(fork)
        }
    }

    var traffic: KVTraffic { layout.traffic(headDim: cache.configuration.headDim) }

    /// Appends some tokens of tensors `[kvHeads, tokens, headDim]`.
    func append(
        tokens: Range<Int>, of key: Tensor<Float>, _ value: Tensor<Float>, to sequence: PagedKVCache.SequenceID,
        on pool: WorkerPool
    ) throws {
        let part = try key.part(tokens)
        try cache.append(
            key: TensorView(key.span.extracting(part.first...), geometry: part.geometry),
            value: TensorView(value.span.extracting(part.first...), geometry: part.geometry), to: sequence, on: pool)
    }
}

extension Tensor<Float> {
    /// The position of some tokens of a tensor `[heads, tokens, channels]`, and their geometry.
    fileprivate func part(_ tokens: Range<Int>) throws -> (first: Int, geometry: TensorGeometry) {
        let geometry = try TensorGeometry(
            heads: shape[0], tokens: tokens.count, channels: shape[2], headStride: shape[1] * shape[2],
            tokenStride: shape[2])
        return (tokens.lowerBound * shape[2], geometry)
    }
}
