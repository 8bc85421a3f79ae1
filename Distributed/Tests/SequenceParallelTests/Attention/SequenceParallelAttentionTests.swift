import SequenceParallel
import SparseKernelsReference
import Testing

/// Attention on ranks against the oracle over the whole sequence.
@Suite("Sequence-parallel attention")
struct SequenceParallelAttentionTests {
    /// Every (Ulysses, ring) of up to 8 ranks.
    static let grids = (1...8).flatMap { ranks in
        (1...ranks).filter { ranks % $0 == 0 }.map { (ulysses: $0, ring: ranks / $0) }
    }

    @Test("equals dense attention on 1 to 8 ranks, for every grid", arguments: grids.indices)
    func grid(_ index: Int) throws {
        let (ulysses, ring) = Self.grids[index]
        let ranks = ulysses * ring
        // Key/value heads that divide, and those that are copied.
        let heads = [(2 * ulysses, 2 * ulysses), (2 * ulysses, ulysses), (ulysses, 1), (2 * ulysses, 2 * ulysses)]
        let masks: [AttentionMask] = [.causal, .full, .causal(window: 11), .window(left: 9, right: 4)]
        for (turn, mask) in masks.enumerated() {
            let (queryHeads, kvHeads) = heads[(turn + index) % heads.count]
            let length = [41, 48, 37, 53][(turn + index) % 4]
            let scene = try AttentionScene<Float>(
                length: length, queryHeads: queryHeads, kvHeads: kvHeads, headDim: 8, valueDim: turn == 1 ? 5 : 8,
                seed: UInt64(100 * index + turn))
            let shards =
                switch turn {
                case 0: try TokenShards.zigzag(length: length, ulysses: ulysses, ring: ring)
                case 1: try TokenShards.contiguous(length: length, ranks: ranks)
                default: try TokenShards.random(length: length, ranks: ranks, pieces: 2 * ranks, seed: UInt64(index))
                }
            let options = AttentionScene<Float>.Options(
                mask: mask, ulysses: ulysses, sliceRows: turn % 2 == 0 ? nil : 7,
                level: InstructionSet.available[index % InstructionSet.available.count])
            let result = try scene.attend(shards, options)
            try scene.expectMatch(
                result.state, options, merges: ring * ulysses - 1,
                "\(ulysses) × \(ring), \(queryHeads)/\(kvHeads) heads, mask \(turn)")
        }
    }

    @Test("large scores, caps, scales and sinks", arguments: InstructionSet.available)
    func modifiers(_ level: InstructionSet) throws {
        let scene = try AttentionScene<Float>(length: 39, queryHeads: 4, kvHeads: 2, seed: 7, scale: 6)
        let shards = try TokenShards.zigzag(length: 39, ulysses: 2, ring: 2)
        for modifiers in [
            ScoreModifiers(), ScoreModifiers(softmaxScale: 0.7, logitsSoftCap: 5),
            ScoreModifiers(sinkLogits: [0.5, -2, 3, -.infinity]),
        ] {
            let options = AttentionScene<Float>.Options(modifiers: modifiers, ulysses: 2, level: level)
            try scene.expectMatch(try scene.attend(shards, options).state, options, merges: 3, "\(level), \(modifiers)")
        }
    }

    private func expectRounded<Element: AttentionElement>(_: Element.Type) throws {
        let scene = try AttentionScene<Element>(length: 43, queryHeads: 6, kvHeads: 3, headDim: 8, valueDim: 7, seed: 5)
        let options = AttentionScene<Element>.Options(ulysses: 3, sliceRows: 9)
        let shards = try TokenShards.zigzag(length: 43, ulysses: 3, ring: 2)
        // Keys and queries of 16 bits, output in Float: the bound of exact operands.
        let exact = try scene.attend(shards, options).state
        try scene.expectMatch(exact, options, merges: 5, "\(Element.self)")
        // Output of 16 bits is that output, rounded once. Tokens lie behind each other, with gaps.
        let rounded = try LocalCommunicator.run(ranks: 6) { (ranks) throws(SparseKernelsError) in
            let attention = try SequenceParallelAttention(
                shards, queryHeads: 6, kvHeads: 3, headDim: 8, valueDim: 7, mask: .causal, ulysses: 3, sliceRows: 9, on: ranks)
            let tokens = shards.positions(of: ranks.rank)
            let (q, k, v) = (
                try scene.query.tokens(tokens), try scene.key.tokens(tokens), try scene.value.tokens(tokens)
            )
            var output = try Tensor<Element>(zeros: [tokens.count, 6, 9])
            let geometry = try TensorGeometry(
                heads: 6, tokens: tokens.count, channels: 7, headStride: 9, tokenStride: 54)
            try attention.run(
                query: q.view(), key: k.view(), value: v.view(),
                output: MutableTensorView(output.mutableSpan, geometry: geometry), on: .serial)
            return output
        }
        for rank in 0..<6 {
            for (row, token) in shards.positions(of: rank).enumerated() {
                for head in 0..<6 {
                    for channel in 0..<7 {
                        let expected = exact.output[head, token, channel]
                        #expect(rounded[rank][row, head, channel].floatValue == Element(expected).floatValue)
                    }
                    #expect(rounded[rank][row, head, 7].floatValue == 0)
                }
            }
        }
    }

    @Test("elements of 16 bits travel as they are")
    func elementTypes() throws {
        try expectRounded(BFloat16.self)
        #if !(os(macOS) && arch(x86_64))
            try expectRounded(Float16.self)
        #endif
    }

    @Test("one rank gives the bits of dense attention", arguments: InstructionSet.available)
    func oneRank(_ level: InstructionSet) throws {
        let scene = try AttentionScene<Float>(length: 131, queryHeads: 4, kvHeads: 2, headDim: 16, seed: 3)
        for mask in [AttentionMask.causal, .full, .causal(window: 20)] {
            let options = AttentionScene<Float>.Options(mask: mask, level: level)
            let result = try scene.attend(.contiguous(length: 131, ranks: 1), options)
            let dense = try DenseAttention(scene.shape, mask: mask, instructionSet: level)(
                query: scene.query, key: scene.key, value: scene.value)
            #expect(result.state.bits == dense.bits)
            #expect(result.statistics[0].sentBytes == 0)
            #expect(try result.visiblePairs == [DenseAttention(scene.shape, mask: mask).visiblePairs])
        }
    }

    @Test("rows of a cache are read in place on one rank, and refused before any message on several")
    func cachedRows() throws {
        let scene = try AttentionScene<Float>(length: 12, queryHeads: 2, kvHeads: 1)
        @Sendable func attend(_ ranks: LocalCommunicator) throws(SparseKernelsError) -> Tensor<Float> {
            let shards = try TokenShards.contiguous(length: 12, ranks: ranks.count)
            let tokens = shards.positions(of: ranks.rank)
            let (query, key, value) = (
                try scene.query.tokens(tokens), try scene.key.tokens(tokens), try scene.value.tokens(tokens)
            )
            let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 1, headDim: 8, pageSize: 16, pageCapacity: 4))
            let sequence = cache.makeSequence()
            try cache.append(key: key, value: value, to: sequence, on: .serial)
            let rows = try cache.rows(of: sequence)
            let attention = try SequenceParallelAttention(
                shards, queryHeads: 2, kvHeads: 1, headDim: 8, mask: .causal, on: ranks)
            var output = try Tensor<Float>(zeros: [2, tokens.count, 8])
            try attention.run(
                query: query.view(), key: rows.key, value: rows.value, output: output.mutableView(), on: .serial)
            return output
        }
        let expected = try scene.attend(.contiguous(length: 12, ranks: 1), .init()).state.output
        // The cache keeps rows in half precision.
        for (actual, value) in zip(try attend(.alone()).elements, expected.elements) { #expect(abs(actual - value) < 0.02) }
        let error = #expect(throws: SparseKernelsError.self) {
            try LocalCommunicator.run(ranks: 2, timeLimit: 20) { (ranks) throws(SparseKernelsError) in try attend(ranks) }
        }
        #expect(error?.code == .invalidElementType && error?.argument == "key")
    }

    @Test("a plan runs again with other operands, and without LSE")
    func again() throws {
        let shards = try TokenShards.zigzag(length: 50, ulysses: 2, ring: 2)
        let scenes = try (0..<3).map {
            try AttentionScene<Float>(length: 50, queryHeads: 4, kvHeads: 1, seed: UInt64(10 * $0 + 1))
        }
        let outputs = try LocalCommunicator.run(ranks: 4) { (ranks) throws(SparseKernelsError) in
            let attention = try SequenceParallelAttention(
                shards, queryHeads: 4, kvHeads: 1, headDim: 8, mask: .causal, ulysses: 2, on: ranks)
            let tokens = shards.positions(of: ranks.rank)
            var outputs: [Tensor<Float>] = []
            for scene in scenes {
                let (q, k, v) = (
                    try scene.query.tokens(tokens), try scene.key.tokens(tokens), try scene.value.tokens(tokens)
                )
                var output = try Tensor<Float>(zeros: [4, tokens.count, 8])
                try attention.run(query: q.view(), key: k.view(), value: v.view(), output: output.mutableView(), on: .serial)
                outputs.append(output)
            }
            return outputs
        }
        for (index, scene) in scenes.enumerated() {
            let expected = try scene.attend(shards, .init(ulysses: 2)).state.output
            for rank in 0..<4 {
                #expect(try outputs[rank][index].elements == expected.tokens(shards.positions(of: rank)).elements)
            }
        }
    }

    @Test("sequences of no or few tokens")
    func fewTokens() throws {
        for length in [0, 1, 3] {
            let scene = try AttentionScene<Float>(length: length, queryHeads: 2, kvHeads: 1)
            for shards in [
                try TokenShards.contiguous(length: length, ranks: 4), try .zigzag(length: length, ulysses: 2, ring: 2),
            ] {
                for mask in [AttentionMask.causal, .full] {
                    let options = AttentionScene<Float>.Options(mask: mask, ulysses: 2)
                    try scene.expectMatch(try scene.attend(shards, options).state, options, merges: 3, "\(length) tokens")
                }
            }
        }
    }
}
