import SparseKernels

/// Keys and values of all positions of one sequence, which passes write over, and attention of a pass over all of them.
protocol DiffusionCache: TokenAttention {
    /// - Parameters:
    ///   - running: the positions of the rows of the pass.
    ///   - length: positions of the sequence. A pass over all of them begins a sequence, others go on with it.
    func begin(_ running: Range<Int>, length: Int) throws(SparseKernelsError)

    /// Bytes in use.
    var usedByteCount: Int { get }
}

/// The plan of attention for passes of one shape and every layer. Passes of a shape come one after the other.
struct DiffusionPlans {
    private var shape: (rows: Int, length: Int) = (-1, -1)
    private var plans: [DenseAttention] = []

    /// Makes the plans, unless they are there.
    mutating func prepare(_ model: LanguageModel, rows: Int, length: Int) throws(SparseKernelsError) {
        if shape == (rows, length) { return }
        let c = model.configuration
        let attention = try AttentionShape(
            queryLength: rows, keyLength: length, queryHeads: c.queryHeads, kvHeads: c.kvHeads, headDim: c.headDim)
        var plans: [DenseAttention] = []
        for layer in 0..<c.attentionLayers {
            plans.append(try DenseAttention(attention, mask: .full, modifiers: model.modifiers(layer: layer)))
        }
        (shape, self.plans) = ((rows, length), plans)
    }

    subscript(layer: Int) -> DenseAttention { plans[layer] }
}

/// Keys and values in single precision, a tensor `[kvHeads, capacity, headDim]` each per layer.
final class DenseDiffusionCache: DiffusionCache {
    private let model: LanguageModel
    private let capacity: Int
    private var keys: [Tensor<Float>] = []
    private var values: [Tensor<Float>] = []
    private var plans = DiffusionPlans()
    private var running = 0..<0
    private var length = 0

    init(_ model: LanguageModel, capacity: Int) throws(SparseKernelsError) {
        let c = model.configuration
        self.model = model
        self.capacity = capacity
        for _ in 0..<c.attentionLayers {
            keys.append(try Tensor(zeros: [c.kvHeads, capacity, c.headDim]))
            values.append(try Tensor(zeros: [c.kvHeads, capacity, c.headDim]))
        }
    }

    var usedByteCount: Int { 4 * keys.reduce(0) { $0 + 2 * $1.count } }

    func begin(_ running: Range<Int>, length: Int) throws(SparseKernelsError) {
        (self.running, self.length) = (running, length)
        try plans.prepare(model, rows: running.count, length: length)
    }

    func attend(
        _ heads: inout HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        write(heads, heads.keyOffset, into: &keys[layer])
        write(heads, heads.valueOffset, into: &values[layer])
        let geometry = try TensorGeometry(
            heads: heads.kvHeads, tokens: length, channels: heads.headDim, headStride: capacity * heads.headDim,
            tokenStride: heads.headDim, named: "cache")
        let (key, value) = (keys[layer], values[layer])
        try plans[layer].run(
            query: TensorView(heads.elements.span, geometry: heads.geometry(heads: heads.queryHeads), named: "query"),
            key: TensorView(key.span, geometry: geometry, named: "key"),
            value: TensorView(value.span, geometry: geometry, named: "value"),
            output: MutableTensorView(output.mutableSpan, geometry: heads.outputGeometry(), named: "output"), on: pool)
    }

    /// Copies the heads of all rows that begin at an offset of a row to the positions of the pass.
    private func write(_ heads: HeadRows, _ offset: Int, into target: inout Tensor<Float>) {
        let (source, width, headDim) = (heads.elements.span, heads.width, heads.headDim)
        var elements = target.mutableSpan
        for row in 0..<heads.rows {
            for head in 0..<heads.kvHeads {
                let from = row * width + offset + head * headDim
                let to = (head * capacity + running.lowerBound + row) * headDim
                for i in 0..<headDim { elements[to + i] = source[from + i] }
            }
        }
    }
}

/// Keys and values in the pages of a `PagedKVCache`, in any of its formats.
final class PagedDiffusionCache: DiffusionCache {
    private let model: LanguageModel
    private let cache: PagedKVCache
    private var sequence: PagedKVCache.SequenceID
    private var plans = DiffusionPlans()
    private var running = 0..<0
    private var length = 0

    init(_ model: LanguageModel, capacity: Int, format: KVFormat) throws(SparseKernelsError) {
        let c = model.configuration
        self.model = model
        let pageSize = 64
        cache = try PagedKVCache(
            KVCacheConfiguration(
                layers: c.attentionLayers, kvHeads: c.kvHeads, headDim: c.headDim, pageSize: pageSize,
                pageCapacity: (capacity + pageSize - 1) / pageSize, format: format))
        sequence = cache.makeSequence()
    }

    var usedByteCount: Int { cache.usedByteCount }

    func begin(_ running: Range<Int>, length: Int) throws(SparseKernelsError) {
        if running == 0..<length, length != self.length {
            try cache.free(sequence)
            sequence = cache.makeSequence()
        }
        (self.running, self.length) = (running, length)
        try plans.prepare(model, rows: running.count, length: length)
    }

    func attend(
        _ heads: inout HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (span, geometry) = (heads.elements.span, try heads.geometry(heads: heads.kvHeads))
        let key = try TensorView(span.extracting(heads.keyOffset...), geometry: geometry, named: "key")
        let value = try TensorView(span.extracting(heads.valueOffset...), geometry: geometry, named: "value")
        if try cache.length(of: sequence, layer: layer) == 0 {
            try cache.append(key: key, value: value, to: sequence, layer: layer, on: pool)
        } else {
            try cache.overwrite(
                key: key, value: value, in: sequence, from: running.lowerBound, layer: layer, on: pool)
        }
        let cached = try cache.rows(of: sequence, layer: layer)
        try plans[layer].run(
            query: TensorView(span, geometry: heads.geometry(heads: heads.queryHeads), named: "query"), key: cached.key,
            value: cached.value,
            output: MutableTensorView(output.mutableSpan, geometry: heads.outputGeometry(), named: "output"), on: pool)
    }
}
