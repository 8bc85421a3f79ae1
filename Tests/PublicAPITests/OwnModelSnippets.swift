import SparseKernels
import SparseKernelsReference
import Testing

/// One layer of a Llama-like model: x += attention(norm(x)), then x += mlp(norm(x)).
struct TransformerLayer {
    let queryHeads: Int, kvHeads: Int, headDim: Int
    let attentionNorm: RMSNorm, mlpNorm: RMSNorm
    let qkv: QuantizedLinearGroup, output: QuantizedLinear  // Wq, Wk and Wv over one quantised input
    let gateUp: QuantizedLinearGroup, down: QuantizedLinear
    let silu: GatedActivation
}

extension TransformerLayer {
    /// Takes the residual stream, [tokens, channels], and what the layer before adds to it, and leaves what this one adds.
    func run(
        _ hidden: inout Tensor<Float>, _ update: inout Tensor<Float>, at rotations: RotaryTable,
        _ sequence: PagedKVCache.SequenceID, in cache: PagedKVCache, layer: Int
    ) throws {
        var input = hidden
        try attentionNorm.run(adding: update, to: &hidden, into: &input)
        var heads = try qkv(input)  // [tokens, (queryHeads + 2 · kvHeads) · headDim]
        let (keys, values) = (queryHeads..<queryHeads + kvHeads, queryHeads + kvHeads..<queryHeads + 2 * kvHeads)
        try rotations.rotate(heads.mutableView(headDim: headDim).heads(0..<keys.upperBound))
        let all = try heads.view(headDim: headDim)
        try cache.append(key: all.heads(keys), value: all.heads(values), to: sequence, layer: layer)
        update = try output(attend(all.heads(0..<queryHeads), sequence, in: cache, layer: layer))
        try mlpNorm.run(adding: update, to: &hidden, into: &input)
        var inner = try Tensor<Float>(zeros: [input.shape[0], down.inFeatures])
        try silu.run(halvesOf: gateUp(input), into: &inner)
        update = try down(inner)
    }

    /// Attends over all tokens of the sequence. Pages are read in their format, and never widened as a whole.
    func attend(
        _ query: TensorView<Float>, _ sequence: PagedKVCache.SequenceID, in cache: PagedKVCache, layer: Int
    ) throws -> Tensor<Float> {
        var output = try Tensor<Float>(zeros: [query.tokens, queryHeads * headDim])
        if query.tokens > 1 {
            let cached = try cache.rows(of: sequence, layer: layer)
            let shape = try AttentionShape(
                queryLength: query.tokens, keyLength: cached.tokens, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim)
            try DenseAttention(shape, mask: .causal).run(
                query: query, key: cached.key, value: cached.value, output: output.mutableView(headDim: headDim))
        } else {
            try PagedAttention(queryHeads: queryHeads, configuration: cache.configuration).run(
                query: query, cache: cache, sequences: [sequence], layer: layer, output: output.mutableView(headDim: headDim))
        }
        return output
    }
}

/// The snippets of Docs/Operators/OwnModel.md, which together are a model, and what it computes in Double.
@Suite("Snippets: a model of one's own")
struct OwnModelSnippets {
    static let (channels, inner, vocabulary, queryHeads, kvHeads, headDim, layers) = (64, 96, 50, 4, 2, 16, 2)
    static let widths = [queryHeads * headDim, kvHeads * headDim, kvHeads * headDim]

    /// The weights of a layer, as a checkpoint has them.
    struct Weights {
        var q, k, v, o, gate, up, down: Tensor<Float>
        var norms: [Tensor<Float>]

        init(seed: UInt64) throws {
            func matrix(_ rows: Int, _ columns: Int, _ number: UInt64) throws -> Tensor<Float> {
                try .normal([rows, columns], seed: 10 * seed + number, scale: 1 / Float(columns).squareRoot())
            }
            let (c, w) = (OwnModelSnippets.channels, OwnModelSnippets.widths)
            (q, k, v) = (try matrix(w[0], c, 0), try matrix(w[1], c, 1), try matrix(w[2], c, 2))
            (o, gate) = (try matrix(c, w[0], 3), try matrix(OwnModelSnippets.inner, c, 4))
            (up, down) = (try matrix(OwnModelSnippets.inner, c, 5), try matrix(c, OwnModelSnippets.inner, 6))
            norms = try (0..<2).map { i in try Tensor([c]) { 1 + Float(($0 * 7 + i) % 5) / 8 } }
        }
    }

    static func layer(_ w: Weights, activation: ActivationFormat) throws -> TransformerLayer {
        let (q, k, v, o, gate, up, down) = (w.q, w.k, w.v, w.o, w.gate, w.up, w.down)

        // 4-bit weights, 8-bit activations; QServe's and SVDQuant's files have such layers ready.
        let quantizer = try WeightQuantizer(.svdQuantInt4)
        func linear(_ weight: Tensor<Float>) throws -> QuantizedLinear {
            try QuantizedLinear(PackedWeight(quantizer(weight)), activation: activation)
        }
        let layer = try TransformerLayer(
            queryHeads: 4, kvHeads: 2, headDim: 16, attentionNorm: RMSNorm(weight: w.norms[0], epsilon: 1e-5),
            mlpNorm: RMSNorm(weight: w.norms[1], epsilon: 1e-5), qkv: QuantizedLinearGroup([linear(q), linear(k), linear(v)]),
            output: linear(o), gateUp: QuantizedLinearGroup([linear(gate), linear(up)]), down: linear(down),
            silu: GatedActivation(.silu))

        return layer
    }

    /// The logits of all tokens: a prompt in two parts, and then a token at a time.
    static func logits(
        _ tokens: [Int], _ weights: [Weights], _ table: Tensor<Float>, activation: ActivationFormat, format: KVFormat
    ) throws -> [[Float]] {
        let layers = try weights.map { try layer($0, activation: activation) }
        let norm = try RMSNorm(weight: weights[0].norms[0], epsilon: 1e-5)

        let cache = try PagedKVCache(
            KVCacheConfiguration(layers: 2, kvHeads: 2, headDim: 16, pageCapacity: 64, format: format))
        let (embedding, rotary) = (try TokenEmbedding(table: table), try RotaryEmbedding(headDim: 16, theta: 10_000))
        let projection = try FloatLinear(weight: table)  // tied embeddings
        func predict(_ tokens: [Int], _ sequence: PagedKVCache.SequenceID) throws -> Tensor<Float> {
            let first = try cache.length(of: sequence)
            let rotations = try rotary.table(positions: Array(first..<first + tokens.count))
            var hidden = try embedding(tokens)
            var (update, last) = (try Tensor<Float>(zeros: hidden.shape), hidden)
            for (index, layer) in layers.enumerated() {
                try layer.run(&hidden, &update, at: rotations, sequence, in: cache, layer: index)
            }
            try norm.run(adding: update, to: &hidden, into: &last)
            return try projection(last)  // [tokens, vocabulary]
        }

        let sequence = cache.makeSequence()
        var rows: [[Float]] = []
        for part in [Array(tokens[..<20]), Array(tokens[20..<33])] + tokens[33...].map({ [$0] }) {
            let logits = try predict(part, sequence)
            rows += (0..<part.count).map { row in (0..<vocabulary).map { logits[row, $0] } }
        }
        return rows
    }

    // MARK: - The same in Double

    typealias Rows = [[Double]]

    /// x · Wᵀ, with the weight as it is after its quantisation.
    static func multiplied(_ x: Rows, _ weight: Tensor<Float>, isQuantized: Bool = true) throws -> Rows {
        let weight = isQuantized ? try WeightQuantizer(.svdQuantInt4)(weight).dequantized() : weight
        let columns = weight.rows()
        return x.map { row in columns.map { zip(row, $0).reduce(0) { $0 + $1.0 * $1.1 } } }
    }

    static func expected(_ tokens: [Int], _ weights: [Weights], _ table: Tensor<Float>) throws -> Rows {
        func normalized(_ x: Rows, _ weight: Tensor<Float>) -> Rows {
            x.map { ReferenceRows.rmsNorm($0, weight: weight.elements.map(Double.init), epsilon: 1e-5) }
        }
        let frequencies = (0..<headDim / 2).map { Elementary.frequency($0, headDim: headDim) }
        func heads(_ rows: Rows, _ head: Int, rotates: Bool) -> Rows {
            rows.enumerated().map { position, row in
                let x = Array(row[head * headDim..<(head + 1) * headDim])
                return rotates
                    ? ReferenceRows.rotated(x, position: position, frequencies: frequencies, pairing: .halfSplit) : x
            }
        }
        let embedded = table.rows()
        var hidden = tokens.map { embedded[$0] }
        for w in weights {
            let input = normalized(hidden, w.norms[0])
            let (q, k, v) = (try multiplied(input, w.q), try multiplied(input, w.k), try multiplied(input, w.v))
            var attended = Rows(repeating: [], count: tokens.count)
            for head in 0..<queryHeads {
                let group = head / (queryHeads / kvHeads)
                let (query, key) = (heads(q, head, rotates: true), heads(k, group, rotates: true))
                let value = heads(v, group, rotates: false)
                for token in tokens.indices {
                    attended[token] +=
                        ReferencePagedAttention().row(
                            query: query[token], keys: key, values: value, positions: Array(0...token)
                        ).output
                }
            }
            func add(_ rows: Rows) { for (i, row) in rows.enumerated() { hidden[i] = zip(hidden[i], row).map { $0 + $1 } } }
            add(try multiplied(attended, w.o))
            let mlp = normalized(hidden, w.norms[1])
            let (gate, up) = (try multiplied(mlp, w.gate), try multiplied(mlp, w.up))
            let inner = zip(gate, up).map { zip($0, $1).map { ReferenceRows.activation(.silu, $0) * $1 } }
            add(try multiplied(inner, w.down))
        }
        return try multiplied(normalized(hidden, weights[0].norms[0]), table, isQuantized: false)
    }

    /// ‖a − b‖/‖b‖ of all logits.
    static func distance(_ a: [[Float]], _ b: Rows) -> Double {
        let pairs = zip(a.joined(), b.joined())
        let squares = pairs.reduce(into: (0.0, 0.0)) {
            $0.0 += (Double($1.0) - $1.1) * (Double($1.0) - $1.1)
            $0.1 += $1.1 * $1.1
        }
        return (squares.0 / squares.1).squareRoot()
    }

    @Test("the model computes what its formulas say, in parts and token by token")
    func model() throws {
        let weights = try (1...2).map { try Weights(seed: $0) }
        let table = try Tensor<Float>.normal([Self.vocabulary, Self.channels], seed: 7)
        let tokens = (0..<38).map { ($0 * 17 + $0 / 7) % Self.vocabulary }
        let expected = try Self.expected(tokens, weights, table)
        func distance(_ activation: ActivationFormat, _ format: KVFormat) throws -> Double {
            Self.distance(try Self.logits(tokens, weights, table, activation: activation, format: format), expected)
        }
        #expect(try distance(.float, .float32) < 2e-6)
        // 8-bit activations are off by 1/√12 of a code of 127 for the largest, and there are 14 products in a row.
        #expect(try distance(.int8PerGroup, .float16) < 0.05)
        #expect(try distance(.int8PerGroup, .int8) < 0.06)
    }
}

private enum Elementary {
    /// θ^(−2i/d) for θ = 10⁴.
    static func frequency(_ pair: Int, headDim: Int) -> Double {
        // 10⁴ to the power of i/8 for heads of 16 channels: the root of the root of 10⁴ is 10, and that of its root 10^(1/2).
        let step = 10_000.0.squareRoot().squareRoot().squareRoot()
        precondition(headDim == 16)
        return (0..<pair).reduce(1.0) { value, _ in value / step }
    }
}
