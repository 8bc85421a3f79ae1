import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Statistics of logits")
struct LogitStatisticsTests {
    static func check<E: AttentionElement>(_ logits: Tensor<E>, topK: Int, _ set: InstructionSet, _ label: String) throws {
        let vocabulary = logits.shape[1]
        let summary = try LogitStatistics(vocabulary: vocabulary, topK: topK, instructionSet: set)(logits)
        #expect(summary.topK == min(topK, vocabulary))
        for row in 0..<logits.shape[0] {
            let values = RowNormTests.doubles(logits, row: row)
            let expected = ReferenceRows.statistics(values, topK: topK)
            let indices = (0..<summary.topK).map { Int(summary.topIndices[row, $0]) }
            #expect(indices == expected.indices, "\(set), \(label), row \(row)")
            let isSame = zip(summary.topValues.elements[row * summary.topK..<(row + 1) * summary.topK], expected.indices)
                .allSatisfy { Double($0) == values[$1] || ($0.isNaN && values[$1].isNaN) }
            #expect(isSame, "\(set), \(label), row \(row)")
            #expect(summary.argmax(row) == expected.indices[0])
            let actual = Double(summary.logSumExp[row])
            if expected.logSumExp.isNaN || expected.logSumExp.isInfinite {
                #expect(actual == expected.logSumExp || (actual.isNaN && expected.logSumExp.isNaN), "\(set), \(label)")
                continue
            }
            // Entries far below the maximum have large relative errors and small parts of the sum: e^−x · x is at most e⁻¹.
            let maximum = values[expected.indices[0]]
            let mean = values.filter(\.isFinite).reduce(0) { $0 + exp($1 - expected.logSumExp) * (maximum - $1) }
            let bound = 4e-7 + 1e-7 * mean + 90 * 0x1p-24 + 0x1p-24 * abs(expected.logSumExp)
            #expect(abs(actual - expected.logSumExp) <= bound, "\(set), \(label): \(actual) for \(expected.logSumExp)")
        }
    }

    @Test(
        "agree with a full sort at all sizes", arguments: InstructionSet.available,
        [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 257, 1000, 16_383, 16_384, 16_385, 40_001])
    func sizes(_ set: InstructionSet, _ vocabulary: Int) throws {
        for topK in [1, 2, 5, 40, 300] {
            try Self.check(Tensor<Float>.normal([2, vocabulary], seed: 1, scale: 3), topK: topK, set, "floats \(vocabulary)")
        }
        // Many equal entries.
        try Self.check(Tensor<BFloat16>.normal([2, vocabulary], seed: 2), topK: 50, set, "bfloat16 \(vocabulary)")
        try Self.check(Tensor<Float16>.normal([1, vocabulary], seed: 3), topK: 7, set, "half \(vocabulary)")
    }

    @Test("orders that are bad for selection", arguments: InstructionSet.available)
    func orders(_ set: InstructionSet) throws {
        let n = 20_000
        let patterns: [(String, (Int) -> Float)] = [
            ("ascending", { Float($0) * 0.001 }), ("descending", { -Float($0) * 0.001 }), ("constant", { _ in 1 }),
            ("zeros of both signs", { $0 % 2 == 0 ? 0 : -0.0 }), ("saw", { Float($0 % 100) * 0.1 }),
            ("large", { $0 == 777 ? 3e38 : -3e38 }),
        ]
        for (label, value) in patterns {
            for topK in [1, 100] { try Self.check(Tensor<Float>([1, n], generate: value), topK: topK, set, label) }
        }
    }

    @Test("NaN comes first; −∞ and ∞ have their sums", arguments: InstructionSet.available)
    func special(_ set: InstructionSet) throws {
        let n = 17_000
        let base = try Tensor<Float>.normal([1, n], seed: 4)
        func changed(_ changes: [Int: Float]) throws -> Tensor<Float> {
            var x = base
            for (index, value) in changes { x[0, index] = value }
            return x
        }
        let cases: [(String, Tensor<Float>)] = [
            ("NaN", try changed([5: .nan])), ("NaN in the last piece", try changed([16_999: .nan])),
            ("NaN and ∞", try changed([9: .infinity, 16_500: .nan])), ("∞", try changed([9: .infinity, 16_500: .infinity])),
            ("−∞", try changed([0: -.infinity, 16_400: -.infinity])),
            ("all −∞", try Tensor([1, n]) { _ in -.infinity }), ("all NaN", try Tensor([1, n]) { _ in .nan }),
            ("one number", try Tensor([1, n]) { $0 == 16_600 ? 2 : -.infinity }),
            ("piece of −∞", try Tensor([1, n]) { $0 < 16_384 ? -.infinity : 1 }),
            ("−∞ and NaN", try Tensor([1, n]) { $0 == 3 ? .nan : -.infinity }),
        ]
        for (label, logits) in cases { for topK in [1, 20] { try Self.check(logits, topK: topK, set, label) } }
    }

    @Test("a soft cap is applied first", arguments: InstructionSet.available)
    func softCap(_ set: InstructionSet) throws {
        let logits = try Tensor<Float>.normal([2, 1003], seed: 5, scale: 40)
        let summary = try LogitStatistics(vocabulary: 1003, topK: 3, softCap: 30, instructionSet: set)(logits)
        for row in 0..<2 {
            let capped = RowNormTests.doubles(logits, row: row).map { 30 * tanh($0 / 30) }
            let expected = ReferenceRows.statistics(capped, topK: 3)
            #expect(abs(Double(summary.maximum(row)) - capped[expected.indices[0]]) <= 30 * 6e-7)
            #expect(abs(Double(summary.logSumExp[row]) - expected.logSumExp) <= 30 * 6e-7 + 1e-5)
        }
    }

    @Test("one long row has the same bits on any number of threads", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let logits = try Tensor<Float>.normal([1, 131_072], seed: 6, scale: 2)
        let many = try Tensor<Float>.normal([150, 5000], seed: 7)
        let (long, short) = (
            try LogitStatistics(vocabulary: 131_072, topK: 256, instructionSet: set),
            try LogitStatistics(vocabulary: 5000, topK: 3, instructionSet: set)
        )
        let (first, second) = (try long(logits, on: .serial), try short(many, on: .serial))
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            #expect(try long(logits, on: pool) == first && short(many, on: pool) == second, "\(set)")
        }
        // Row by row is the same as all rows.
        let last = try short(Tensor([1, 5000]) { many[149, $0] })
        #expect(last.argmax(0) == second.argmax(149) && last.logSumExp[0] == second.logSumExp[149])
    }

    @Test("errors name the operand and both numbers")
    func errors() throws {
        expectError(.invalidShape, "vocabulary", containing: "0") { _ = try LogitStatistics(vocabulary: 0) }
        expectError(.invalidArgument, "topK", containing: "0", "16384") { _ = try LogitStatistics(vocabulary: 10, topK: 0) }
        expectError(.invalidArgument, "softCap", containing: "-1") { _ = try LogitStatistics(vocabulary: 10, softCap: -1) }
        let statistics = try LogitStatistics(vocabulary: 10)
        expectError(.invalidShape, "logits", containing: "10", "11") { _ = try statistics(Tensor<Float>(zeros: [1, 11])) }
        var summary = try statistics.makeSummary(rows: 2)
        expectError(.invalidShape, "summary", containing: "1 × 1", "2 × 1") {
            try statistics.run(Tensor<Float>(zeros: [1, 10]), into: &summary)
        }
        #expect(try statistics(Tensor<Float>(zeros: [0, 10])).rows == 0)
    }
}
