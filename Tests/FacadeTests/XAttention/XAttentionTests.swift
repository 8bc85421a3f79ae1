import Foundation
import SparseKernelsReference
import TestSupport
import Testing
import XAttention

@Suite("XAttention")
struct XAttentionTests {
    struct Workload {
        let shape: AttentionShape
        let query: Tensor<Float>
        let key: Tensor<Float>
        let value: Tensor<Float>

        init(queryLength: Int, keyLength: Int, heads: Int = 2, kvHeads: Int = 1, headDim: Int = 16, seed: UInt64 = 1) throws {
            shape = try AttentionShape(
                queryLength: queryLength, keyLength: keyLength, queryHeads: heads, kvHeads: kvHeads, headDim: headDim)
            // Scaled such that some blocks have most of the mass.
            query = try .normal([heads, queryLength, headDim], seed: seed, scale: 2)
            key = try .normal([kvHeads, keyLength, headDim], seed: seed + 1, scale: 2)
            value = try .normal([kvHeads, keyLength, headDim], seed: seed + 2)
        }
    }

    // MARK: - Clean mode

    @Test(
        "keeps at least the threshold of the oracle's mass, and no block that it does not need",
        arguments: InstructionSet.available, [true, false])
    func coverage(_ set: InstructionSet, _ isCausal: Bool) throws {
        for (queries, keys) in [(1, 1), (3, 7), (96, 96), (100, 100), (37, 201), (64, 130)] {
            let work = try Workload(queryLength: queries, keyLength: keys)
            let threshold = 0.7
            let prefill = try XAttentionPrefill(
                work.shape, .init(stride: 4, blockSize: 16, isCausal: isCausal, precision: .float32), threshold: threshold,
                instructionSet: set)
            let mask = try prefill.select(query: work.query, key: work.key).mask
            let exact = try ReferenceAntidiagonalScoring(work.shape, grid: prefill.grid, stride: 4)(
                query: work.query.view(), key: work.key.view())
            let grid = prefill.grid
            for head in 0..<2 {
                for row in 0..<grid.blockRows {
                    let line = Array(
                        exact[
                            (head * grid.blockRows + row) * grid.blockColumns..<(head * grid.blockRows + row + 1)
                                * grid.blockColumns])
                    let total = line.reduce(0, +)
                    let kept = mask.columns(head: head, row: row).map { Int($0) }
                    let mass = kept.reduce(0) { $0 + line[$1] }
                    // The error of sums is at most 1e-4, as in the recorded cases, and so is that of the compared mass.
                    let slack = 1e-4 * Double(grid.blockColumns)
                    #expect(mass >= threshold * total - slack, "\(queries)×\(keys), \(head), \(row)")
                    let forced = isCausal ? Set(Array(grid.diagonalColumns(ofRow: row)) + [0]) : []
                    #expect(forced.isSubset(of: kept))
                    if let last = kept.filter({ !forced.contains($0) }).min(by: { line[$0] < line[$1] }) {
                        #expect(mass - line[last] < threshold * total + slack, "\(queries)×\(keys), \(head), \(row)")
                    }
                }
            }
        }
    }

    @Test(
        "is scoring, selection and block-sparse attention, one after the other", arguments: [ScoringPrecision.float32, .int6])
    func composition(_ precision: ScoringPrecision) throws {
        let work = try Workload(queryLength: 300, keyLength: 420, heads: 4, kvHeads: 2)
        let configuration = XAttentionConfiguration(stride: 8, blockSize: 32, precision: precision, keepsScores: true)
        let prefill = try XAttentionPrefill(work.shape, configuration, threshold: 0.8)
        let result = try prefill(query: work.query, key: work.key, value: work.value)
        let scores = try AntidiagonalScoring(work.shape, grid: prefill.grid, stride: 8, precision: precision)(
            query: work.query, key: work.key)
        #expect(result.scores == scores)
        #expect(prefill.scoredGrid == prefill.grid && prefill.precision == precision && prefill.configuration == configuration)
        let mask = try BlockSelection(.topP(0.8), sinkBlocks: 1, recentBlocks: 1)(scores)
        #expect(result.mask == mask && result.density == mask.density)
        let state = try BlockSparseAttention(work.shape, mask: mask)(query: work.query, key: work.key, value: work.value)
        #expect(result.state == state)
        let silent = try XAttentionPrefill(work.shape, .init(stride: 8, blockSize: 32, precision: precision), threshold: 0.8)
        #expect(try silent(query: work.query, key: work.key, value: work.value).scores == nil)
    }

    @Test("per-head thresholds: every head as if alone; 1 is dense attention where no weight underflows")
    func perHead() throws {
        let work = try Workload(queryLength: 200, keyLength: 200, heads: 3, kvHeads: 3)
        let thresholds = [0, 0.6, 1]
        let mixed = try XAttentionPrefill(work.shape, .init(stride: 4, blockSize: 16), thresholds: thresholds)
        #expect(mixed.thresholds == thresholds)
        let mask = try mixed.select(query: work.query, key: work.key).mask
        for (head, threshold) in thresholds.enumerated() {
            let alone = try XAttentionPrefill(work.shape, .init(stride: 4, blockSize: 16), threshold: threshold)
                .select(query: work.query, key: work.key).mask
            for row in 0..<13 { #expect(mask.columns(head: head, row: row) == alone.columns(head: head, row: row)) }
        }
        // Threshold 0 keeps the sink and the diagonal.
        for row in 0..<13 { #expect(Array(mask.columns(head: 0, row: row)) == (row == 0 ? [0] : [0, Int32(row)])) }
    }

    @Test("sink and diagonal can be forced without the causal limit, and a minimum always")
    func flags() throws {
        let work = try Workload(queryLength: 160, keyLength: 160)
        func rows(_ keepSink: Bool, _ keepRecent: Bool, minimum: Int = 1, isCausal: Bool = false) throws -> [Set<Int32>] {
            let mask = try XAttentionPrefill(
                work.shape,
                .init(
                    stride: 4, blockSize: 16, isCausal: isCausal, keepSink: keepSink, keepRecent: keepRecent,
                    minimumBlocks: minimum), threshold: 0
            ).select(query: work.query, key: work.key).mask
            return (0..<10).map { Set(mask.columns(head: 0, row: $0)) }
        }
        #expect(try rows(false, false).allSatisfy { $0.count == 1 })
        #expect(try rows(true, false).allSatisfy { $0 == [0] })
        #expect(try rows(false, true).enumerated().allSatisfy { $1 == [Int32($0)] })
        #expect(try rows(true, true).enumerated().allSatisfy { $1 == [0, Int32($0)] })
        #expect(try rows(false, false, minimum: 4).allSatisfy { $0.count == 4 })
        #expect(try rows(false, false, isCausal: true) == rows(true, true, isCausal: true))
        #expect(try rows(false, false, minimum: 3, isCausal: true).enumerated().allSatisfy { $1.count == min(3, $0 + 1) })
    }

    @Test("new queries after cached keys keep what the whole prompt keeps there")
    func chunkedPrefill() throws {
        let work = try Workload(queryLength: 256, keyLength: 256)
        let configuration = XAttentionConfiguration(stride: 4, blockSize: 16, precision: .float32)
        let whole = try XAttentionPrefill(work.shape, configuration).select(query: work.query, key: work.key).mask
        let tail = try Tensor<Float>([2, 64, 16]) { work.query[flat: $0 / 1024 * 4096 + 3072 + $0 % 1024] }
        let shape = try AttentionShape(queryLength: 64, keyLength: 256, queryHeads: 2, kvHeads: 1, headDim: 16)
        let part = try XAttentionPrefill(shape, configuration).select(query: tail, key: work.key).mask
        for head in 0..<2 {
            for row in 0..<4 { #expect(part.columns(head: head, row: row) == whole.columns(head: head, row: 12 + row)) }
        }
    }

    @Test("the same bits on 1, 2 and 7 threads, in every mode", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let work = try Workload(queryLength: 500, keyLength: 500, heads: 4, kvHeads: 2)
        for mode in [XAttentionConfiguration.Mode.clean, .released(chunkSize: 128)] {
            let prefill = try XAttentionPrefill(
                work.shape, .init(stride: 4, blockSize: 32, mode: mode, keepsScores: true), instructionSet: set)
            let serial = try prefill(query: work.query, key: work.key, value: work.value, on: .serial)
            for threads in [2, 7] {
                let pool = WorkerPool(threads: threads)
                let result = try prefill(query: work.query, key: work.key, value: work.value, on: pool)
                #expect(result.mask == serial.mask && result.state == serial.state && result.scores == serial.scores)
            }
        }
    }

    @Test("16-bit operands are widened exactly")
    func elementTypes() throws {
        let work = try Workload(queryLength: 100, keyLength: 120)
        for mode in [XAttentionConfiguration.Mode.clean, .released(chunkSize: 20)] {
            let prefill = try XAttentionPrefill(work.shape, .init(stride: 4, blockSize: 20, mode: mode))
            let (query, key) = (work.query.converted(to: BFloat16.self), work.key.converted(to: Float16.self))
            let narrow = try prefill(query: query, key: key, value: work.value)
            let wide = try prefill(
                query: query.converted(to: Float.self), key: key.converted(to: Float.self), value: work.value)
            #expect(narrow.mask == wide.mask && narrow.state == wide.state)
        }
    }

    // MARK: - Released mode

    /// The vector of the specification: d = 2, stride 2, blocks of 4, 12 tokens padded to 16.
    static func vector(isCausal: Bool, threshold: Double, chunk: Int) throws -> (plan: XAttentionPrefill, scores: BlockScores) {
        let query = try Tensor<Float>([1, 12, 2]) { Float((7 * ($0 / 2) + ($0 % 2 == 0 ? 0 : 3)) % 5 - 2) }
        let key = try Tensor<Float>([1, 12, 2]) { Float((5 * ($0 / 2) + ($0 % 2 == 0 ? 1 : 3)) % 7 - 3) }
        let shape = try AttentionShape(queryLength: 12, keyLength: 12, queryHeads: 1, kvHeads: 1, headDim: 2)
        let prefill = try XAttentionPrefill(
            shape, .init(stride: 2, blockSize: 4, isCausal: isCausal, mode: .released(chunkSize: chunk)), threshold: threshold)
        #expect(prefill.precision == .float32)
        return (prefill, try prefill.scores(query: query, key: key))
    }

    @Test("sums of the specification's vector")
    func vectorSums() throws {
        let expected: [Float] = [2, 0, 0, 0, 0.9195, 1.0805, 0, 0, 0.079086, 0.141378, 1.779535, 0, 0, 0, 0, 0]
        for chunk in [8, 16] {
            let (prefill, scores) = try Self.vector(isCausal: true, threshold: 0.9, chunk: chunk)
            #expect(prefill.scoredGrid.blockRows == 4 && prefill.grid.blockRows == 3)
            for index in expected.indices { #expect(abs(scores.values[flat: index] - expected[index]) < 6e-5) }
        }
        // Padded keys take part when there is no causal limit.
        let (_, full) = try Self.vector(isCausal: false, threshold: 0.9, chunk: 8)
        for (column, sum) in ([0.711643, 0.330011, 0.7275, 0.230846] as [Float]).enumerated() {
            #expect(abs(full[0, 0, column] - sum) < 6e-5)
        }
    }

    @Test("masks of the specification's vector", arguments: [0.5, 0.8, 0.9, 0.95, 1])
    func vectorMasks(_ threshold: Double) throws {
        let (prefill, scores) = try Self.vector(isCausal: true, threshold: threshold, chunk: 8)
        let mask = try prefill.mask(from: scores)
        let last: [Int32] = threshold < 0.95 ? [0, 2] : [0, 1, 2]
        #expect((0..<3).map { Array(mask.columns(head: 0, row: $0)) } == [[0], [0, 1], last])
        if threshold == 0.8 {
            let (prefill, scores) = try Self.vector(isCausal: true, threshold: threshold, chunk: 16)
            #expect(try Array(prefill.mask(from: scores).columns(head: 0, row: 2)) == [0, 1, 2])
        }
    }

    @Test(
        "the released chunk",
        arguments: [
            (1, 2048), (2048, 2048), (2049, 4096), (8192, 8192), (16384, 16384), (16385, 8192), (65536, 4096), (65537, 2048),
            (1 << 20, 2048),
        ])
    func chunk(_ keyLength: Int, _ chunk: Int) {
        #expect(XAttentionPrefill.releasedChunkSize(keyLength: keyLength) == chunk)
    }

    @Test("the released mode computes what the oracle makes of padded operands", arguments: [true, false])
    func releasedScores(_ isCausal: Bool) throws {
        for (queries, keys) in [(50, 50), (18, 50), (64, 64)] {
            let work = try Workload(queryLength: queries, keyLength: keys)
            let prefill = try XAttentionPrefill(
                work.shape, .init(stride: 4, blockSize: 16, isCausal: isCausal, mode: .released(chunkSize: 32)))
            let scores = try prefill.scores(query: work.query, key: work.key)
            func padded(_ tensor: Tensor<Float>, _ tokens: Int) throws -> Tensor<Float> {
                let (length, width) = (tensor.shape[1], tensor.shape[2])
                return try Tensor([tensor.shape[0], tokens, width]) {
                    let (head, token) = ($0 / (tokens * width), $0 / width % tokens)
                    return token < length ? tensor[flat: (head * length + token) * width + $0 % width] : 0
                }
            }
            let grid = prefill.scoredGrid
            let (query, key) = try (padded(work.query, grid.query.length), padded(work.key, grid.key.length))
            let shape = try AttentionShape(
                queryLength: grid.query.length, keyLength: grid.key.length, queryHeads: 2, kvHeads: 1, headDim: 16)
            let exact = try ReferenceAntidiagonalScoring(shape, grid: grid, stride: 4, scoredQueryTokens: queries)(
                query: query.view(), key: key.view())
            for index in exact.indices { #expect(abs(Double(scores.values[flat: index]) - exact[index]) < 1e-4) }
            #expect(try prefill.mask(from: scores).grid == prefill.grid)
        }
    }

    // MARK: - Errors

    @Test("bad arguments are refused")
    func errors() throws {
        let shape = try AttentionShape(queryLength: 100, keyLength: 300, queryHeads: 2, kvHeads: 1, headDim: 8)
        for threshold in [-0.01, 1.01, .nan] {
            expectError(.invalidArgument, "threshold") { _ = try XAttentionPrefill(shape, threshold: threshold) }
            expectError(.invalidArgument, "thresholds[1]") { _ = try XAttentionPrefill(shape, thresholds: [0.5, threshold]) }
        }
        expectError(.invalidShape, "thresholds") { _ = try XAttentionPrefill(shape, thresholds: [0.5]) }
        for stride in [0, -4, 3, 256] {
            expectError(.invalidArgument, "stride") { _ = try XAttentionPrefill(shape, .init(stride: stride)) }
        }
        expectError(.invalidShape, "queryBlockSize") { _ = try XAttentionPrefill(shape, .init(blockSize: 0)) }
        expectError(.invalidArgument, "norm") { _ = try XAttentionPrefill(shape, .init(norm: 0)) }
        expectError(.invalidArgument, "minimumBlocks") { _ = try XAttentionPrefill(shape, .init(minimumBlocks: -1)) }
        expectError(.invalidArgument, "minimumBlocks") {
            _ = try XAttentionPrefill(shape, .init(mode: .released(chunkSize: 128), minimumBlocks: 2))
        }
        for chunk in [0, -128, 100] {
            expectError(.invalidArgument, "chunkSize") {
                _ = try XAttentionPrefill(shape, .init(mode: .released(chunkSize: chunk)))
            }
        }
        // For queries that do not start at a chunk, the released code would align them with the padded end.
        expectError(.invalidShape, "queryLength") { _ = try XAttentionPrefill(shape, .init(mode: .released(chunkSize: 128))) }
        let long = try AttentionShape(queryLength: 300, keyLength: 100, queryHeads: 2, kvHeads: 1, headDim: 8)
        #expect(throws: Never.self) { try XAttentionPrefill(long) }
        expectError(.invalidShape, "queryLength") { _ = try XAttentionPrefill(long, .init(isCausal: false, mode: .released())) }

        let work = try Workload(queryLength: 100, keyLength: 300, headDim: 8)
        for mode in [XAttentionConfiguration.Mode.clean, .released(chunkSize: 40)] {
            let prefill = try XAttentionPrefill(shape, .init(stride: 4, blockSize: 20, mode: mode))
            expectError(.invalidShape, "query") { _ = try prefill.select(query: work.key, key: work.key) }
            expectError(.invalidShape, "key") { _ = try prefill.select(query: work.query, key: work.query) }
            expectError(.invalidShape, "value") {
                _ = try prefill(query: work.query, key: work.key, value: work.query)
            }
            let other = try BlockScores(
                grid: BlockGrid(shape, blockSize: 100, isCausal: true), values: Tensor(zeros: [2, 1, 3]))
            expectError(.invalidShape, "scores") { _ = try prefill.mask(from: other) }
        }
    }

    // MARK: - Captures

    static let capture = TestData.externalFile("captures/lm-layer3-8192.safetensors")

    @Test(
        "densities of a captured layer are those of a plain single-precision transcription",
        .enabled(if: capture != nil, TestData.absence))
    func captured() throws {
        let file = try SafetensorsFile(path: #require(Self.capture))
        let (query, key) = try (file.tensor("query", as: Float16.self), file.tensor("key", as: Float16.self))
        let shape = try AttentionShape(
            queryLength: query.shape[1], keyLength: key.shape[1], queryHeads: query.shape[0], kvHeads: key.shape[0],
            headDim: query.shape[2])
        let mask = try XAttentionPrefill(shape, .init(precision: .float32, softmaxScale: 0.125))
            .select(query: query, key: key).mask
        #expect(abs(mask.density(head: 0) - 0.101) < 0.0005)
        #expect(abs(mask.density(head: 1) - 0.091) < 0.0005)
    }
}
