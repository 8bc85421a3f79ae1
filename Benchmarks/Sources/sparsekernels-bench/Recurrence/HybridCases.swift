import BenchmarkReport
import NemotronH
import SparseKernels
import SparseKernelsReference

/// A stack of hybrid layers against the same stack with attention in place of Mamba-2: the first 13 layers of Nemotron-H 8B, at a
/// quarter of its width.
///
/// Each kind of layer is timed on its own, and a row is the sum over the stack, so that both stacks have the same times of what they share.
/// Norms and the residual stream, which do too, are left out. Layers that take time in proportion to the tokens are timed on a part of
/// a prompt, and attention on some of its heads. Steps start with empty caches, like layers of a model.
extension RecurrenceCases {
    static let hybridPattern = try! HybridPattern("M-M-M-M*-M-M-")

    func hybridGroups() -> [CaseGroup] {
        let context = isQuick ? 8192 : 65_536
        let size = "\(context / 1024)K"
        let prompt = CaseGroup(
            op: "recurrence.hybrid", name: "Hybrid \(size)", amounts: .uncounted, labels: HybridStack.labels
        ) { announce in
            announce("making the layers")
            let layers = try HybridLayers(instructionSet, on: pool)
            let sample = min(4096, context)
            let scale = Double(context) / Double(sample)
            let attention = try layers.prompt(context)
            return stack(
                [
                    (layers.mamba2(tokens: sample, sequences: 1), scale), (layers.mlp(tokens: sample), scale),
                    (layers.projections(tokens: sample), scale), (attention.body, attention.scale),
                ], preparation: nil, tokens: context)
        }
        let steps = batches.map { batch in
            CaseGroup(
                op: "recurrence.hybrid.step", name: "Hybrid step \(size) b\(batch)", amounts: .uncounted,
                labels: HybridStack.labels
            ) { announce in
                announce("filling the cache")
                let layers = try HybridLayers(instructionSet, on: pool)
                return stack(
                    [
                        (layers.mamba2(tokens: batch, sequences: batch), 1), (layers.mlp(tokens: batch), 1),
                        (layers.projections(tokens: batch), 1), (try layers.step(context, batch: batch), 1),
                    ], preparation: ColdCaches(instructionSet, pool).empty, tokens: batch)
            }
        }
        return ([prompt] + steps).map { group in
            var group = group
            group.rounds = isQuick ? nil : 5
            return group
        }
    }

    /// The rows of two stacks, from the times of Mamba-2, an MLP, and attention's projections and products.
    private func stack(
        _ parts: [(body: () -> Void, scale: Double)], preparation: (() -> Void)?, tokens: Int
    ) -> [Variant] {
        var variants = parts.map { part in
            var variant = Variant(
                isa: instructionSet.name, threads: pool.threads, body: part.body, isHidden: true, verify: { nil })
            variant.preparation = preparation
            return variant
        }
        let pattern = Self.hybridPattern
        let (recurrent, attending) = (pattern.count(of: .mamba2), pattern.count(of: .attention))
        for (label, mamba2, attention) in [
            (HybridStack.labels[0], 0, recurrent + attending), (HybridStack.labels[1], recurrent, attending),
        ] {
            let counts = [mamba2, pattern.count(of: .mlp), attention, attention]
            var row = Variant(isa: instructionSet.name, threads: pool.threads, verify: { nil }, label: label)
            row.mixture = zip(counts, parts).enumerated().filter { $0.element.0 > 0 }.map { index, item in
                (index, Double(item.0) * item.1.scale)
            }
            row.tokensPerCall = tokens
            if mamba2 > 0 { row.baseline = (variants.count - 1, HybridStack.labels[0]) }
            variants.append(row)
        }
        return variants
    }
}

enum HybridStack {
    static let labels = ["attention", "mamba2"]
}

/// One layer of each kind, with weights of 16 bits. Calls allocate what they return.
private final class HybridLayers {
    static let (hidden, inner, queryHeads, kvHeads, headDim) = (1024, 5376, 8, 2, 128)
    static let chunk = 1024

    private let pool: WorkerPool
    private let set: InstructionSet
    private let layer: Mamba2Layer
    private let (up, down, qkv, output): (FloatLinear, FloatLinear, FloatLinear, FloatLinear)
    private let activation: GatedActivation

    init(_ set: InstructionSet, on pool: WorkerPool) throws {
        (self.pool, self.set) = (pool, set)
        func linear(_ outFeatures: Int, _ inFeatures: Int) throws -> FloatLinear {
            try FloatLinear(
                weight: Tensor<Float>.normal([outFeatures, inFeatures], seed: 1, scale: 0.02).converted(to: Float16.self),
                instructionSet: set, on: pool)
        }
        let c = try Mamba2Configuration(heads: 32, headDim: 64, groups: 2, stateSize: 128)
        let tensors = Mamba2Tensors(
            convolutionWeight: try .normal([c.convolvedWidth, c.convolutionWidth], seed: 2, scale: 0.5),
            convolutionBias: try .normal([c.convolvedWidth], seed: 3, scale: 0.1),
            timeStepBias: try Tensor([c.heads]) { -6.9 + Float($0 % 16) / 16 * 4.6 },
            aLog: try Tensor([c.heads]) { Float($0) / Float(c.heads) * 2.77 }, skip: try Tensor([c.heads]) { _ in 1 },
            normWeight: try Tensor([c.innerWidth]) { _ in 1 })
        layer = try Mamba2Layer(
            mixer: Mamba2Mixer(tensors, c, instructionSet: set), input: linear(c.projectedWidth, Self.hidden),
            output: linear(Self.hidden, c.innerWidth))
        up = try linear(Self.inner, Self.hidden)
        down = try linear(Self.hidden, Self.inner)
        qkv = try linear((Self.queryHeads + 2 * Self.kvHeads) * Self.headDim, Self.hidden)
        output = try linear(Self.hidden, Self.queryHeads * Self.headDim)
        activation = try GatedActivation(.reluSquared, instructionSet: set)
    }

    /// Inputs of a call, in chunks.
    private func inputs(_ tokens: Int, _ width: Int) -> [Tensor<Float>] {
        stride(from: 0, to: tokens, by: Self.chunk).map {
            try! .normal([min(Self.chunk, tokens - $0), width], seed: UInt64($0) + 7)
        }
    }

    /// A prompt in chunks, or a step of several sequences.
    func mamba2(tokens: Int, sequences: Int) -> () -> Void {
        let states = try! Mamba2States(slots: sequences, layer.configuration)
        let chunks = inputs(tokens, Self.hidden)
        let batches = chunks.map { chunk in
            sequences > 1
                ? try! PackedSequences(stepOf: Array(0..<sequences)) : try! PackedSequences(lengths: [chunk.shape[0]])
        }
        return { [layer, pool] in
            for (chunk, batch) in zip(chunks, batches) { _ = try! layer(chunk, batch: batch, states: states, on: pool) }
        }
    }

    func mlp(tokens: Int) -> () -> Void {
        let chunks = inputs(tokens, Self.hidden)
        return { [self] in
            for chunk in chunks {
                let wide = try! up(chunk, on: pool)
                var inner = try! Tensor<Float>(zeros: wide.shape)
                try! activation.run(wide.matrixView(), into: inner.mutableMatrixView(), on: pool)
                _ = try! down(inner, on: pool)
            }
        }
    }

    /// The projections before and behind attention.
    func projections(tokens: Int) -> () -> Void {
        let chunks = inputs(tokens, Self.hidden)
        let attended = inputs(tokens, Self.queryHeads * Self.headDim)
        return { [self] in
            for (chunk, rows) in zip(chunks, attended) {
                _ = try! qkv(chunk, on: pool)
                _ = try! output(rows, on: pool)
            }
        }
    }

    /// Dense causal attention over a whole prompt, in a quarter of its heads: those of half a group of queries.
    func prompt(_ tokens: Int) throws -> (body: () -> Void, scale: Double) {
        let heads = 2
        let shape = try AttentionShape(
            queryLength: tokens, keyLength: tokens, queryHeads: heads, kvHeads: 1, headDim: Self.headDim)
        let query = try Tensor<Float>.normal([heads, tokens, Self.headDim], seed: 1)
        let key = try Tensor<Float>.normal([1, tokens, Self.headDim], seed: 2)
        let value = try Tensor<Float>.normal([1, tokens, Self.headDim], seed: 3)
        let plan = try DenseAttention(shape, mask: .causal, instructionSet: set)
        let output = AttentionOutput(shape)
        return ({ [pool] in output.compute(plan, query, key, value, on: pool) }, Double(Self.queryHeads / heads))
    }

    /// A step over a cache in half precision of sequences that share nothing.
    func step(_ tokens: Int, batch: Int) throws -> () -> Void {
        let pageSize = 64
        let configuration = try KVCacheConfiguration(
            kvHeads: Self.kvHeads, headDim: Self.headDim, pageSize: pageSize, pageCapacity: batch * (tokens / pageSize + 1),
            format: .float16)
        let cache = try PagedKVCache(configuration, instructionSet: set)
        let rows = try Tensor<Float>.normal([Self.kvHeads, 1024, Self.headDim], seed: 4)
        let sequences = (0..<batch).map { _ in cache.makeSequence() }
        for sequence in sequences {
            for _ in 0..<tokens / 1024 { try cache.append(key: rows, value: rows, to: sequence, on: pool) }
        }
        let plan = try PagedAttention(queryHeads: Self.queryHeads, configuration: configuration, instructionSet: set)
        let query = try Tensor<Float>.normal([Self.queryHeads, batch, Self.headDim], seed: 5)
        return { [pool] in _ = try! plan(query: query, cache: cache, sequences: sequences, on: pool) }
    }
}
