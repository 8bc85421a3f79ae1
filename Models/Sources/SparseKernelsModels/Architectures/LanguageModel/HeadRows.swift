import NemotronH
import SparseKernels

/// Queries, keys and values of the tokens of a pass, side by side in rows, as one projection writes them:
/// `[capacity, (queryHeads + 2 · kvHeads) · headDim]`. The first `rows` rows are in use.
struct HeadRows: Sendable {
    let queryHeads: Int
    let kvHeads: Int
    let headDim: Int
    var rows = 0
    var elements: Tensor<Float>
    /// The query heads that attend, where a method of decoding selects some.
    var selected: HeadSelection?

    init(_ c: LanguageModelConfiguration, capacity: Int) throws(SparseKernelsError) {
        (queryHeads, kvHeads, headDim) = (c.queryHeads, c.kvHeads, c.headDim)
        elements = try Tensor(zeros: [capacity, (c.queryHeads + 2 * c.kvHeads) * c.headDim])
    }

    var width: Int { (queryHeads + 2 * kvHeads) * headDim }
    /// Where the keys and the values of a row begin.
    var keyOffset: Int { queryHeads * headDim }
    var valueOffset: Int { (queryHeads + kvHeads) * headDim }

    /// The geometry of some heads of `count` tokens, of all rows unless given.
    func geometry(heads: Int, tokens: Int? = nil) throws(SparseKernelsError) -> TensorGeometry {
        try TensorGeometry(
            heads: heads, tokens: tokens ?? rows, channels: headDim, headStride: headDim, tokenStride: width, named: "heads")
    }

    /// The geometry of the output of attention, `[tokens, queryHeads · headDim]`.
    func outputGeometry(tokens: Int? = nil) throws(SparseKernelsError) -> TensorGeometry {
        try TensorGeometry(heads: queryHeads, tokens: tokens ?? rows, channels: headDim, layout: .nhd, named: "output")
    }
}

/// The attention of the tokens of a pass, with the state that it needs: the cache of a session, for one. It keeps models free of
/// methods.
protocol TokenAttention: AnyObject {
    /// Attends in one layer. Queries and keys are normalised and rotated.
    ///
    /// - Parameters:
    ///   - heads: queries, keys and values of the tokens, which may be changed.
    ///   - layer: the layer.
    ///   - output: `[capacity, queryHeads · headDim]`, of which the rows of the pass are written.
    func attend(
        _ heads: inout HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError)

    /// The number of heads that a layer attends with, where a router chooses them for this pass; nil for all.
    func selectedHeads(layer: Int) -> Int?

    /// The sequences of the pass, by the slots of their recurrent states. Only models with such states ask for it.
    func batch() throws(SparseKernelsError) -> PackedSequences

    /// The states of a recurrent layer.
    func states(layer: Int) throws(SparseKernelsError) -> Mamba2States
}

extension TokenAttention {
    func selectedHeads(layer: Int) -> Int? { nil }

    // For those that bidirectional models have, which have no recurrent layers.
    func batch() throws(SparseKernelsError) -> PackedSequences { throw .withoutStates }
    func states(layer: Int) throws(SparseKernelsError) -> Mamba2States { throw .withoutStates }
}

/// Attention of one sequence over itself, without a cache, and recurrent layers from states of zero.
final class WholeSequenceAttention: TokenAttention {
    private let attention: [DenseAttention]
    private let shape: AttentionShape
    private let recurrence: [Mamba2States]

    init(_ model: LanguageModel, tokens: Int) throws(SparseKernelsError) {
        let c = model.configuration
        let shape = try AttentionShape(
            queryLength: tokens, keyLength: tokens, queryHeads: c.queryHeads, kvHeads: c.kvHeads, headDim: c.headDim)
        self.shape = shape
        var attention: [DenseAttention] = []
        for layer in 0..<c.attentionLayers {
            let mask: AttentionMask =
                switch (c.isCausal, c.slidingWindows[layer]) {
                case (true, nil): .causal
                case (true, let window?): .causal(window: window)
                case (false, nil): .full
                case (false, let window?): .full(window: window)
                }
            attention.append(try DenseAttention(shape, mask: mask, modifiers: model.modifiers(layer: layer)))
        }
        self.attention = attention
        var recurrence: [Mamba2States] = []
        if let mamba2 = c.mamba2 {
            for _ in 0..<c.recurrentLayers { recurrence.append(try Mamba2States(slots: 1, mamba2)) }
        }
        self.recurrence = recurrence
    }

    func batch() throws(SparseKernelsError) -> PackedSequences { try PackedSequences(lengths: [shape.queryLength]) }

    func states(layer: Int) -> Mamba2States { recurrence[layer] }

    func attend(
        _ heads: inout HeadRows, layer: Int, into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (query, key) = (try heads.geometry(heads: heads.queryHeads), try heads.geometry(heads: heads.kvHeads))
        let span = heads.elements.span
        try attention[layer].run(
            query: TensorView(span, geometry: query, named: "query"),
            key: TensorView(span.extracting(heads.keyOffset...), geometry: key, named: "key"),
            value: TensorView(span.extracting(heads.valueOffset...), geometry: key, named: "value"),
            output: MutableTensorView(output.mutableSpan, geometry: heads.outputGeometry(), named: "output"), on: pool)
    }
}
