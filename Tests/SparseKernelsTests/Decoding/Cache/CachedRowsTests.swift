import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Attention, scoring and selection over rows of a cache have the bits of the same calls over copies of its keys and values.
@Suite("Cached rows")
struct CachedRowsTests {
    /// A sequence whose pages lie in no order, with another one between them.
    struct Fixture {
        let cache: PagedKVCache
        let sequence: PagedKVCache.SequenceID
        let key: Tensor<Float>
        let value: Tensor<Float>

        init(
            _ format: KVFormat, value valueFormat: KVFormat? = nil, quantization: KVQuantization = .minimum, tokens: Int,
            kvHeads: Int = 2, headDim: Int = 20, valueDim: Int? = 13, pageSize: Int = 16, layers: Int = 1,
            instructionSet: InstructionSet? = nil
        ) throws {
            cache = try PagedKVCache(
                KVCacheConfiguration(
                    layers: layers, kvHeads: kvHeads, headDim: headDim, valueDim: valueDim, pageSize: pageSize,
                    pageCapacity: 2 * (tokens / pageSize + 2), format: format, valueFormat: valueFormat,
                    quantization: quantization), instructionSet: instructionSet)
            sequence = cache.makeSequence()
            let other = cache.makeSequence()
            let shape = cache.configuration
            var (position, seed) = (0, UInt64(40))
            while position < tokens {
                let count = min(tokens - position, 7 + position % 31)
                for name in [sequence, other] {
                    for layer in 0..<layers {
                        try cache.append(
                            key: Tensor<Float>.normal([kvHeads, count, headDim], seed: seed),
                            value: Tensor<Float>.normal([kvHeads, count, shape.valueDim], seed: seed + 1), to: name,
                            layer: layer)
                        seed += 2
                    }
                }
                position += count
            }
            key = try cache.keys(of: sequence, layer: layers - 1)
            value = try cache.values(of: sequence, layer: layers - 1)
        }
    }

    private func expectEqual(
        _ attention: some AttentionOperator, _ fixture: Fixture, layer: Int = 0, _ label: String,
        on pool: WorkerPool = .shared
    ) throws {
        let shape = attention.shape
        let query = try Tensor<Float>.normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 9)
        let expected = try attend(attention, query: query, key: fixture.key, value: fixture.value)
        let cached = try fixture.cache.rows(of: fixture.sequence, layer: layer)
        var output = try Tensor<Float>(zeros: expected.output.shape)
        var logSumExp = try Tensor<Float>(zeros: expected.logSumExp.shape)
        try attention.run(
            query: query.view(), key: cached.key, value: cached.value, output: output.mutableView(),
            logSumExp: logSumExp.mutableSpan, on: pool)
        #expect(output.bits == expected.output.bits && logSumExp.bits == expected.logSumExp.bits, "\(label)")
    }

    @Test(
        "dense attention of a chunk", arguments: InstructionSet.available,
        [
            (KVFormat.float32, KVFormat.float32, KVQuantization.minimum), (.float16, .float16, .minimum),
            (.bfloat16, .float32, .minimum), (.int8, .int8, .minimum), (.int4, .int4, .minimum), (.int8, .int4, .zeroPoint),
            (.int4, .int8, .zeroPoint), (.float16, .int4, .minimum),
        ])
    func dense(_ set: InstructionSet, _ formats: (KVFormat, KVFormat, KVQuantization)) throws {
        for (headDim, valueDim, pageSize) in [(20, 13, 16), (64, 64, 64), (7, 33, 32)] {
            let fixture = try Fixture(
                formats.0, value: formats.1, quantization: formats.2, tokens: 305, headDim: headDim, valueDim: valueDim,
                pageSize: pageSize, layers: 2, instructionSet: set)
            for queries in [1, 50, 305] {
                let shape = try AttentionShape(
                    queryLength: queries, keyLength: 305, queryHeads: 4, kvHeads: 2, headDim: headDim, valueDim: valueDim)
                for threads in [1, 2, 7] {
                    try expectEqual(
                        DenseAttention(shape, mask: .causal, instructionSet: set), fixture, layer: 1,
                        "\(formats), \(headDim), \(queries) queries, \(threads) threads", on: WorkerPool(threads: threads))
                }
            }
        }
    }

    @Test("sparse patterns of a chunk, single keys too", arguments: InstructionSet.available, KVFormat.allCases)
    func patterns(_ set: InstructionSet, _ format: KVFormat) throws {
        let fixture = try Fixture(format, tokens: 400, instructionSet: set)
        let shape = try AttentionShape(
            queryLength: 90, keyLength: 400, queryHeads: 2, kvHeads: 2, headDim: 20, valueDim: 13)
        let grid = try BlockGrid(shape, blockSize: 32, isCausal: true)
        let mask = try BlockMask(grid: grid, heads: 1) { _, row, column in (row + column) % 3 == 0 }
        let lines = VerticalSlashLines(keys: [3, 4, 100, 101, 250], distances: [0, 7, 64])
        let index = try VerticalSlashIndex(lines, queryLength: 90, keyLength: 400, blockSize: 32)
        for pattern in [
            .streaming(sink: 5, local: 60), .blockSparse(mask, head: 0),
            .band(AttentionBand(left: 40, right: 0, globalKeys: [2..<9])), .runs(index.keyRuns),
        ] as [HeadPattern] {
            try expectEqual(
                BlockSparseAttention(shape, heads: [pattern, .dense], isCausal: true, instructionSet: set), fixture,
                "\(set), \(format), \(pattern)")
        }
    }

    @Test("scores of blocks and lines", arguments: InstructionSet.available, KVFormat.allCases)
    func scores(_ set: InstructionSet, _ format: KVFormat) throws {
        let fixture = try Fixture(format, tokens: 300, headDim: 32, valueDim: 32, instructionSet: set)
        let shape = try AttentionShape(queryLength: 128, keyLength: 300, queryHeads: 4, kvHeads: 2, headDim: 32)
        let query = try Tensor<Float>.normal([4, 128, 32], seed: 3)
        let cached = try fixture.cache.rows(of: fixture.sequence)
        let grid = try BlockGrid(shape, blockSize: 64, isCausal: true)
        for precision in [ScoringPrecision.float32, .int6] {
            let scoring = try AntidiagonalScoring(
                shape, grid: grid, stride: 8, precision: precision, instructionSet: set)
            let expected = try scoring(query: query, key: fixture.key)
            let actual = try scoring.run(query: query.view(), key: cached.key)
            #expect(actual.values.bits == expected.values.bits, "\(set), \(format), \(precision)")
        }
        let pooling = try MeanPoolScoring(shape, grid: grid, instructionSet: set)
        #expect(
            try pooling(query: query.view(), key: cached.key).values.bits
                == pooling(query: query, key: fixture.key).values.bits)
    }

    @Test("chunks over a cache attend as one call over all tokens", arguments: InstructionSet.available)
    func chunks(_ set: InstructionSet) throws {
        let cache = try PagedKVCache(
            KVCacheConfiguration(kvHeads: 2, headDim: 16, pageSize: 16, pageCapacity: 40, format: .float32))
        let (query, key, value) = try (
            Tensor<Float>.normal([4, 500, 16], seed: 1), Tensor<Float>.normal([2, 500, 16], seed: 2),
            Tensor<Float>.normal([2, 500, 16], seed: 3)
        )
        let whole = try AttentionShape(queryLength: 500, keyLength: 500, queryHeads: 4, kvHeads: 2, headDim: 16)
        for pattern in [HeadPattern.dense, .streaming(sink: 9, local: 100)] {
            let rows = try referenceRows(
                ReferenceAttention(whole, mask: .causal), query: query, key: key, value: value,
                hides: { i, j in pattern == .dense ? false : j >= 9 && j <= i - 100 })
            let sequence = cache.makeSequence()
            var output = try Tensor<Float>(zeros: [4, 500, 16])
            var logSumExp = try Tensor<Float>(zeros: [4, 500])
            for chunk in [0..<130, 130..<131, 131..<131, 131..<400, 400..<500] {
                try cache.append(
                    key: key.view().tokens(chunk), value: value.view().tokens(chunk), to: sequence)
                let cached = try cache.rows(of: sequence)
                #expect(cached.tokens == chunk.upperBound)
                let shape = try AttentionShape(
                    queryLength: chunk.count, keyLength: cached.tokens, queryHeads: 4, kvHeads: 2, headDim: 16)
                let attention = try BlockSparseAttention(
                    shape, heads: Array(repeating: pattern, count: 4), isCausal: true, instructionSet: set)
                var part = try Tensor<Float>(zeros: [4, chunk.count, 16])
                var partLSE = try Tensor<Float>(zeros: [4, chunk.count])
                try attention.run(
                    query: query.view().tokens(chunk), key: cached.key, value: cached.value, output: part.mutableView(),
                    logSumExp: partLSE.mutableSpan)
                for head in 0..<4 {
                    for token in 0..<chunk.count {
                        for c in 0..<16 { output[head, chunk.lowerBound + token, c] = part[head, token, c] }
                        logSumExp[head, chunk.lowerBound + token] = partLSE[head, token]
                    }
                }
            }
            expectMatches(output, logSumExp, rows, headDim: 16, "\(set), \(pattern)")
            try cache.free(sequence)
        }
    }

    @Test("views of some tokens, and rows without a gap", arguments: InstructionSet.available)
    func parts(_ set: InstructionSet) throws {
        let fixture = try Fixture(.int8, tokens: 200, instructionSet: set)
        let query = try Tensor<Float>.normal([2, 10, 20], seed: 4)
        func run(_ key: TensorView<CachedElement>, _ value: TensorView<CachedElement>) throws -> [UInt32] {
            let shape = try AttentionShape(
                queryLength: 10, keyLength: key.tokens, queryHeads: 2, kvHeads: 2, headDim: 20, valueDim: 13)
            var output = try Tensor<Float>(zeros: [2, 10, 13])
            try DenseAttention(shape, instructionSet: set).run(
                query: query.view(), key: key, value: value, output: output.mutableView())
            return output.bits
        }
        func expected(_ tokens: [Int]) throws -> [UInt32] {
            let key = try Tensor<Float>([2, tokens.count, 20]) { index in
                fixture.key[index / (20 * tokens.count), tokens[index / 20 % tokens.count], index % 20]
            }
            let value = try Tensor<Float>([2, tokens.count, 13]) { index in
                fixture.value[index / (13 * tokens.count), tokens[index / 13 % tokens.count], index % 13]
            }
            let shape = try AttentionShape(
                queryLength: 10, keyLength: tokens.count, queryHeads: 2, kvHeads: 2, headDim: 20, valueDim: 13)
            return try DenseAttention(shape, instructionSet: set)(query: query, key: key, value: value).output.bits
        }
        let cached = try fixture.cache.rows(of: fixture.sequence)
        let part = 37..<155
        #expect(try run(cached.key.tokens(part), cached.value.tokens(part)) == expected(Array(part)))
        for gap in [0..<50, 33..<90, 64..<80, 150..<200, 20..<20] {
            let rows = try fixture.cache.rows(of: fixture.sequence, omitting: gap)
            #expect(rows.tokens == 200 - gap.count)
            #expect(
                try run(rows.key, rows.value) == expected((0..<200).filter { !gap.contains($0) }), "without \(gap)")
        }
        try fixture.cache.discard(fixture.sequence, tokens: 32..<160)
        let kept = try fixture.cache.rows(of: fixture.sequence, omitting: 32..<160)
        #expect(try run(kept.key, kept.value) == expected(Array(0..<32) + Array(160..<200)))
        expectError(.invalidArgument, "sequence") {
            _ = try fixture.cache.rows(of: fixture.sequence, omitting: 32..<150)
        }
    }

    @Test("errors name what is wrong, and calls that need memory refuse cached rows")
    func errors() throws {
        let fixture = try Fixture(.float16, tokens: 40)
        let cache = fixture.cache
        expectError(.invalidArgument, "layer") {
            _ = try cache.rows(of: fixture.sequence, layer: 1)
        }
        expectError(.invalidArgument, "gap") {
            _ = try cache.rows(of: fixture.sequence, omitting: 20..<41)
        }
        let freed = cache.makeSequence()
        #expect(try cache.rows(of: freed).tokens == 0)
        try cache.free(freed)
        expectError(.unknownSequence, "sequence") { _ = try cache.rows(of: freed) }
        let cached = try cache.rows(of: fixture.sequence)
        let target = cache.makeSequence()
        do throws(SparseKernelsError) {
            try cache.append(key: cached.key, value: cached.value, to: target)
            Issue.record("cached rows were appended")
        } catch {
            #expect(error.code == .invalidElementType && error.argument == "key")
        }
        #expect(try cache.length(of: target) == 0)
        let kmeans = try KMeans(heads: 2, points: 40, channels: 20, clusters: 3)
        do throws(SparseKernelsError) {
            _ = try kmeans.assign(cached.key, to: Tensor<Float>(zeros: [2, 3, 20]))
            Issue.record("cached rows were clustered")
        } catch {
            #expect(error.code == .invalidElementType)
        }
    }

    @Test("an empty sequence gives output 0 and LSE −∞")
    func empty() throws {
        let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 1, headDim: 8, pageCapacity: 1))
        let cached = try cache.rows(of: cache.makeSequence())
        let shape = try AttentionShape(queryLength: 2, keyLength: 0, queryHeads: 1, kvHeads: 1, headDim: 8)
        let query = try Tensor<Float>.normal([1, 2, 8], seed: 1)
        var (output, lse) = try (Tensor<Float>.normal([1, 2, 8], seed: 2), Tensor<Float>(zeros: [1, 2]))
        try DenseAttention(shape, mask: .causal).run(
            query: query.view(), key: cached.key, value: cached.value, output: output.mutableView(), logSumExp: lse.mutableSpan)
        #expect(output.elements.allSatisfy { $0 == 0 } && lse.elements.allSatisfy { $0 == -.infinity })
    }
}
