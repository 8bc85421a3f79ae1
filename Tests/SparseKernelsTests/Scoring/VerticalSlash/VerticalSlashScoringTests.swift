import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Vertical and slash scoring")
struct VerticalSlashScoringTests {
    /// Compares every score of every instruction set with the oracle, and reports the largest error.
    static func expectMatches<Element: AttentionElement>(
        _ type: Element.Type, _ shape: AttentionShape, lastQueries: Int, scale: Float = 1
    ) throws {
        let query = try Tensor<Element>.normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 1, scale: scale)
        let key = try Tensor<Element>.normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 2, scale: scale)
        let references = try (0..<shape.queryHeads).map {
            try ReferenceVerticalSlash(shape, head: $0, lastQueries: lastQueries, query: query.view(), key: key.view())
        }
        for set in InstructionSet.available {
            let scores = try VerticalSlashScoring(shape, lastQueries: lastQueries, instructionSet: set)(
                query: query, key: key)
            #expect(scores.vertical.shape == [shape.queryHeads, shape.keyLength])
            var worst = (excess: 0.0, text: "")
            for (head, reference) in references.enumerated() {
                for (name, tensor, expected, bounds) in [
                    ("key", scores.vertical, reference.vertical, reference.verticalBound),
                    ("distance", scores.slash, reference.slash, reference.slashBound),
                ] {
                    for index in 0..<shape.keyLength {
                        let value = Double(tensor[flat: head * shape.keyLength + index])
                        let excess = abs(value - expected[index]) - bounds[index]
                        if excess > worst.excess || excess.isNaN {
                            worst = (excess, "\(name) \(index) of head \(head): \(value), expected \(expected[index])")
                        }
                    }
                }
            }
            #expect(worst.text.isEmpty, "\(set), \(type), \(shape.keyLength) keys: \(worst.text)")
        }
    }

    @Test(
        "scores agree with the oracle for lengths of any kind",
        arguments: [
            // Queries, keys, heads, KV heads, channels, last queries.
            [1, 1, 1, 1, 8, 64], [3, 3, 2, 1, 4, 64], [7, 100, 2, 2, 20, 64], [65, 65, 1, 1, 64, 64], [70, 800, 2, 1, 16, 64],
            [300, 300, 1, 1, 16, 7], [20, 784, 1, 1, 33, 16], [10, 770, 1, 1, 8, 1],
        ])
    func oracle(_ sizes: [Int]) throws {
        let shape = try AttentionShape(
            queryLength: sizes[0], keyLength: sizes[1], queryHeads: sizes[2], kvHeads: sizes[3], headDim: sizes[4])
        try Self.expectMatches(Float.self, shape, lastQueries: sizes[5])
        try Self.expectMatches(Float16.self, shape, lastQueries: sizes[5])
        try Self.expectMatches(BFloat16.self, shape, lastQueries: sizes[5], scale: 3)
    }

    @Test("masses of keys and of distances add up to the number of queries")
    func masses() throws {
        let shape = try AttentionShape(queryLength: 300, keyLength: 500, queryHeads: 2, kvHeads: 1, headDim: 32)
        let query = try Tensor<Float>.normal([2, 300, 32], seed: 3)
        let key = try Tensor<Float>.normal([1, 500, 32], seed: 4)
        let scores = try VerticalSlashScoring(shape)(query: query, key: key)
        for tensor in [scores.vertical, scores.slash] {
            for head in 0..<2 {
                let total = (0..<500).reduce(0.0) { $0 + Double(tensor[flat: head * 500 + $1]) }
                // Each of 64 rows has a relative error below 2e-6.
                #expect(abs(total - 64) < 64 * 2e-6)
            }
        }
    }

    @Test("a choice of heads, other layouts and threads change no bit")
    func bits() throws {
        let shape = try AttentionShape(queryLength: 90, keyLength: 1700, queryHeads: 4, kvHeads: 2, headDim: 24)
        let query = try Tensor<BFloat16>.normal([4, 90, 24], seed: 5)
        let key = try Tensor<BFloat16>.normal([2, 1700, 24], seed: 6)
        let expected = try VerticalSlashScoring(shape)(query: query, key: key, on: .serial)
        for threads in [1, 2, 7] {
            let scores = try VerticalSlashScoring(shape)(query: query, key: key, on: WorkerPool(threads: threads))
            #expect(scores.vertical.bits == expected.vertical.bits && scores.slash.bits == expected.slash.bits)
        }
        let some = try VerticalSlashScoring(shape, heads: [3, 1])(query: query, key: key)
        for (row, head) in [3, 1].enumerated() {
            for index in 0..<1700 {
                #expect(some.vertical[flat: row * 1700 + index] == expected.vertical[flat: head * 1700 + index])
                #expect(some.slash[flat: row * 1700 + index] == expected.slash[flat: head * 1700 + index])
            }
        }
        #expect(try VerticalSlashScoring(shape, heads: [])(query: query, key: key).heads == 0)

        func transposed(_ tensor: Tensor<BFloat16>) throws -> Tensor<BFloat16> {
            let (heads, tokens, channels) = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
            return try Tensor([tokens, heads, channels]) { index in
                let (token, rest) = index.quotientAndRemainder(dividingBy: heads * channels)
                return tensor[flat: (rest / channels * tokens + token) * channels + rest % channels]
            }
        }
        let (otherQuery, otherKey) = (try transposed(query), try transposed(key))
        let other = try VerticalSlashScoring(shape)(query: otherQuery.view(layout: .nhd), key: otherKey.view(layout: .nhd))
        #expect(other.vertical.bits == expected.vertical.bits && other.slash.bits == expected.slash.bits)
    }

    @Test("a NaN stays in the heads that read it")
    func nonFinite() throws {
        let shape = try AttentionShape(queryLength: 70, keyLength: 70, queryHeads: 2, kvHeads: 2, headDim: 16)
        let query = try Tensor<Float>.normal([2, 70, 16], seed: 7)
        var key = try Tensor<Float>.normal([2, 70, 16], seed: 8)
        let clean = try VerticalSlashScoring(shape)(query: query, key: key)
        key[flat: 5] = .nan
        let scores = try VerticalSlashScoring(shape)(query: query, key: key)
        #expect(scores.vertical[flat: 0].isNaN)
        #expect(scores.vertical.bits[70...] == clean.vertical.bits[70...])
        let lines = try VerticalSlashSelection(vertical: 30, slash: 50)(scores, head: 0)
        #expect(lines.keys.count == 30 && lines.distances.count == 50)
        let wide = try VerticalSlashSelection(vertical: 31, slash: 50, forcedDistances: 1)(scores, head: 0)
        #expect(wide.keys.count == 70 && wide.distances.count == 70)
    }

    @Test("bad input is an error that names it")
    func errors() throws {
        let shape = try AttentionShape(queryLength: 8, keyLength: 16, queryHeads: 2, kvHeads: 1, headDim: 4)
        let long = try AttentionShape(queryLength: 17, keyLength: 16, queryHeads: 2, kvHeads: 1, headDim: 4)
        #expect(try VerticalSlashScoring(long).lastQueries == 16)
        expectError(.invalidArgument, "lastQueries") { _ = try VerticalSlashScoring(shape, lastQueries: 0) }
        expectError(.invalidArgument, "lastQueries") { _ = try VerticalSlashScoring(shape, lastQueries: 385) }
        expectError(.invalidArgument, "softmaxScale") { _ = try VerticalSlashScoring(shape, softmaxScale: .nan) }
        expectError(.invalidArgument, "heads") { _ = try VerticalSlashScoring(shape, heads: [2]) }
        let operand = try Tensor<Float>(zeros: [2, 8, 4])
        expectError(.invalidShape, "key") { _ = try VerticalSlashScoring(shape)(query: operand, key: operand) }
        expectError(.invalidShape, "vertical") {
            _ = try VerticalSlashScores(vertical: Tensor(zeros: [3]), slash: Tensor(zeros: [3]))
        }
        expectError(.invalidShape, "slash") {
            _ = try VerticalSlashScores(vertical: Tensor(zeros: [1, 3]), slash: Tensor(zeros: [1, 4]))
        }
        expectError(.invalidArgument, "slash") { _ = try VerticalSlashSelection(vertical: 1, slash: -1) }
        expectError(.invalidArgument, "forcedDistances") {
            _ = try VerticalSlashSelection(vertical: 1, slash: 1, forcedDistances: 0)
        }
    }
}
