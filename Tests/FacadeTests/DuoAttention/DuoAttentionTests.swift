import DuoAttention
import SparseKernelsReference
import TestSupport
import Testing

@Suite("DuoAttention")
struct DuoAttentionTests {
    // MARK: - Gates

    @Test("the released file format is read, clipped to 0…1")
    func tsv() throws {
        let text = "1.000000000000000000e+00\t2.5e-01\t-3.0e-01\n\n# a comment\n 0.5\t1.25\t.125 # end\r\n"
        let gates = try DuoAttentionGates(tsv: text)
        #expect(gates.layers == 2 && gates.kvHeads == 3)
        #expect(gates.values == [1, 0.25, 0, 0.5, 1, 0.125])
        #expect(gates[1, 2] == 0.125)
        #expect(try DuoAttentionGates(tsv: "0.5").values == [0.5])
    }

    @Test(
        "hostile files are errors that name the line",
        arguments: [
            ("", "tsv"), ("\n \n#x", "tsv"), ("1\t2\n1\n", "tsv, line 2"), ("1\n2\t3", "tsv, line 2"),
            ("1\t\t2", "tsv, line 1, value 2"), ("0.1\nnan", "tsv, line 2, value 1"), ("inf", "tsv, line 1, value 1"),
            ("1\n\n0x1p3", "tsv, line 3, value 1"), ("1e999", "tsv, line 1, value 1"), ("1,2", "tsv, line 1, value 1"),
            ("1 2", "tsv, line 1, value 1"), ("\u{0}", "tsv, line 1, value 1"), ("½", "tsv, line 1, value 1"),
            ("1e", "tsv, line 1, value 1"), (String(repeating: "9", count: 100_000), "tsv, line 1, value 1"),
        ])
    func hostileTSV(_ text: String, _ argument: String) {
        let error = #expect(throws: SparseKernelsError.self) { try DuoAttentionGates(tsv: text) }
        #expect(error?.code == .malformedFile && error?.argument == argument)
        #expect((error?.actual.count ?? 0) < 50)
    }

    /// The rule in numpy for distinct gates: `alpha >= quantile(alpha, sparsity)` with linear interpolation.
    @Test("different gates are split at the interpolated quantile", arguments: [0, 0.1, 0.25, 0.5, 0.6, 0.75, 0.9, 1])
    func quantile(_ sparsity: Double) throws {
        for count in [1, 2, 3, 7, 16] {
            var generator = SplitMix64(seed: UInt64(count))
            let values = (0..<count).map { _ in Double(generator.uniform()) }
            let sorted = values.sorted()
            let position = sparsity * Double(count - 1)
            let (low, high) = (Int(position.rounded(.down)), Int(position.rounded(.up)))
            let threshold = sorted[low] + (sorted[high] - sorted[low]) * (position - Double(low))
            let expected = values.map { sparsity == 0 || (sparsity < 1 && $0 >= threshold) }
            let gates = try DuoAttentionGates(layers: 1, kvHeads: count, values: values)
            let heads = try gates.heads(sparsity: sparsity)
            #expect(heads.isFull == expected, "\(count)")
            #expect(heads.sparsity == Double(expected.count { !$0 }) / Double(count))
        }
    }

    @Test("equal gates are told apart by position, or by noise of the caller's generator")
    func ties() throws {
        let gates = try DuoAttentionGates(layers: 2, kvHeads: 4, values: [1, 1, 1, 1, 0, 1, 1, 0])
        #expect(try gates.heads(sparsity: 0.5).isFull == [true, true, true, true, false, false, false, false])
        #expect(try gates.heads(sparsity: 0.25)[1] == [false, true, true, false])
        #expect(try gates.heads(threshold: 0.5).isFull == gates.values.map { $0 == 1 })
        for sparsity in [0, 0.5, 1] {
            var (first, second) = (SplitMix64(seed: 5), SplitMix64(seed: 5))
            let heads = try gates.heads(sparsity: sparsity, noise: &first)
            #expect(heads == (try gates.heads(sparsity: sparsity, noise: &second)))
            #expect(heads.sparsity == sparsity)
            // Noise only decides between equal gates.
            #expect(sparsity == 0 || (!heads.isFull[4] && !heads.isFull[7]))
        }
    }

    @Test("bad gates and rules are errors that name them")
    func gateErrors() throws {
        expectError(.invalidShape, "layers") { _ = try DuoAttentionGates(layers: 0, kvHeads: 1, values: []) }
        expectError(.invalidShape, "values") { _ = try DuoAttentionGates(layers: 2, kvHeads: 2, values: [1, 2, 3]) }
        expectError(.invalidShape, "values") { _ = try DuoAttentionGates(layers: .max, kvHeads: 2, values: []) }
        expectError(.invalidArgument, "values[1]") { _ = try DuoAttentionGates(layers: 1, kvHeads: 2, values: [1, .nan]) }
        expectError(.invalidShape, "isFull") { _ = try DuoAttentionHeads(layers: 1, kvHeads: 2, isFull: [true]) }
        expectError(.invalidShape, "kvHeads") { _ = try DuoAttentionHeads(layers: 1, kvHeads: 0, isFull: []) }
        let gates = try DuoAttentionGates(layers: 1, kvHeads: 2, values: [0, 1])
        for sparsity in [-0.1, 1.1, .nan] {
            expectError(.invalidArgument, "sparsity") { _ = try gates.heads(sparsity: sparsity) }
        }
        expectError(.invalidArgument, "threshold") { _ = try gates.heads(threshold: .nan) }
    }

    // MARK: - Attention

    static let kvHeads = [true, false]

    static func operands(_ shape: AttentionShape) throws -> (query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>) {
        try (
            .normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 1),
            .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 2),
            .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 3)
        )
    }

    /// Compares with the oracle. `sees` is the rule for streaming heads, from the positions of query and key.
    static func expectMatches(
        _ attention: DuoAttentionPrefill, sourceLocation: SourceLocation = #_sourceLocation,
        sees: (_ position: Int, _ key: Int) -> Bool
    ) throws {
        let shape = attention.shape
        let (query, key, value) = try operands(shape)
        let state = try attention(query: query, key: key, value: value)
        let reference = ReferenceAttention(shape, mask: .causal)
        var pairs = 0
        for head in 0..<shape.queryHeads {
            let isFull = attention.isFull[head / shape.queryHeadsPerKVHead]
            for token in 0..<shape.queryLength {
                let position = token + shape.keyLength - shape.queryLength
                let row = try reference.row(
                    head: head, token: token, query: query.view(), key: key.view(), value: value.view(),
                    hides: { !isFull && !sees(position, $0) })
                pairs += row.visibleKeys
                let bound = AttentionErrorBound(row, headDim: shape.headDim)
                let index = head * shape.queryLength + token
                #expect(
                    abs(Double(state.logSumExp[flat: index]) - row.logSumExp) <= bound.logSumExp, sourceLocation: sourceLocation
                )
                for (channel, expected) in row.output.enumerated() {
                    let actual = Double(state.output[flat: index * shape.headDim + channel])
                    #expect(abs(actual - expected) <= bound.output, sourceLocation: sourceLocation)
                }
            }
        }
        #expect(attention.attention.visiblePairs == pairs, sourceLocation: sourceLocation)
    }

    static let lengths = [(60, 60), (1, 60), (17, 60), (5, 9), (1, 1), (60, 61)]

    @Test("streaming heads see the sink and the local tokens, whatever the chunk", arguments: lengths, [0, 3, 8, 100])
    func tokens(_ lengths: (Int, Int), _ sink: Int) throws {
        let shape = try AttentionShape(
            queryLength: lengths.0, keyLength: lengths.1, queryHeads: 4, kvHeads: 2, headDim: 8)
        for local in [1, 6, 100] {
            let attention = try DuoAttentionPrefill(shape, heads: Self.kvHeads, sinkTokens: sink, localTokens: local)
            try Self.expectMatches(attention) { $1 < sink || $0 - $1 < local }
        }
    }

    @Test("the mask of the training is in whole blocks", arguments: lengths, [0, 3, 8, 100])
    func blocks(_ lengths: (Int, Int), _ sink: Int) throws {
        let shape = try AttentionShape(
            queryLength: lengths.0, keyLength: lengths.1, queryHeads: 4, kvHeads: 2, headDim: 8)
        let (size, local) = (4, 7)
        let attention = try DuoAttentionPrefill(
            shape, heads: Self.kvHeads, sinkTokens: sink, localTokens: local, window: .blocks(size))
        let offset = lengths.1 - lengths.0
        try Self.expectMatches(attention) { position, key in
            // The two blocks that end with block ⌈offset / size⌉ + (block of the query).
            let last = (offset + size - 1) / size + (position - offset) / size
            return key / size < (sink + size - 1) / size || key / size > last - 2
        }
    }

    @Test("a chunk sees the cache of the released code, and itself", arguments: lengths, [0, 3, 8, 100])
    func cachedChunk(_ lengths: (Int, Int), _ sink: Int) throws {
        let shape = try AttentionShape(
            queryLength: lengths.0, keyLength: lengths.1, queryHeads: 4, kvHeads: 2, headDim: 8)
        let past = lengths.1 - lengths.0
        for local in [1, 6, 100] {
            let attention = try DuoAttentionPrefill(
                shape, heads: Self.kvHeads, sinkTokens: sink, localTokens: local, window: .cachedChunk)
            try Self.expectMatches(attention) { $1 < sink || $1 >= past - local }
        }
    }

    @Test("attention over a packed cache and the chunk is the same as over the whole sequence")
    func packedCache() throws {
        let (past, chunk) = (50, 9)
        let kept = DuoAttentionPrefill.cachedKeys(past: past, sinkTokens: 4, localTokens: 10)
        #expect(kept == [0..<4, 40..<50])
        let shape = try AttentionShape(queryLength: chunk, keyLength: past + chunk, queryHeads: 1, kvHeads: 1, headDim: 8)
        let (query, key, value) = try Self.operands(shape)
        let tokens = kept.flatMap { Array($0) } + (past..<past + chunk)
        func packed(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            try Tensor([1, tokens.count, 8]) { tensor[flat: tokens[$0 / 8] * 8 + $0 % 8] }
        }
        let whole = try DuoAttentionPrefill(
            shape, heads: [false], sinkTokens: 4, localTokens: 10, window: .cachedChunk)(query: query, key: key, value: value)
        let packedShape = try AttentionShape(
            queryLength: chunk, keyLength: tokens.count, queryHeads: 1, kvHeads: 1, headDim: 8)
        let (keys, values) = (try packed(key), try packed(value))
        let dense = try DenseAttention(packedShape, mask: .causal)(query: query, key: keys, value: values)
        // Both are within the bound of the same exact result.
        let reference = ReferenceAttention(packedShape, mask: .causal)
        for token in 0..<chunk {
            let row = try reference.row(
                head: 0, token: token, query: query.view(), key: keys.view(), value: values.view())
            let bound = AttentionErrorBound(row, headDim: 8).output
            for index in token * 8..<(token + 1) * 8 {
                #expect(abs(Double(whole.output[flat: index]) - Double(dense.output[flat: index])) <= 2 * bound)
            }
        }
    }

    @Test("the cache holds everything until it is full")
    func cachedKeys() {
        func kept(_ past: Int, _ sink: Int, _ local: Int) -> [Range<Int>] {
            DuoAttentionPrefill.cachedKeys(past: past, sinkTokens: sink, localTokens: local)
        }
        #expect(kept(0, 4, 10) == [] && kept(3, 4, 10) == [0..<3] && kept(14, 4, 10) == [0..<14])
        #expect(kept(15, 4, 10) == [0..<4, 5..<15] && kept(15, 0, 10) == [5..<15] && kept(15, .max, .max) == [0..<15])
        #expect(DuoAttentionPrefill.cachedKeys(past: 1000) == [0..<64, 744..<1000])
    }

    @Test("bad options are errors that name them")
    func badInput() throws {
        let shape = try AttentionShape(queryLength: 8, keyLength: 8, queryHeads: 4, kvHeads: 2, headDim: 8)
        let heads = Self.kvHeads
        expectError(.invalidShape, "heads") { _ = try DuoAttentionPrefill(shape, heads: [true, false, true, false]) }
        expectError(.invalidArgument, "sinkTokens") { _ = try DuoAttentionPrefill(shape, heads: heads, sinkTokens: -1) }
        expectError(.invalidArgument, "localTokens") { _ = try DuoAttentionPrefill(shape, heads: heads, localTokens: 0) }
        expectError(.invalidArgument, "window.blocks") { _ = try DuoAttentionPrefill(shape, heads: heads, window: .blocks(0)) }
        let longer = try AttentionShape(queryLength: 9, keyLength: 8, queryHeads: 4, kvHeads: 2, headDim: 8)
        for window in [DuoAttentionPrefill.Window.tokens, .blocks(4), .cachedChunk] {
            #expect(throws: Never.self) { try DuoAttentionPrefill(longer, heads: heads, window: window) }
        }
        let attention = try DuoAttentionPrefill(
            shape, heads: DuoAttentionHeads(layers: 1, kvHeads: 2, isFull: heads)[0], sinkTokens: .max, localTokens: .max)
        #expect(attention.isFull == heads)
        let error = #expect(throws: SparseKernelsError.self) {
            let (query, key, _) = try Self.operands(shape)
            _ = try attention(query: query, key: key, value: query)
        }
        #expect(error?.code == .invalidShape && error?.argument == "value")
    }
}
