internal import LServe
import SparseKernels

/// A session's cache with an `LServeLayer` per layer: streaming heads keep a sink and a window only.
///
/// What streaming heads have dropped is gone, so sequences cannot be cut.
final class LServeSessionCache: SessionCache {
    private let model: LanguageModel
    private let layers: [LServeLayer]
    private let rotation: CacheRotation
    private let traffic: CacheTraffic
    let states: SessionStates? = nil
    private let retrievalHeads: [Int]
    private let budget: Int
    private let interval: Int
    private let window: (prefill: Int, decoding: Int)
    private var sequences: [SessionSequence: [LServeLayer.SequenceID]] = [:]
    private var nextNumber = 0

    private var segments: [PassSegment] = []
    private var isDecoding = false
    var counts = AttentionCounts()

    /// - Parameter heads: for every layer, whether each KV head is a retrieval head.
    /// - Throws: `.invalidArgument` for options and models that LServe's layers do not have.
    init(
        _ model: LanguageModel, _ options: SessionOptions, retrievalHeads heads: [[Bool]], tokens: Int, interval: Int
    ) throws(SparseKernelsError) {
        let c = model.configuration
        self.model = model
        var configuration = LServeConfiguration()
        switch options.prefill {
        case .dense: configuration.prefillLocalTokens = options.tokenCapacity
        case .lServe(let sink, let local): (configuration.prefillSinkTokens, configuration.prefillLocalTokens) = (sink, local)
        default:
            throw SparseKernelsError(
                .invalidArgument, "prefill", expected: "dense or lServe where LServe decodes with streaming heads",
                actual: "\(options.prefill)")
        }
        guard options.keyFormat == options.valueFormat else {
            throw SparseKernelsError(
                .invalidArgument, "valueFormat",
                expected: "that of the keys (\(options.keyFormat)), as LServe's layers have one",
                actual: "\(options.valueFormat)")
        }
        guard c.recurrentLayers == 0 else {
            throw SparseKernelsError(
                .invalidArgument, "decoding", expected: "another method than LServe with streaming heads for this model",
                actual: "lServe, for a model with recurrent layers")
        }
        guard c.attentionSoftCap == nil, c.slidingWindows.allSatisfy({ $0 == nil }), !model.hasSinks else {
            throw SparseKernelsError(
                .invalidArgument, "decoding", expected: "another method than LServe with streaming heads for this model",
                actual: "lServe, for a model with capped scores, sinks or sliding windows")
        }
        configuration.pageSize = options.pageSize ?? configuration.pageSize
        configuration.logicalPageSize = min(configuration.logicalPageSize, configuration.pageSize)
        configuration.promptChunkTokens = min(options.chunk, options.tokenCapacity)
        configuration.tokenBudget = tokens
        configuration.selectionInterval = interval
        configuration.format = options.keyFormat
        configuration.quantization = options.quantization
        configuration.softmaxScale = c.softmaxScale
        var layers: [LServeLayer] = []
        for layer in 0..<c.attentionLayers {
            layers.append(
                try LServeLayer(
                    queryHeads: c.queryHeads, headDim: c.headDim,
                    isRetrieval: layer < options.denseLayers ? Array(repeating: true, count: c.kvHeads) : heads[layer],
                    configuration: configuration, tokenCapacity: options.tokenCapacity,
                    sequenceCapacity: options.sequenceCapacity))
        }
        self.layers = layers
        rotation = try CacheRotation(c, keys: options.rotatesKeys, values: options.rotatesValues)
        traffic = CacheTraffic(
            try KVCacheConfiguration(
                kvHeads: 1, headDim: c.headDim, pageSize: configuration.pageSize, pageCapacity: 1, format: options.keyFormat,
                metadata: PageMetadata(
                    .minMax, logicalPageSize: configuration.logicalPageSize, format: configuration.metadataFormat)))
        retrievalHeads = layers.map { $0.isRetrieval.count { $0 } }
        budget = tokens
        self.interval = max(1, interval)
        window = (
            configuration.prefillSinkTokens + min(configuration.prefillLocalTokens, 1 << 30),
            configuration.decodeSinkTokens + configuration.decodeLocalTokens
        )
    }

    var usedByteCount: Int { layers.reduce(0) { $0 + $1.usedByteCount } }

    // MARK: - Sequences

    func makeSequence() -> SessionSequence { add([]) }

    func fork(_ sequence: SessionSequence, at length: Int?) throws(SparseKernelsError) -> SessionSequence {
        let parents = try names(of: sequence)
        if let length { try requireWhole(sequence, length) }
        var names: [LServeLayer.SequenceID] = []
        do throws(SparseKernelsError) {
            for (layer, parent) in zip(layers, parents) { names.append(try layer.fork(parent)) }
        } catch {
            for (layer, name) in zip(layers, names) { try layer.free(name) }
            throw error
        }
        return add(names)
    }

    func truncate(_ sequence: SessionSequence, to length: Int) throws(SparseKernelsError) { try requireWhole(sequence, length) }

    func free(_ sequence: SessionSequence) throws(SparseKernelsError) {
        for (layer, name) in zip(layers, try names(of: sequence)) { try layer.free(name) }
        sequences[sequence] = nil
    }

    func length(of sequence: SessionSequence) throws(SparseKernelsError) -> Int {
        guard let name = try names(of: sequence).first else { return 0 }
        return try layers[0].length(of: name)
    }

    private func requireWhole(_ sequence: SessionSequence, _ length: Int) throws(SparseKernelsError) {
        let actual = try self.length(of: sequence)
        guard length == actual else {
            throw SparseKernelsError(
                .invalidArgument, "length", expected: "\(actual): LServe's streaming heads cannot be cut", actual: "\(length)")
        }
    }

    private func names(of sequence: SessionSequence) throws(SparseKernelsError) -> [LServeLayer.SequenceID] {
        guard let names = sequences[sequence] else { throw SparseKernelsError.unknown(sequence) }
        return names
    }

    private func add(_ names: [LServeLayer.SequenceID]) -> SessionSequence {
        defer { nextNumber += 1 }
        sequences[nextNumber] = names
        return nextNumber
    }

    /// The names of the pass's sequences in a layer, which are made when a layer first sees them: layers have room for so many.
    private func names(layer: Int) throws(SparseKernelsError) -> [LServeLayer.SequenceID] {
        var result: [LServeLayer.SequenceID] = []
        for segment in segments {
            var names = sequences[segment.sequence] ?? []
            if names.count == layer {
                names.append(try layers[layer].makeSequence())
                sequences[segment.sequence] = names
            }
            result.append(names[layer])
        }
        return result
    }

    // MARK: - Passes

    func prepare(_ counts: [Int], for sequences: [SessionSequence]) {}

    func end() {}

    func checkpoint(_ sequence: SessionSequence) throws(SparseKernelsError) {
        throw SparseKernelsError(
            .invalidArgument, "decoding",
            expected: "another method than LServe with streaming heads, which have dropped tokens",
            actual: "lServe")
    }

    func removeCheckpoint(of sequence: SessionSequence, at length: Int) throws(SparseKernelsError) {
        try checkpoint(sequence)
    }

    func begin(_ segments: [PassSegment], isDecoding: Bool) {
        self.segments = segments
        self.isDecoding = isDecoding
    }

    func attend(
        _ heads: inout HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try rotation.rotate(&heads, on: pool)
        if isDecoding {
            try decode(heads, layer: layer, into: &output, on: pool)
        } else {
            try prefill(heads, layer: layer, into: &output, on: pool)
        }
        try rotation.restore(&output, rows: heads.rows, on: pool)
    }

    private func decode(
        _ heads: HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let span = heads.elements.span
        let key = try heads.geometry(heads: heads.kvHeads)
        let state = try layers[layer].decode(
            query: TensorView(span, geometry: heads.geometry(heads: heads.queryHeads), named: "query"),
            key: TensorView(span.extracting(heads.keyOffset...), geometry: key, named: "key"),
            value: TensorView(span.extracting(heads.valueOffset...), geometry: key, named: "value"),
            sequences: names(layer: layer), on: pool)
        copy(state.output, row: 0, count: heads.rows, into: &output)

        let lengths = segments.map { $0.before + 1 }
        let retrieval = Double(retrievalHeads[layer])
        let streaming = Double(heads.kvHeads) - retrieval
        counts.denseBytes += Double(heads.kvHeads) * traffic.dense(lengths)
        counts.readBytes +=
            retrieval * (traffic.dense(lengths, atMost: budget) + traffic.metadata(lengths) / Double(interval))
            + streaming * traffic.dense(lengths, atMost: window.decoding)
    }

    private func prefill(
        _ heads: HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let span = heads.elements.span
        var row = 0
        for (segment, name) in zip(segments, try names(layer: layer)) {
            let start = row * heads.width
            let (query, key) = (
                try heads.geometry(heads: heads.queryHeads, tokens: segment.count),
                try heads.geometry(heads: heads.kvHeads, tokens: segment.count)
            )
            let state = try layers[layer].prefill(
                query: TensorView(span.extracting(start...), geometry: query, named: "query"),
                key: TensorView(span.extracting((start + heads.keyOffset)...), geometry: key, named: "key"),
                value: TensorView(span.extracting((start + heads.valueOffset)...), geometry: key, named: "value"),
                sequence: name, on: pool)
            copy(state.output, row: row, count: segment.count, into: &output)
            count(segment, layer: layer, heads: heads)
            row += segment.count
        }
    }

    private func count(_ segment: PassSegment, layer: Int, heads: HeadRows) {
        let group = Double(heads.queryHeads / heads.kvHeads)
        let all = segment.pairs(window: nil)
        let retrieval = Double(retrievalHeads[layer])
        counts.reachablePairs += all * Double(heads.queryHeads)
        counts.attendedPairs +=
            group * (retrieval * all + (Double(heads.kvHeads) - retrieval) * segment.pairs(window: window.prefill))
    }

    /// Copies `[queryHeads, count, headDim]` into rows.
    private func copy(_ state: Tensor<Float>, row: Int, count: Int, into output: inout Tensor<Float>) {
        let (heads, channels) = (state.shape[0], state.shape[2])
        let source = state.span
        var target = output.mutableSpan
        for head in 0..<heads {
            for token in 0..<count {
                let (from, to) = ((head * count + token) * channels, ((row + token) * heads + head) * channels)
                for i in 0..<channels { target[to + i] = source[from + i] }
            }
        }
    }
}
