import SparseKernels

/// The tokens of a sequence in a pass.
struct PassSegment {
    let sequence: PagedKVCache.SequenceID
    /// Tokens that the sequence has before the pass, and those of the pass.
    let before: Int
    let count: Int
}

/// Attention over a paged cache of all layers.
final class CachedAttention: TokenAttention {
    let cache: PagedKVCache
    private let dense: [PagedAttention]
    /// The segments of the pass that runs, in the order of its rows.
    var segments: [PassSegment] = []
    private var lengths: [Int] = []
    var isDecoding = false
    var statistics = SessionStatistics()

    init(_ model: LanguageModel, _ options: SessionOptions) throws(SparseKernelsError) {
        let c = model.configuration
        let pageSize = options.pageSize ?? 64
        let configuration = try KVCacheConfiguration(
            layers: c.layers, kvHeads: c.kvHeads, headDim: c.headDim, pageSize: pageSize,
            pageCapacity: (options.tokenCapacity + pageSize - 1) / pageSize + options.sequenceCapacity,
            format: options.keyFormat, valueFormat: options.valueFormat)
        cache = try PagedKVCache(configuration)
        var dense: [PagedAttention] = []
        for layer in 0..<c.layers {
            dense.append(
                try PagedAttention(
                    queryHeads: c.queryHeads, configuration: configuration,
                    mask: c.slidingWindows[layer].map { .window(left: $0 - 1, right: 0) } ?? .causal,
                    modifiers: model.modifiers(layer: layer)))
        }
        self.dense = dense
    }

    func attend(
        _ heads: inout HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let span = heads.elements.span
        var row = 0
        for segment in segments {
            let start = row * heads.width
            let geometry = try heads.geometry(heads: heads.kvHeads, tokens: segment.count)
            try cache.append(
                key: TensorView(span.extracting((start + heads.keyOffset)...), geometry: geometry, named: "key"),
                value: TensorView(span.extracting((start + heads.valueOffset)...), geometry: geometry, named: "value"),
                to: segment.sequence, layer: layer, on: pool)
            row += segment.count
        }
        try dense[layer].run(
            query: TensorView(span, geometry: heads.geometry(heads: heads.queryHeads), named: "query"), cache: cache,
            sequences: segments.map(\.sequence), queryLengths: segments.map(\.count), layer: layer,
            output: MutableTensorView(output.mutableSpan, geometry: heads.outputGeometry(), named: "output"), on: pool)
    }
}
