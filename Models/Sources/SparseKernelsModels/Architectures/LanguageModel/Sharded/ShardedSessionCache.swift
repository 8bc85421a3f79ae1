import Communication
import SequenceParallel
import SparseKernels

/// A session's cache whose pages live on several ranks.
///
/// The rows of prompts are spread over the ranks, and keys and values stay where they are computed. The first pass of a prompt
/// attends itself by a ring; later ones send queries to the keys and outputs back. Passes of few tokens, steps among them, run on
/// every rank as a whole; each token has an owner, and outputs are merged from what the ranks attended.
final class ShardedSessionCache: SessionCache {
    private let cache: ShardedKVCache
    private let model: LanguageModel
    private let options: SessionOptions
    private let ranks: SessionRanks
    private let rotation: CacheRotation
    private let traffic: CacheTraffic
    private let plans: ShardedPlans
    private var ring: ShardedRing
    private var sequences: [SessionSequence: ShardedKVCache.SequenceID] = [:]
    private var nextNumber = 0

    private var segments: [PassSegment] = []
    private var names: [ShardedKVCache.SequenceID] = []
    /// The tokens of each sequence when the pass is over.
    private var lengths: [Int] = []
    /// Who has the rows of each segment; nil when every rank has all.
    private var shards: [TokenShards]?
    private var isDecoding = false
    var counts = AttentionCounts()

    /// Up to so many rows take as long on every rank as their parts would: linear layers read all weights for either.
    private static let fewRows = 16

    init(
        _ model: LanguageModel, _ options: SessionOptions, _ ranks: SessionRanks
    ) throws(SparseKernelsError) {
        let c = model.configuration
        (self.model, self.options, self.ranks) = (model, options, ranks)
        rotation = try CacheRotation(c, keys: options.rotatesKeys, values: options.rotatesValues)
        let configuration = try Self.configuration(c, options, ranks: ranks.count)
        cache = try ShardedKVCache(configuration, on: ranks.communicator)
        traffic = CacheTraffic(configuration)
        plans = try ShardedPlans(model, options, cache)
        ring = ShardedRing(model, ranks)
    }

    /// The configuration of one session's cache, with its share of the pages. Owners take turns by pages, so that a rank may have two
    /// more of a sequence than its share.
    private static func configuration(
        _ c: LanguageModelConfiguration, _ options: SessionOptions, ranks: Int
    ) throws(SparseKernelsError) -> KVCacheConfiguration {
        let whole = try PagedSessionCache.configuration(c, options)
        let pages = (options.tokenCapacity + whole.pageSize - 1) / whole.pageSize
        return try KVCacheConfiguration(
            layers: whole.layers, kvHeads: whole.kvHeads, headDim: whole.headDim, pageSize: whole.pageSize,
            pageCapacity: (pages + ranks - 1) / ranks + 2 * options.sequenceCapacity, format: whole.keyFormat,
            valueFormat: whole.valueFormat, quantization: whole.quantization, metadata: whole.metadata)
    }

    var states: SessionStates? { nil }
    var usedByteCount: Int { cache.local.usedByteCount }

    // MARK: - Sequences

    func makeSequence() -> SessionSequence { add(cache.makeSequence()) }

    func fork(_ sequence: SessionSequence, at length: Int?) throws(SparseKernelsError) -> SessionSequence {
        add(try cache.fork(try name(of: sequence), at: length))
    }

    func truncate(_ sequence: SessionSequence, to length: Int) throws(SparseKernelsError) {
        try cache.truncate(try name(of: sequence), to: length)
    }

    func free(_ sequence: SessionSequence) throws(SparseKernelsError) {
        try cache.free(try name(of: sequence))
        sequences[sequence] = nil
    }

    func length(of sequence: SessionSequence) throws(SparseKernelsError) -> Int {
        try cache.length(of: try name(of: sequence))
    }

    // Sequences in pages can go back to any length.
    func checkpoint(_ sequence: SessionSequence) throws(SparseKernelsError) { _ = try name(of: sequence) }
    func removeCheckpoint(of sequence: SessionSequence, at length: Int) throws(SparseKernelsError) {
        _ = try name(of: sequence)
    }

    private func add(_ name: ShardedKVCache.SequenceID) -> SessionSequence {
        defer { nextNumber += 1 }
        sequences[nextNumber] = name
        return nextNumber
    }

    private func name(of sequence: SessionSequence) throws(SparseKernelsError) -> ShardedKVCache.SequenceID {
        guard let name = sequences[sequence] else { throw SparseKernelsError.unknown(sequence) }
        return name
    }

    // MARK: - Passes

    func prepare(_ counts: [Int], for sequences: [SessionSequence]) throws(SparseKernelsError) {}

    func begin(_ segments: [PassSegment], isDecoding: Bool) throws(SparseKernelsError) {
        self.segments = segments
        self.isDecoding = isDecoding
        // The session has asked for the lengths of these sequences, so they exist.
        names = segments.map { sequences[$0.sequence]! }
        lengths = segments.map { $0.before + $0.count }
        shards = nil
        ring.end()
        if isDecoding || segments.reduce(0, { $0 + $1.count }) <= Self.fewRows { return }
        var shards: [TokenShards] = []
        for (index, segment) in segments.enumerated() {
            // What sequences have in common need not be where they begin.
            let turn = segments.count > 1 && segment.before == 0 ? index : 0
            shards.append(try placement(of: segment, names[index]).turned(by: turn))
        }
        // Rows that nearly all fall to one rank take no longer when all run them, and need fewer messages.
        let largest = (0..<ranks.count).reduce(0) { most, rank in max(most, shards.reduce(0) { $0 + $1.count(of: rank) }) }
        if 4 * largest > 3 * segments.reduce(0, { $0 + $1.count }) { return }
        self.shards = shards
        if segments.count == 1, segments[0].before == 0, options.prefill == .dense { ring.begin(shards[0]) }
    }

    /// Who has the rows of a segment, and owns its tokens. A prompt from its start on is cut as a causal ring needs it, in whole pages;
    /// what follows goes on where the cache says, and so do prompts of few pages, which would all begin on the same rank.
    private func placement(
        of segment: PassSegment, _ name: ShardedKVCache.SequenceID
    ) throws(SparseKernelsError) -> TokenShards {
        let pageSize = cache.configuration.pageSize
        if segment.before == 0, segment.count >= ranks.count * pageSize {
            return try TokenShards.zigzag(length: segment.count, ulysses: 1, ring: ranks.count, alignment: pageSize)
        }
        return try cache.placement(of: segment.count, in: name)
    }

    func shards(of segments: [PassSegment]) -> [TokenShards?] { shards ?? segments.map { _ in nil } }

    func end() throws(SparseKernelsError) {}

    // MARK: - Attention

    func attend(
        _ heads: inout HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        do throws(SparseKernelsError) {
            try rotation.rotate(&heads, on: pool)
            try store(heads, layer: layer, on: pool)
            try attendStored(heads, layer: layer, into: &output, on: pool)
            try rotation.restore(&output, rows: heads.rows, on: pool)
        } catch {
            // Ranks have settled what they throw.
            ranks.sharedError = error
            throw error
        }
        if isDecoding { countStep(layer: layer) } else { countPairs(heads, layer: layer) }
    }

    private func attendStored(
        _ heads: HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        if ring.isOn {
            try ring.attend(heads, cache, names[0], layer: layer, into: &output, on: pool)
        } else if let shards {
            try attend(heads, shards, layer: layer, into: &output, on: pool)
        } else {
            let plan = plans.plan(layer: layer, isDecoding: isDecoding)
            let (queries, rows) = (try heads.geometry(heads: heads.queryHeads), try heads.outputGeometry())
            try plan.attention.run(
                query: TensorView(heads.elements.span, geometry: queries, named: "query"), cache: cache, sequences: names,
                queryLengths: isDecoding ? nil : segments.map(\.count), layer: layer, selector: plan.selector,
                output: MutableTensorView(output.mutableSpan, geometry: rows, named: "output"), on: pool)
        }
    }

    private func store(_ heads: HeadRows, layer: Int, on pool: WorkerPool) throws(SparseKernelsError) {
        let span = heads.elements.span
        if isDecoding {
            let geometry = try heads.geometry(heads: heads.kvHeads)
            let key = try TensorView(span.extracting(heads.keyOffset...), geometry: geometry, named: "key")
            let value = try TensorView(span.extracting(heads.valueOffset...), geometry: geometry, named: "value")
            try cache.append(key: key, value: value, toEach: names, layer: layer, on: pool)
            return
        }
        var row = 0
        for (index, name) in names.enumerated() {
            let count = shards.map { $0[index].count(of: ranks.rank) } ?? segments[index].count
            let geometry = try heads.geometry(heads: heads.kvHeads, tokens: count)
            let start = row * heads.width
            // A rank without rows has none behind those of the pass, either.
            let (first, second) = count == 0 ? (0, 0) : (start + heads.keyOffset, start + heads.valueOffset)
            let key = try TensorView(span.extracting(first...), geometry: geometry, named: "key")
            let value = try TensorView(span.extracting(second...), geometry: geometry, named: "value")
            if let shards {
                try cache.append(key: key, value: value, to: name, shards: shards[index], layer: layer, on: pool)
            } else {
                try cache.append(key: key, value: value, to: name, layer: layer, on: pool)
            }
            row += count
        }
    }

    /// Attends rows of which every rank has its own.
    private func attend(
        _ heads: HeadRows, _ shards: [TokenShards], layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let plan = plans.plan(layer: layer, isDecoding: false).attention
        let (span, width) = (heads.elements.span, heads.queryHeads * heads.headDim)
        var rows = output.mutableSpan
        var row = 0
        for (index, name) in names.enumerated() {
            let count = shards[index].count(of: ranks.rank)
            let queries = try heads.geometry(heads: heads.queryHeads, tokens: count)
            let outputs = try heads.outputGeometry(tokens: count)
            // A rank without rows of the last segments has no rows behind those of the pass, either.
            let start = count == 0 ? 0 : row
            try plan.run(
                query: TensorView(span.extracting((start * heads.width)...), geometry: queries, named: "query"),
                shards: shards[index], cache: cache, sequence: name, layer: layer,
                output: MutableTensorView(
                    rows._mutatingExtracting((start * width)...), geometry: outputs, named: "output"), on: pool)
            row += count
        }
    }

    // MARK: - Counting, of all ranks together

    private func countPairs(_ heads: HeadRows, layer: Int) {
        let window = model.configuration.slidingWindows[layer]
        let reachable = segments.reduce(0) { $0 + $1.pairs(window: window) } * Double(heads.queryHeads)
        counts.reachablePairs += reachable
        guard plans.isSparse(layer), case .streaming(let sink, let local) = options.prefill else {
            counts.attendedPairs += reachable
            return
        }
        // Of the tokens before the window, queries see the first ones.
        let seen = segments.reduce(0) { sum, segment in
            sum + segment.pairs(window: local)
                + (0..<segment.count).reduce(0.0) { $0 + Double(min(sink, max(0, segment.before + $1 + 1 - local))) }
        }
        counts.attendedPairs += seen * Double(heads.queryHeads)
    }

    private func countStep(layer: Int) {
        let dense = traffic.dense(lengths, atMost: model.configuration.slidingWindows[layer] ?? .max)
        counts.denseBytes += dense
        guard plans.isSparse(layer) else {
            counts.readBytes += dense
            return
        }
        switch options.decoding {
        case .streaming(let sink, let local): counts.readBytes += traffic.dense(lengths, atMost: sink + local)
        case .quest(let tokens):
            counts.readBytes += traffic.metadata(lengths) + traffic.dense(lengths, atMost: tokens)
        default: counts.readBytes += dense
        }
    }
}

extension TokenShards {
    /// The same pieces, each with a rank so many places further.
    fileprivate func turned(by turn: Int) throws(SparseKernelsError) -> TokenShards {
        if turn % ranks == 0 { return self }
        return try TokenShards(length: length, ranges: (0..<ranks).map { ranges[($0 + ranks - turn % ranks) % ranks] })
    }
}
