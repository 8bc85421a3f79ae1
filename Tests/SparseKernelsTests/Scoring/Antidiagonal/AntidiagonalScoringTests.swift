import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// A shape to score, with the awkward ends that tiles, groups and blocks can have.
struct ScoringCase: CustomStringConvertible, Sendable {
    var heads = (query: 1, kv: 1)
    var queryLength: Int
    var keyLength: Int
    var headDim: Int
    var stride: Int
    var blocks: (query: Int, key: Int)
    var isCausal: Bool

    init(
        _ queryLength: Int, _ keyLength: Int, headDim: Int, stride: Int, block: Int, keyBlock: Int? = nil,
        isCausal: Bool = true,
        heads: (query: Int, kv: Int) = (1, 1)
    ) {
        self.queryLength = queryLength
        self.keyLength = keyLength
        self.headDim = headDim
        self.stride = stride
        blocks = (block, keyBlock ?? block)
        self.isCausal = isCausal
        self.heads = heads
    }

    var description: String {
        "\(queryLength) × \(keyLength), d \(headDim), S \(stride), blocks \(blocks), \(isCausal ? "causal" : "full"), heads \(heads)"
    }

    var shape: AttentionShape {
        get throws {
            try AttentionShape(
                queryLength: queryLength, keyLength: keyLength, queryHeads: heads.query, kvHeads: heads.kv, headDim: headDim)
        }
    }

    var grid: BlockGrid {
        get throws {
            try BlockGrid(
                queryLength: queryLength, keyLength: keyLength, queryBlockSize: blocks.query, keyBlockSize: blocks.key,
                isCausal: isCausal)
        }
    }

    var query: Tensor<Float> {
        get throws { try .normal([heads.query, queryLength, headDim], seed: 1, scale: 2) }
    }

    var key: Tensor<Float> {
        get throws { try .normal([heads.kv, keyLength, headDim], seed: 2, scale: 2) }
    }

    func scoring(
        _ precision: ScoringPrecision, _ set: InstructionSet? = nil
    ) throws -> AntidiagonalScoring {
        try AntidiagonalScoring(shape, grid: grid, stride: stride, precision: precision, instructionSet: set)
    }

    static let all = [
        ScoringCase(1, 1, headDim: 1, stride: 1, block: 1),
        ScoringCase(300, 300, headDim: 16, stride: 4, block: 32, heads: (2, 1)),
        ScoringCase(1000, 1000, headDim: 64, stride: 16, block: 128, heads: (2, 2)),
        ScoringCase(77, 500, headDim: 20, stride: 8, block: 64),
        ScoringCase(500, 333, headDim: 33, stride: 8, block: 64, isCausal: false),
        ScoringCase(200, 999, headDim: 64, stride: 64, block: 128, heads: (3, 1)),
        ScoringCase(130, 130, headDim: 8, stride: 1, block: 16),
        ScoringCase(700, 700, headDim: 64, stride: 16, block: 96),
        ScoringCase(1500, 1500, headDim: 128, stride: 16, block: 128),
        ScoringCase(600, 600, headDim: 64, stride: 4, block: 128),
        ScoringCase(513, 770, headDim: 12, stride: 8, block: 128, keyBlock: 64, isCausal: false),
        ScoringCase(513, 770, headDim: 12, stride: 8, block: 64, keyBlock: 256),
        ScoringCase(3, 900, headDim: 5, stride: 16, block: 128),
        ScoringCase(290, 290, headDim: 256, stride: 1, block: 256),
    ]
}

extension BlockScores {
    /// The bits of every score.
    fileprivate var bits: [UInt32] { values.elements.map(\.bitPattern) }
}

@Suite("Antidiagonal scoring")
struct AntidiagonalScoringTests {
    /// A score x of n products is rounded by about √n·u·A, where A is the sum of the magnitudes of its terms; four times that
    /// covers the tails. A block's sum of weights then moves by twice the largest error of its scores per query group, and by
    /// the errors of the exponential and of the sums, which are below 2e-6 per group.
    private func tolerance(_ test: ScoringCase, magnitude: Double) -> Double {
        let chain = Double(test.headDim * test.stride).squareRoot() * 0x1p-24 * magnitude * 4
        return Double(test.blocks.query / test.stride) * (2 * chain + 2e-6)
    }

    /// A bound of Σ |terms| of a score, the product of the largest norms.
    private func magnitude(_ test: ScoringCase, _ query: Tensor<Float>, _ key: Tensor<Float>) -> Double {
        func largest(_ tensor: Tensor<Float>) -> Double {
            let rows = tensor.elements
            return stride(from: 0, to: rows.count, by: test.headDim).map { start in
                rows[start..<start + test.headDim].reduce(0.0) { $0 + Double($1) * Double($1) }
            }.max()!.squareRoot()
        }
        return largest(query) * largest(key) / Double(test.headDim).squareRoot()
    }

    @Test("float scores agree with the oracle", arguments: ScoringCase.all, InstructionSet.available)
    func float(_ test: ScoringCase, _ set: InstructionSet) throws {
        let (query, key) = try (test.query, test.key)
        let scores = try test.scoring(.float32, set)(query: query, key: key)
        let expected = try ReferenceAntidiagonalScoring(test.shape, grid: test.grid, stride: test.stride)(
            query: query.view(), key: key.view())
        let bound = min(1e-4, tolerance(test, magnitude: magnitude(test, query, key)))
        var worst = 0.0
        for (index, value) in expected.enumerated() { worst = max(worst, abs(Double(scores.values[flat: index]) - value)) }
        #expect(worst <= bound, "\(set) \(test): \(worst) of \(bound)")
    }

    /// Operands that already are codes: integers times a power of two, with a 31 in every group, and keys that cancel in pairs
    /// of groups, so that their mean is zero. Then codes lose nothing, and integer products must equal float products.
    @Test("codes are exact where operands are codes", arguments: ScoringCase.all, InstructionSet.available)
    func codes(_ test: ScoringCase, _ set: InstructionSet) throws {
        var generator = SplitMix64(seed: 3)
        let (row, stride) = (test.headDim, test.stride)
        let values = { (count: Int, groups: Int) in
            (0..<count).map { $0 % groups == 0 ? 31 : Float(Int.random(in: -31...31, using: &generator)) }
        }
        let query = try Tensor<Float>(
            [test.heads.query, test.queryLength, row],
            (0..<test.heads.query).flatMap { _ in values(test.queryLength * row, stride * row) }.map { $0 * 0x1p-4 })
        var keys: [Float] = []
        for _ in 0..<test.heads.kv {
            var head = values(test.keyLength * row, stride * row)
            let pairs = test.keyLength / (2 * stride)
            for index in 0..<test.keyLength * row {
                let (group, offset) = index.quotientAndRemainder(dividingBy: stride * row)
                if group % 2 == 1 && group < 2 * pairs { head[index] = -head[(group - 1) * stride * row + offset] }
                if group >= 2 * pairs { head[index] = 0 }
            }
            keys += head.map { $0 * 0x1p-4 }
        }
        let key = try Tensor<Float>([test.heads.kv, test.keyLength, row], keys)
        let exact = try test.scoring(.float32, set)(query: query, key: key)
        let codes = try test.scoring(.int6, set)(query: query, key: key)
        let bound = tolerance(test, magnitude: magnitude(test, query, key))
        for index in 0..<exact.values.count {
            let (a, b) = (exact.values[flat: index], codes.values[flat: index])
            #expect(abs(Double(a) - Double(b)) <= bound, "\(set) \(test): block \(index) \(b), float \(a) ± \(bound)")
        }
    }

    @Test("every level finds the same codes", arguments: ScoringCase.all)
    func levels(_ test: ScoringCase) throws {
        let (query, key) = try (test.query, test.key)
        let first = try test.scoring(.int6, InstructionSet.available[0])(query: query, key: key)
        let groups = Double(test.blocks.query / test.stride)
        for set in InstructionSet.available.dropFirst() {
            let scores = try test.scoring(.int6, set)(query: query, key: key)
            // The integers are the same, and the scales, exponentials and sums are rounded differently.
            for index in 0..<first.values.count {
                #expect(abs(first.values[flat: index] - scores.values[flat: index]) <= Float(4e-6 * groups), "\(set) \(test)")
            }
        }
    }

    @Test("the number of threads changes no bit", arguments: ScoringPrecision.allCases)
    func threads(_ precision: ScoringPrecision) throws {
        let test = ScoringCase(3000, 3000, headDim: 32, stride: 8, block: 64, heads: (4, 2))
        let (query, key) = try (test.query, test.key)
        let scoring = try test.scoring(precision)
        let expected = try scoring(query: query, key: key, on: .serial).bits
        for threads in [2, 7] {
            #expect(
                try scoring(query: query, key: key, on: WorkerPool(threads: threads)).bits == expected, "\(threads) threads")
        }
    }

    @Test("16-bit operands score like their widened values", arguments: ScoringPrecision.allCases, InstructionSet.available)
    func elementTypes(_ precision: ScoringPrecision, _ set: InstructionSet) throws {
        let test = ScoringCase(333, 333, headDim: 24, stride: 8, block: 64, heads: (2, 1))
        let (query, key) = (try test.query.converted(to: BFloat16.self), try test.key.converted(to: Float16.self))
        let scoring = try test.scoring(precision, set)
        let widened = try scoring(query: query.converted(to: Float.self), key: key.converted(to: Float.self))
        #expect(try scoring(query: query, key: key).bits == widened.bits)
    }

    @Test("strides of the operands make no difference", arguments: ScoringPrecision.allCases)
    func layouts(_ precision: ScoringPrecision) throws {
        let test = ScoringCase(210, 333, headDim: 24, stride: 8, block: 64, heads: (2, 2))
        let (query, key) = try (test.query, test.key)
        func interleaved(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            let (heads, tokens, channels) = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
            return try Tensor([tokens, heads, channels]) { index in
                let (token, head) = (index / (heads * channels), index / channels % heads)
                return tensor[flat: (head * tokens + token) * channels + index % channels]
            }
        }
        let scoring = try test.scoring(precision)
        let (q, k) = (try interleaved(query), try interleaved(key))
        let scores = try scoring.run(query: q.view(layout: .nhd), key: k.view(layout: .nhd))
        #expect(scores.bits == (try scoring(query: query, key: key)).bits)
    }

    @Test("nothing outside the operands is read", arguments: ScoringPrecision.allCases, [true, false])
    func fences(_ precision: ScoringPrecision, _ fencesEnd: Bool) throws {
        for set in InstructionSet.available {
            for test in [
                ScoringCase(77, 77, headDim: 5, stride: 8, block: 32), ScoringCase(130, 200, headDim: 17, stride: 4, block: 64),
            ] {
                let (query, key) = try (test.query, test.key)
                let memory = (
                    FencedMemory(query.elements, fencesEnd: fencesEnd), FencedMemory(key.elements, fencesEnd: fencesEnd)
                )
                let scores = try test.scoring(precision, set).run(
                    query: TensorView(
                        UnsafeBufferPointer(memory.0.elements).span, heads: 1, tokens: test.queryLength, channels: test.headDim),
                    key: TensorView(
                        UnsafeBufferPointer(memory.1.elements).span, heads: 1, tokens: test.keyLength, channels: test.headDim))
                #expect(scores.bits == (try test.scoring(precision, set)(query: query, key: key)).bits)
            }
        }
    }

    @Test("a row of blocks adds up to its query groups", arguments: ScoringCase.all, ScoringPrecision.allCases)
    func mass(_ test: ScoringCase, _ precision: ScoringPrecision) throws {
        let scores = try test.scoring(precision)(query: test.query, key: test.key)
        for head in 0..<scores.heads {
            for row in 0..<scores.grid.blockRows {
                let groups = (scores.grid.query[row].count + test.stride - 1) / test.stride
                let sum = (0..<scores.grid.blockColumns).reduce(0.0) { $0 + Double(scores[head, row, $1]) }
                #expect(abs(sum - Double(groups)) <= 1e-5 * Double(groups), "\(test): row \(row) \(sum)")
            }
        }
    }

    @Test("a key that is not a number reaches the rows that see it and no other", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let test = ScoringCase(512, 512, headDim: 16, stride: 8, block: 64)
        let (query, key) = try (test.query, test.key)
        let clean = try test.scoring(.float32, set)(query: query, key: key)
        var dirty = key
        dirty[flat: 300 * 16 + 3] = .nan
        let scores = try test.scoring(.float32, set)(query: query, key: dirty)
        for row in 0..<8 {
            for column in 0...row {
                // Token 300 is in key group 37, which the groups of block row 4 from its fifth on see.
                if row < 4 {
                    #expect(scores[0, row, column] == clean[0, row, column])
                } else {
                    #expect(scores[0, row, column].isNaN)
                }
            }
        }
    }

    /// The purpose of codes: on real attention, their masks must be as good as the float masks.
    @Test("masks of codes keep the attention mass of the float masks")
    func recall() throws {
        let file = try SafetensorsFile(path: TestData.path("Benchmarks/Data/lm-layer3-8192.safetensors"))
        let (query, key) = (try file.floatTensor("query"), try file.floatTensor("key"))
        let shape = try AttentionShape(query: query.view(), key: key.view(), value: key.view())
        let grid = try BlockGrid(shape, isCausal: true)
        let mass = try AntidiagonalScoring(shape, grid: grid, stride: 1, precision: .float32)(query: query, key: key)
        for topP in [0.9, 0.95] {
            let selection = try BlockSelection(.topP(topP), sinkBlocks: 1, recentBlocks: 1)
            var recalls: [Double] = []
            var densities: [Double] = []
            for precision in [ScoringPrecision.float32, .int6] {
                let scoring = try AntidiagonalScoring(shape, grid: grid, precision: precision)
                let mask = try selection(scoring(query: query, key: key))
                var kept = 0.0
                for head in 0..<mask.heads {
                    for row in 0..<grid.blockRows {
                        for column in mask.columns(head: head, row: row) { kept += Double(mass[head, row, Int(column)]) }
                    }
                }
                recalls.append(kept / Double(shape.queryHeads * shape.queryLength))
                densities.append(mask.density)
            }
            #expect(recalls[1] >= recalls[0] - 0.001, "recall \(recalls) at densities \(densities)")
            #expect(densities[1] <= densities[0] * 1.01)
        }
    }

    @Test("bad arguments are errors that name them")
    func errors() throws {
        let shape = try AttentionShape(queryLength: 64, keyLength: 128, queryHeads: 2, kvHeads: 1, headDim: 8)
        let grid = try BlockGrid(shape, blockSize: 32, isCausal: true)
        func error(_ body: () throws -> Void) -> SparseKernelsError? {
            do { try body() } catch { return error as? SparseKernelsError }
            return nil
        }
        for (stride, argument) in [(0, "stride"), (1025, "stride"), (5, "grid.query"), (64, "grid.query")] {
            let error = error { _ = try AntidiagonalScoring(shape, grid: grid, stride: stride) }
            #expect(error?.code == .invalidArgument && error?.argument == argument, "stride \(stride): \(error as Any)")
        }
        let other = try BlockGrid(queryLength: 64, keyLength: 64, queryBlockSize: 32, keyBlockSize: 32, isCausal: true)
        #expect(error { _ = try AntidiagonalScoring(shape, grid: other) }?.code == .invalidShape)
        let various = try BlockGrid(
            query: BlockPartition(length: 64, blockSize: 32), key: BlockPartition(sizes: [100, 28]), isCausal: true)
        #expect(error { _ = try AntidiagonalScoring(shape, grid: various) }?.argument == "grid.key")
        for norm in [Float(0), -1, .nan, .infinity] {
            #expect(error { _ = try AntidiagonalScoring(shape, grid: grid, norm: norm) }?.argument == "norm")
        }
        #expect(error { _ = try AntidiagonalScoring(shape, grid: grid, softmaxScale: .nan) }?.argument == "softmaxScale")
        let scoring = try AntidiagonalScoring(shape, grid: grid)
        let query = try Tensor<Float>(zeros: [2, 64, 8])
        #expect(error { _ = try scoring(query: query, key: query) }?.argument == "key")
        #expect(error { _ = try scoring(query: Tensor<Float>(zeros: [2, 65, 8]), key: query) }?.argument == "query")
    }
}
