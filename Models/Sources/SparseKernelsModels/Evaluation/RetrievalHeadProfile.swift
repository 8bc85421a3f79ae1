internal import NemotronH
public import SparseKernels

/// How much of its output each KV head loses when its queries see the first and the last tokens only: large for retrieval heads.
///
/// The loss of a head is ‖o′ − o‖/‖o‖, at most 1, over its query heads and all tokens, where o is the output of full causal attention
/// and o′ that of a sink and a window. The layers before it attend in full. DuoAttention trains a gate per head for the same purpose
/// (Xiao et al., arXiv 2410.10819, section 2.2); this measures instead, which needs no training and one pass over some texts.
public struct RetrievalHeadProfile: Sendable {
    /// Tokens that streaming heads see: the first ones, and those that end at the query.
    public let sink: Int
    public let local: Int
    /// Sums of ‖o′ − o‖² and ‖o‖², by layer and KV head.
    private var sums: [[(difference: Double, norm: Double)]] = []

    /// - Throws: `.invalidArgument` for a negative sink or a window below 1.
    public init(sink: Int = 128, local: Int = 256) throws(SparseKernelsError) {
        guard sink >= 0, local >= 1 else {
            throw SparseKernelsError(
                .invalidArgument, "sink and local", expected: "0 or more, and 1 or more", actual: "\(sink) and \(local)")
        }
        self.sink = sink
        self.local = local
    }

    /// Takes a text into account. It should be some times longer than sink and window.
    ///
    /// - Parameters:
    ///   - tokens: one sequence that starts at position 0.
    ///   - model: a causal one, the same in all calls.
    /// - Throws: `.invalidArgument` for no tokens or one outside the vocabulary, and for another model.
    public mutating func add(
        _ tokens: [Int], to model: LanguageModel, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let c = model.configuration
        guard !tokens.isEmpty else {
            throw SparseKernelsError(.invalidArgument, "tokens", expected: "one or more", actual: "none")
        }
        guard c.isCausal, sums.isEmpty || sums.count == c.attentionLayers && sums[0].count == c.kvHeads else {
            throw SparseKernelsError(
                .invalidArgument, "model", expected: "a causal model, the same in all calls",
                actual:
                    "\(c.isCausal ? "a causal" : "a bidirectional") one of \(c.attentionLayers) layers and \(c.kvHeads) KV heads"
            )
        }
        try model.check(tokens)
        if sums.isEmpty { sums = Array(repeating: Array(repeating: (0, 0), count: c.kvHeads), count: c.attentionLayers) }
        let attention = try ComparedAttention(model, tokens: tokens.count, sink: sink, local: local, sums: sums)
        var workspace = try LanguageWorkspace(c, rows: tokens.count, hasCATS: model.cats != nil)
        var stopwatch = Stopwatch()
        try model.run(
            PassTokens(tokens), needed: .rows([]), attention: attention, workspace: &workspace, stopwatch: &stopwatch, on: pool)
        sums = attention.sums
    }

    /// The loss of each KV head of each layer, 0…1. Layers with a sliding window have 0.
    public var losses: [[Double]] {
        sums.map { $0.map { $0.norm > 0 ? min(1, ($0.difference / $0.norm).squareRoot()) : 0 } }
    }
}

/// Attends in full, and compares with what streaming heads would have computed.
private final class ComparedAttention: TokenAttention {
    private let whole: WholeSequenceAttention
    private let streaming: [BlockSparseAttention?]
    var sums: [[(difference: Double, norm: Double)]]

    init(
        _ model: LanguageModel, tokens: Int, sink: Int, local: Int, sums: [[(difference: Double, norm: Double)]]
    ) throws(SparseKernelsError) {
        let c = model.configuration
        whole = try WholeSequenceAttention(model, tokens: tokens)
        let shape = try AttentionShape(
            queryLength: tokens, keyLength: tokens, queryHeads: c.queryHeads, kvHeads: c.kvHeads, headDim: c.headDim)
        var streaming: [BlockSparseAttention?] = []
        for layer in 0..<c.attentionLayers {
            streaming.append(
                c.slidingWindows[layer] != nil
                    ? nil
                    : try BlockSparseAttention(
                        shape, heads: [.streaming(sink: sink, local: local)], isCausal: true,
                        modifiers: model.modifiers(layer: layer)))
        }
        self.streaming = streaming
        self.sums = sums
    }

    func batch() throws(SparseKernelsError) -> PackedSequences { try whole.batch() }

    func states(layer: Int) -> Mamba2States { whole.states(layer: layer) }

    func attend(
        _ heads: inout HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try whole.attend(&heads, layer: layer, into: &output, on: pool)
        guard let plan = streaming[layer] else { return }
        let (query, key) = (try heads.geometry(heads: heads.queryHeads), try heads.geometry(heads: heads.kvHeads))
        let span = heads.elements.span
        var other = try Tensor<Float>(zeros: output.shape)
        try plan.run(
            query: TensorView(span, geometry: query, named: "query"),
            key: TensorView(span.extracting(heads.keyOffset...), geometry: key, named: "key"),
            value: TensorView(span.extracting(heads.valueOffset...), geometry: key, named: "value"),
            output: MutableTensorView(other.mutableSpan, geometry: heads.outputGeometry(), named: "output"), on: pool)
        let (a, b) = (output.span, other.span)
        let group = heads.queryHeads / heads.kvHeads * heads.headDim
        for row in 0..<heads.rows {
            for head in 0..<heads.kvHeads {
                let start = (row * heads.kvHeads + head) * group
                for index in start..<start + group {
                    let (exact, rest) = (Double(a[index]), Double(b[index] - a[index]))
                    sums[layer][head].norm += exact * exact
                    sums[layer][head].difference += rest * rest
                }
            }
        }
    }
}
