internal import PolarSparsity
internal import Quest
import SparseKernels
internal import Twilight

/// A session's cache whose pages hold all layers and heads, with any method of prefill and decoding over it.
final class PagedSessionCache: SessionCache {
    let cache: PagedKVCache
    let model: LanguageModel
    let options: SessionOptions
    private let rotation: CacheRotation
    /// Attention of every layer over all tokens that it sees.
    private let dense: [PagedAttention]
    /// Attention of steps of layers without a window: prefixes that many sequences share are products of matrices.
    private let cascades: [CascadeAttention?]
    private var decoding: Decoding
    private let traffic: CacheTraffic
    let states: SessionStates?
    private var sequences: [SessionSequence: PagedKVCache.SequenceID] = [:]
    private var nextNumber = 0

    private(set) var segments: [PassSegment] = []
    private var names: [PagedKVCache.SequenceID] = []
    /// The tokens of each sequence when the pass is over.
    private var lengths: [Int] = []
    private var isDecoding = false
    var counts = AttentionCounts()

    /// The plan of a method of decoding, for the layers that have no window.
    private enum Decoding {
        case dense
        /// One per layer, as layers may differ in how scores become probabilities.
        case streaming([PagedAttention], tokens: Int)
        case quest(QuestDecode)
        case twilight(TwilightDecode, tokens: Int)
        case reused(ReusableSelection)
        case polar(heads: Int)
    }

    init(_ model: LanguageModel, _ options: SessionOptions) throws(SparseKernelsError) {
        let c = model.configuration
        self.model = model
        self.options = options
        rotation = try CacheRotation(c, keys: options.rotatesKeys, values: options.rotatesValues)
        let configuration = try Self.configuration(c, options)
        let states = try SessionStates(c, configuration, options)
        cache = if let pages = states?.hybrid.attention { pages } else { try PagedKVCache(configuration) }
        self.states = states
        traffic = CacheTraffic(configuration)
        var dense: [PagedAttention] = []
        for layer in 0..<c.attentionLayers {
            dense.append(
                try PagedAttention(
                    queryHeads: c.queryHeads, configuration: configuration,
                    mask: c.slidingWindows[layer].map { .window(left: $0 - 1, right: 0) } ?? .causal,
                    modifiers: model.modifiers(layer: layer)))
        }
        self.dense = dense
        var cascades: [CascadeAttention?] = []
        for layer in 0..<c.attentionLayers {
            guard c.slidingWindows[layer] == nil else {
                cascades.append(nil)
                continue
            }
            cascades.append(
                try CascadeAttention(
                    queryHeads: c.queryHeads, configuration: configuration, modifiers: model.modifiers(layer: layer)))
        }
        self.cascades = cascades
        let scale = c.softmaxScale
        switch options.decoding {
        case .dense: decoding = .dense
        case .streaming(let sink, let local):
            var plans: [PagedAttention] = []
            for layer in 0..<c.attentionLayers {
                plans.append(
                    try PagedAttention(
                        queryHeads: c.queryHeads, configuration: configuration, mask: .streaming(sink: sink, window: local),
                        modifiers: model.modifiers(layer: layer)))
            }
            decoding = .streaming(plans, tokens: sink + local)
        case .quest(let tokens):
            decoding = .quest(
                try QuestDecode(
                    queryHeads: c.queryHeads, configuration: configuration, tokenBudget: tokens, sharing: .kvHead,
                    denseLayers: 0, softmaxScale: scale))
        case .twilight(let tokens, let topP):
            decoding = .twilight(
                try TwilightDecode(
                    queryHeads: c.queryHeads, configuration: configuration, selector: .quest(.tokens(tokens)), topP: topP,
                    denseLayers: 0, softmaxScale: scale), tokens: tokens)
        case .polar(let heads):
            guard let routers = model.headRouters, let most = routers.map(\.heads).min() else {
                throw SparseKernelsError(
                    .invalidArgument, "decoding", expected: "a model with routers of heads, for .polar", actual: "one without")
            }
            guard (0...most).contains(heads) else {
                throw SparseKernelsError(
                    .invalidArgument, "decoding.heads", expected: "0 to \(most), the heads of the routers", actual: "\(heads)")
            }
            decoding = .polar(heads: heads)
        case .lServe(let tokens, let interval):
            decoding = .reused(
                try ReusableSelection(
                    PageSelector(queryHeads: c.queryHeads, configuration: configuration, tokenBudget: tokens),
                    interval: interval))
        }
    }

    static func configuration(
        _ c: LanguageModelConfiguration, _ options: SessionOptions
    ) throws(SparseKernelsError) -> KVCacheConfiguration {
        let standardPageSize: Int
        switch options.decoding {
        case .dense, .streaming, .lServe, .polar: standardPageSize = 64
        case .quest, .twilight: standardPageSize = 16
        }
        let pageSize = options.pageSize ?? standardPageSize
        let metadata: PageMetadata?
        var keepsEstimates = false
        switch options.decoding {
        case .dense, .streaming, .polar: metadata = nil
        case .lServe: metadata = PageMetadata(.minMax, logicalPageSize: min(16, pageSize))
        case .quest: metadata = PageMetadata(.minMax, logicalPageSize: pageSize)
        case .twilight:
            metadata = PageMetadata(.minMax, logicalPageSize: pageSize)
            keepsEstimates = true
        }
        return try KVCacheConfiguration(
            layers: c.attentionLayers, kvHeads: c.kvHeads, headDim: c.headDim, pageSize: pageSize,
            pageCapacity: (options.tokenCapacity + max(1, pageSize) - 1) / max(1, pageSize) + options.sequenceCapacity,
            format: options.keyFormat, valueFormat: options.valueFormat, quantization: options.quantization, metadata: metadata,
            keepsKeyEstimates: keepsEstimates)
    }

    var usedByteCount: Int { states?.hybrid.usedByteCount ?? cache.usedByteCount }

    // MARK: - Sequences

    func makeSequence() -> SessionSequence { states.map(makeSequence) ?? add(cache.makeSequence()) }

    func fork(_ sequence: SessionSequence, at length: Int?) throws(SparseKernelsError) -> SessionSequence {
        if let states { return try fork(sequence, at: length, states) }
        return add(try cache.fork(try name(of: sequence), at: length))
    }

    func truncate(_ sequence: SessionSequence, to length: Int) throws(SparseKernelsError) {
        if let states { return try truncate(sequence, to: length, states) }
        try cache.truncate(try name(of: sequence), to: length)
    }

    func free(_ sequence: SessionSequence) throws(SparseKernelsError) {
        if let states {
            if !states.empty.contains(sequence) { try states.hybrid.free(try name(of: sequence)) }
            forgetStates(of: sequence, states)
            sequences[sequence] = nil
            return
        }
        let name = try name(of: sequence)
        if case .reused(var selection) = decoding {
            decoding = .dense
            selection.forget(name)
            decoding = .reused(selection)
        }
        try cache.free(name)
        sequences[sequence] = nil
    }

    func length(of sequence: SessionSequence) throws(SparseKernelsError) -> Int {
        guard let states else { return try cache.length(of: try name(of: sequence)) }
        return states.empty.contains(sequence) ? 0 : try states.hybrid.length(of: try name(of: sequence))
    }

    /// Forgets a sequence without freeing it.
    func forget(_ sequence: SessionSequence) { sequences[sequence] = nil }

    /// Gives a sequence of the cache a number.
    func add(_ name: PagedKVCache.SequenceID) -> SessionSequence {
        let number = takeNumber()
        sequences[number] = name
        return number
    }

    func takeNumber() -> SessionSequence {
        defer { nextNumber += 1 }
        return nextNumber
    }

    func setName(_ name: PagedKVCache.SequenceID, of sequence: SessionSequence) { sequences[sequence] = name }

    func name(of sequence: SessionSequence) throws(SparseKernelsError) -> PagedKVCache.SequenceID {
        guard let name = sequences[sequence] else { throw SparseKernelsError.unknown(sequence) }
        return name
    }

    // MARK: - Passes

    func begin(_ segments: [PassSegment], isDecoding: Bool) throws(SparseKernelsError) {
        self.segments = segments
        self.isDecoding = isDecoding
        // The session has asked for the lengths of these sequences, so they exist.
        names = segments.map { sequences[$0.sequence]! }
        lengths = segments.map { $0.before + $0.count }
        guard let states else { return }
        try states.begin(segments, names)
        // A step reads all of a state.
        let bytes = isDecoding ? Double(segments.count * states.bytesPerSequence) : 0
        counts.readBytes += bytes
        counts.denseBytes += bytes
    }

    func end() throws(SparseKernelsError) { try states?.end() }

    func attend(
        _ heads: inout HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try rotation.rotate(&heads, on: pool)
        try store(heads, layer: layer, on: pool)
        if isDecoding {
            try decode(heads, layer: layer, into: &output, on: pool)
        } else {
            try prefill(heads, layer: layer, into: &output, on: pool)
        }
        try rotation.restore(&output, rows: heads.rows, on: pool)
    }

    private func store(_ heads: HeadRows, layer: Int, on pool: WorkerPool) throws(SparseKernelsError) {
        let span = heads.elements.span
        if isDecoding {
            let geometry = try heads.geometry(heads: heads.kvHeads)
            try cache.append(
                key: TensorView(span.extracting(heads.keyOffset...), geometry: geometry, named: "key"),
                value: TensorView(span.extracting(heads.valueOffset...), geometry: geometry, named: "value"), toEach: names,
                layer: layer, on: pool)
            return
        }
        var row = 0
        for (segment, name) in zip(segments, names) {
            let start = row * heads.width
            let geometry = try heads.geometry(heads: heads.kvHeads, tokens: segment.count)
            try cache.append(
                key: TensorView(span.extracting((start + heads.keyOffset)...), geometry: geometry, named: "key"),
                value: TensorView(span.extracting((start + heads.valueOffset)...), geometry: geometry, named: "value"),
                to: name, layer: layer, on: pool)
            row += segment.count
        }
    }

    /// Whether a layer uses the methods of the options.
    private func isSparse(_ layer: Int) -> Bool {
        var denseLayers = options.denseLayers
        // As in the paper. Prefill is not affected, which has no method of that name.
        if isDecoding, case .polar = decoding { denseLayers = max(1, denseLayers) }
        return layer >= denseLayers && model.configuration.slidingWindows[layer] == nil
    }

    // MARK: - Decoding

    func selectedHeads(layer: Int) -> Int? {
        guard isDecoding, isSparse(layer), case .polar(let heads) = decoding else { return nil }
        return heads
    }

    private func decode(
        _ heads: HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let query = try TensorView(heads.elements.span, geometry: heads.geometry(heads: heads.queryHeads), named: "query")
        var selection: KVSelection?
        var plan = dense[layer]
        let window = model.configuration.slidingWindows[layer]
        var bytes = traffic.dense(lengths, atMost: window ?? .max)
        counts.denseBytes += bytes
        var isDense = true
        if isSparse(layer) {
            if case .dense = decoding {} else { isDense = false }
            switch decoding {
            case .dense: break
            case .polar: if let selected = heads.selected { bytes = traffic.selected(selected, lengths) }
            case .streaming(let plans, let tokens):
                plan = plans[layer]
                bytes = traffic.dense(lengths, atMost: tokens)
            case .quest(let quest):
                selection = try quest.select(query: query, cache: cache, sequences: names, layer: layer, on: pool)
                bytes = traffic.metadata(lengths)
            case .twilight(let twilight, let tokens):
                selection = try twilight.prune(query: query, cache: cache, sequences: names, layer: layer, on: pool).selection
                bytes = traffic.metadata(lengths) + traffic.estimates(lengths, atMost: tokens)
            case .reused(var reusable):
                // Moved out and in again, so that its entries are not copied.
                decoding = .dense
                defer { decoding = .reused(reusable) }
                let before = reusable.selectionCount
                selection = try reusable.select(query: query, cache: cache, sequences: names, layer: layer, on: pool)
                let part = Double(reusable.selectionCount - before) / Double(max(1, names.count))
                bytes = part * traffic.metadata(lengths)
            }
        }
        if let selection { bytes += traffic.selected(selection, lengths) }
        counts.readBytes += bytes
        if isDense, let cascade = cascades[layer] {
            try cascade.run(
                query: query, cache: cache, sequences: names, layer: layer,
                output: MutableTensorView(output.mutableSpan, geometry: heads.outputGeometry(), named: "output"), on: pool)
            return
        }
        try plan.run(
            query: query, cache: cache, sequences: names, layer: layer, selection: selection, heads: heads.selected,
            output: MutableTensorView(output.mutableSpan, geometry: heads.outputGeometry(), named: "output"), on: pool)
    }

    // MARK: - Prefill

    private func prefill(
        _ heads: HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        if isSparse(layer), options.prefill != .dense {
            try prefillSparsely(heads, layer: layer, into: &output, on: pool)
            return
        }
        let window = model.configuration.slidingWindows[layer]
        let pairs = segments.reduce(0) { $0 + $1.pairs(window: window) } * Double(heads.queryHeads)
        counts.attendedPairs += pairs
        counts.reachablePairs += pairs
        if segments.allSatisfy({ $0.count <= Self.fewQueries }) {
            try dense[layer].run(
                query: TensorView(heads.elements.span, geometry: heads.geometry(heads: heads.queryHeads), named: "query"),
                cache: cache, sequences: names, queryLengths: segments.map(\.count), layer: layer,
                output: MutableTensorView(output.mutableSpan, geometry: heads.outputGeometry(), named: "output"), on: pool)
            return
        }
        var row = 0
        for (segment, name) in zip(segments, names) {
            try attendDensely(
                heads, to: cache.rows(of: name, layer: layer), layer: layer, row: row, count: segment.count, into: &output,
                on: pool)
            row += segment.count
        }
    }

    /// Attends `count` queries of rows from `row` on, the last tokens of a sequence, to all keys that the layer shows.
    private func attendDensely(
        _ heads: HeadRows, to cached: CachedRows, layer: Int, row: Int, count: Int, into output: inout Tensor<Float>,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let window = model.configuration.slidingWindows[layer]
        let shape = try AttentionShape(
            queryLength: count, keyLength: cached.tokens, queryHeads: heads.queryHeads, kvHeads: heads.kvHeads,
            headDim: heads.headDim)
        let width = heads.queryHeads * heads.headDim
        var rows = output.mutableSpan
        try DenseAttention(shape, mask: window.map { .causal(window: $0) } ?? .causal, modifiers: dense[layer].modifiers)
            .run(
                query: TensorView(
                    heads.elements.span.extracting((row * heads.width)...),
                    geometry: heads.geometry(heads: heads.queryHeads, tokens: count), named: "query"),
                key: cached.key, value: cached.value,
                output: MutableTensorView(
                    rows._mutatingExtracting((row * width)...), geometry: heads.outputGeometry(tokens: count), named: "output"),
                on: pool)
    }

    /// Up to so many queries of a sequence, attention row by row of the pages is faster than by blocks of queries: 0.4 to 0.8
    /// of its time for 4 queries, 1 to 1.5 for 16.
    private static let fewQueries = 8

    private func prefillSparsely(
        _ heads: HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        var row = 0
        for (segment, name) in zip(segments, names) {
            let tail = segment.isLast && options.prefill.estimatesByBlocks ? min(segment.count, options.denseTail) : 0
            let (count, length) = (segment.count - tail, segment.before + segment.count)
            if count > 0 {
                let plan = try SparsePrefill(
                    model, options.prefill, options, layer: layer, queries: count, keys: length - tail)
                let cached = try cache.rows(of: name, layer: layer, omitting: length - tail..<length)
                let pairs = try plan.run(
                    query: TensorView(
                        heads.elements.span.extracting((row * heads.width)...),
                        geometry: heads.geometry(heads: heads.queryHeads, tokens: count), named: "query"),
                    key: cached.key, value: cached.value, heads, row: row, count: count, into: &output, on: pool)
                counts.attendedPairs += Double(pairs.attended)
                counts.reachablePairs += Double(pairs.reachable)
            }
            if tail > 0 {
                try attendDensely(
                    heads, to: cache.rows(of: name, layer: layer), layer: layer, row: row + count, count: tail, into: &output,
                    on: pool)
                let end = PassSegment(sequence: segment.sequence, before: length - tail, count: tail, isLast: true)
                let pairs = end.pairs(window: nil) * Double(heads.queryHeads)
                counts.attendedPairs += pairs
                counts.reachablePairs += pairs
            }
            row += segment.count
        }
    }
}

extension SparseKernelsError {
    static func unknown(_ sequence: SessionSequence) -> SparseKernelsError {
        SparseKernelsError(.unknownSequence, "sequence", expected: "a sequence of this session", actual: "number \(sequence)")
    }
}
