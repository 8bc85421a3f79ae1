import SpargeAttention
import SparseKernelsReference
import TestSupport
import Testing

@Suite("SpargeAttention")
struct SpargeAttentionTests {
    /// Tokens that are similar in recurring runs of 16, so that different blocks matter for different queries.
    static func tokens(_ shape: [Int], seed: UInt64) throws -> Tensor<Float> {
        let (length, channels) = (shape[1], shape[2])
        let noise = try Tensor<Float>.normal(shape, seed: seed)
        let topics = try Tensor<Float>.normal([8, channels], seed: 77)
        var generator = SplitMix64(seed: seed + 1)
        let topic = (0..<shape[0] * (length / 16 + 1)).map { _ in Int(generator.next() % 8) }
        return try Tensor(shape) { index in
            let (head, token) = (index / channels / length, index / channels % length)
            let direction = topics[flat: topic[head * (length / 16 + 1) + token / 16] * channels + index % channels]
            return noise[flat: index] / 2 + 1.5 * direction
        }
    }

    struct Operands {
        let shape: AttentionShape
        let query: Tensor<Float>
        let key: Tensor<Float>
        let value: Tensor<Float>

        init(queryLength: Int = 200, keyLength: Int = 200, queryHeads: Int = 4, kvHeads: Int = 2, headDim: Int = 16) throws {
            shape = try AttentionShape(
                queryLength: queryLength, keyLength: keyLength, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim)
            query = try SpargeAttentionTests.tokens([queryHeads, queryLength, headDim], seed: 1)
            key = try SpargeAttentionTests.tokens([kvHeads, keyLength, headDim], seed: 2)
            value = try .normal([kvHeads, keyLength, headDim], seed: 3)
        }
    }

    /// The error of block means is at most 20u of the largest element X (see the tests of self-similarity), so that of scores
    /// is at most 20u·X·(Σ|q̄| + Σ|k̄|)/√d ≤ ε = 40u·X²·√d. Decisions with margins above 4ε must equal the oracle's, and most
    /// have them. The error of similarities is below 4ε while unit rows come from rows longer than 1/(4X).
    static func expectMatchesOracle(_ operands: Operands, _ prefill: SpargeAttentionPrefill) throws {
        let shape = operands.shape
        let mask = try prefill.select(query: operands.query, key: operands.key)
        let largest = Double(max(operands.query.elements.map(abs).max() ?? 0, operands.key.elements.map(abs).max() ?? 0))
        let error = 40 * 0x1p-24 * largest * largest * Double(shape.headDim).squareRoot()
        var decided = 0
        for head in 0..<shape.queryHeads {
            let settings = prefill.heads[prefill.heads.count == 1 ? 0 : head]
            let oracle = ReferenceBlockPrediction(
                grid: prefill.grid,
                head: SimilaritySelection.Head(settings.rule, similarityThreshold: settings.similarityThreshold))
            let kvHead = head / shape.queryHeadsPerKVHead
            let mean = ReferenceBlockPrediction.tokenMean(try operands.key.view(), head: kvHead)
            let keys = ReferenceBlockPrediction.blocks(
                try operands.key.view(), head: kvHead, partition: prefill.grid.key,
                subtracting: prefill.configuration.smoothsKeys ? mean : nil)
            let queries = ReferenceBlockPrediction.blocks(
                try operands.query.view(), head: head, partition: prefill.grid.query)
            for row in 0..<prefill.grid.blockRows {
                let expected = oracle.row(row, query: queries[row], keys: keys)
                if min(expected.scoreMargin, expected.massMargin, expected.similarityMargin) <= 4 * error { continue }
                decided += 1
                #expect(mask.columns(head: head, row: row).map { Int($0) } == expected.columns, "head \(head) row \(row)")
            }
        }
        #expect(decided * 4 >= shape.queryHeads * prefill.grid.blockRows * 3)
    }

    @Test("masks agree with the oracle: causal, lengths that differ, ragged blocks, grouped heads", arguments: [false, true])
    func masks(_ isCausal: Bool) throws {
        for (queryLength, keyLength) in [(100, 100), (37, 90), (1, 60), (7, 7)] {
            let operands = try Operands(queryLength: queryLength, keyLength: keyLength, headDim: 8)
            for head in [
                SpargeAttentionHead.recommended, .cdf, .keepRatio(0.2),
                SpargeAttentionHead(.cdfThreshold(0.7), similarityThreshold: 0.3),
            ] {
                try Self.expectMatchesOracle(
                    operands,
                    SpargeAttentionPrefill(
                        operands.shape, .init(isCausal: isCausal, queryBlockSize: 16, keyBlockSize: 8), heads: [head]))
            }
            try Self.expectMatchesOracle(
                operands,
                SpargeAttentionPrefill(
                    operands.shape,
                    .init(isCausal: isCausal, queryBlockSize: 8, keyBlockSize: 16, smoothsKeys: false),
                    heads: [.recommended, .cdf, .keepRatio(1), .keepRatio(0.1)]))
        }
    }

    @Test("attention is exact over the kept blocks", arguments: InstructionSet.available)
    func attention(_ set: InstructionSet) throws {
        let operands = try Operands(queryLength: 90, keyLength: 130)
        let sparge = try SpargeAttentionPrefill(
            operands.shape, .init(isCausal: true, queryBlockSize: 16, keyBlockSize: 8, keepsFirstColumn: true),
            heads: [.keepRatio(0.3)], instructionSet: set)
        let result = try sparge(query: operands.query, key: operands.key, value: operands.value)
        #expect(result.mask.density < 0.7 && result.mask.heads == 4)
        let reference = ReferenceAttention(operands.shape, mask: .causal)
        for head in 0..<4 {
            for token in 0..<90 {
                #expect(result.mask[head, token / 16, 0])
                let row = try reference.row(
                    head: head, token: token, query: operands.query.view(), key: operands.key.view(),
                    value: operands.value.view(), hides: { !result.mask[head, token / 16, $0 / 8] })
                // 2⁻⁵⁰ for every skipped weight is far below the rounding errors in the bound.
                let bound = AttentionErrorBound(row, headDim: operands.shape.headDim)
                for (channel, expected) in row.output.enumerated() {
                    let actual = Double(result.state.output[flat: (head * 90 + token) * 16 + channel])
                    #expect(abs(actual - expected) <= bound.output)
                }
            }
        }
    }

    @Test("the defaults are the published ones, and thresholds convert from log2 to natural units")
    func defaults() throws {
        let shape = try AttentionShape(queryLength: 300, keyLength: 300, queryHeads: 2, kvHeads: 1, headDim: 64)
        let sparge = try SpargeAttentionPrefill(shape)
        #expect(sparge.grid.query.blockSize == 128 && sparge.grid.key.blockSize == 64 && !sparge.grid.isCausal)
        #expect(sparge.heads == [SpargeAttentionHead(.keepRatio(0.5), similarityThreshold: -0.1, pvSkipThreshold: 50)])
        #expect(SpargeAttentionHead.cdf == SpargeAttentionHead(.cdfThreshold(0.98), similarityThreshold: 0.6))
        let plan = try sparge.attention(over: BlockMask(grid: sparge.grid) { _, _, _ in true })
        #expect(plan.pvSkipThresholds == [Float(34.657_36), Float(34.657_36)])
        let mixed = try SpargeAttentionPrefill(shape, heads: [.dense, .recommended])
            .attention(over: BlockMask(grid: sparge.grid) { _, _, _ in true })
        #expect(mixed.pvSkipThresholds == [Float.infinity, Float(34.657_36)])
    }

    @Test("each head skips below its own threshold")
    func perHeadSkip() throws {
        let operands = try Operands(queryHeads: 2, kvHeads: 1)
        let mask = try BlockMask(grid: BlockGrid(operands.shape, blockSize: 32, isCausal: true)) { _, _, _ in true }
        let plan = try BlockSparseAttention(operands.shape, mask: mask)
        func run(_ plan: BlockSparseAttention) throws -> [Float] {
            try plan(query: operands.query, key: operands.key, value: operands.value).output.elements
        }
        let (exact, skipping) = (try run(plan), try run(plan.skippingPV(below: [0.5, .infinity])))
        let half = exact.count / 2
        #expect(exact[..<half] != skipping[..<half] && exact[half...] == skipping[half...])
        let both = try BlockSparseAttention(operands.shape, mask: mask, pvSkipThreshold: 0.5)
        #expect(try run(both)[..<half] == skipping[..<half])
        for (thresholds, code, argument) in [
            ([1], SparseKernelsError.Code.invalidShape, "pvSkipThresholds"),
            ([1, 0], .invalidArgument, "pvSkipThresholds[1]"), ([.nan, 1], .invalidArgument, "pvSkipThresholds[0]"),
        ] as [([Float], SparseKernelsError.Code, String)] {
            let error = #expect(throws: SparseKernelsError.self) { try plan.skippingPV(below: thresholds) }
            #expect(error?.code == code && error?.argument == argument)
        }
    }

    @Test("bad settings and operands are errors that name them")
    func badInput() throws {
        let operands = try Operands(queryLength: 40, keyLength: 40)
        expectError(.invalidShape, "heads") {
            _ = try SpargeAttentionPrefill(operands.shape, heads: [.cdf, .cdf])
        }
        for threshold: Float in [0, -1, .nan, .infinity] {
            expectError(.invalidArgument, "heads[0].pvSkipThreshold") {
                let head = SpargeAttentionHead(.keepRatio(1), similarityThreshold: 0, pvSkipThreshold: threshold)
                _ = try SpargeAttentionPrefill(operands.shape, heads: [head])
            }
        }
        expectError(.invalidArgument, "heads[0].keepRatio") {
            _ = try SpargeAttentionPrefill(operands.shape, heads: [.keepRatio(1.5)])
        }
        expectError(.invalidShape, "keyBlockSize") { _ = try SpargeAttentionPrefill(operands.shape, .init(keyBlockSize: 0)) }
        let longer = try AttentionShape(queryLength: 41, keyLength: 40, queryHeads: 4, kvHeads: 2, headDim: 16)
        #expect(throws: Never.self) { try SpargeAttentionPrefill(longer, isCausal: true) }
        let sparge = try SpargeAttentionPrefill(operands.shape)
        expectError(.invalidShape, "query") { _ = try sparge.select(query: operands.key, key: operands.key) }
        expectError(.invalidShape, "key") { _ = try sparge.select(query: operands.query, key: operands.query) }
        expectError(.invalidShape, "value") {
            _ = try sparge(query: operands.query, key: operands.key, value: operands.query)
        }
    }

    // MARK: - Tuner

    @Test("tuned heads meet the error on the sample and leave blocks out, the same on every run")
    func tuner() throws {
        let operands = try Operands(queryLength: 160, keyLength: 160, queryHeads: 2, kvHeads: 1)
        let sample = try SpargeAttentionTuner.Sample(query: operands.query, key: operands.key, value: operands.value)
        let tuner = try SpargeAttentionTuner(
            .init(isCausal: true, queryBlockSize: 16, keyBlockSize: 16), relativeL1: 0.2, pvRelativeL1: 0.25)
        var reports: [SpargeAttentionTuner.Progress] = []
        let tuned = try tuner([sample]) { reports.append($0) }
        #expect(tuned.count == 2)
        let again = try tuner([sample], on: .serial)
        #expect(tuned == again)
        #expect(reports.count == tuned.reduce(0) { $0 + $1.points.count })
        #expect(zip(reports, reports.dropFirst()).allSatisfy { $0.evaluations <= $1.evaluations })
        let last = try #require(reports.last)
        #expect(last.head == 1 && last.evaluations <= last.maximumEvaluations)
        #expect(last.maximumEvaluations == tuner.maximumEvaluations([sample]))

        let dense = try DenseAttention(operands.shape, mask: .causal)(
            query: operands.query, key: operands.key, value: operands.value
        ).output.elements
        for (head, result) in tuned.enumerated() {
            #expect(result.density < 0.9)
            // The winner's similarity threshold is that of one of its points, and each point met the error on the sample.
            for point in result.points {
                var heads = [SpargeAttentionHead](repeating: .dense, count: 2)
                heads[head] = point.settings
                let output = try SpargeAttentionPrefill(
                    operands.shape, .init(isCausal: true, queryBlockSize: 16, keyBlockSize: 16), heads: heads)(
                        query: operands.query, key: operands.key, value: operands.value
                    ).state.output.elements
                var (difference, magnitude) = (0.0, 0.0)
                for index in head * dense.count / 2..<(head + 1) * dense.count / 2 {
                    difference += Double(abs(output[index] - dense[index]))
                    magnitude += Double(abs(dense[index]))
                }
                #expect(difference < 0.25 * magnitude)
            }
        }
    }

    @Test("heads that nothing can be left out of become dense")
    func denseHead() throws {
        let query = try Tensor<Float>.normal([1, 64, 8], seed: 4, scale: 0.01)
        let value = try Tensor<Float>.normal([1, 64, 8], seed: 5)
        let sample = try SpargeAttentionTuner.Sample(query: query, key: query, value: value)
        let tuner = try SpargeAttentionTuner(
            .init(queryBlockSize: 8, keyBlockSize: 8), relativeL1: 1e-4, pvRelativeL1: nil)
        let tuned = try tuner([sample, sample])
        #expect(tuned.map(\.settings) == [.dense])
        #expect(tuned[0].points.map(\.sample) == [0, 1])
    }

    @Test("bad bounds and samples are errors that name them")
    func tunerErrors() throws {
        expectError(.invalidArgument, "relativeL1") { _ = try SpargeAttentionTuner(relativeL1: 0) }
        expectError(.invalidArgument, "pvRelativeL1") { _ = try SpargeAttentionTuner(relativeL1: 0.1, pvRelativeL1: 0.1) }
        expectError(.invalidArgument, "pvRelativeL1") { _ = try SpargeAttentionTuner(pvRelativeL1: .nan) }
        let tuner = try SpargeAttentionTuner()
        expectError(.invalidShape, "samples") { _ = try tuner([]) }
        let (small, large) = (try Tensor<Float>(zeros: [1, 4, 8]), try Tensor<Float>(zeros: [2, 4, 8]))
        expectError(.invalidShape, "samples[1]") {
            _ = try tuner([.init(query: small, key: small, value: small), .init(query: large, key: large, value: large)])
        }
        expectError(.invalidShape, "value") { _ = try SpargeAttentionTuner.Sample(query: large, key: small, value: large) }
    }
}
