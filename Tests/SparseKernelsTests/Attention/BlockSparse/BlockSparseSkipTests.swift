import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Skipping P·V where all scores of a step are at least `pvSkipThreshold` below the running maxima.
@Suite("Skipping negligible probabilities")
struct BlockSparseSkipTests {
    static func shape(queryLength: Int = 100, keyLength: Int = 700) throws -> AttentionShape {
        try AttentionShape(
            queryLength: queryLength, keyLength: keyLength, queryHeads: 2, kvHeads: 1, headDim: 16, valueDim: 11)
    }

    static func plan(
        _ shape: AttentionShape, _ threshold: Float?, _ set: InstructionSet, isCausal: Bool = true, density: Float = 0.7
    ) throws -> BlockSparseAttention {
        let mask = try BlockMask.random(BlockGrid(shape, blockSize: 64, isCausal: isCausal), density: density, seed: 41)
        return try BlockSparseAttention(shape, mask: mask, pvSkipThreshold: threshold, instructionSet: set)
    }

    /// Queries with scores of some tens. Keys of a step have equal norms, which are largest in the first steps, so that whole
    /// later steps are negligible.
    static func operands(_ shape: AttentionShape) throws -> BlockSparseOperands {
        let operands = try BlockSparseOperands(shape)
        let direction = operands.query.elements.prefix(shape.headDim)
        let query = try Tensor<Float>(operands.query.shape) {
            direction[$0 % shape.headDim] * 4 + operands.query[flat: $0] / 4
        }
        let key = try Tensor<Float>(operands.key.shape) { flat in
            let token = flat / shape.headDim % shape.keyLength
            return direction[flat % shape.headDim] * Float(4 - token / 100) / 2 + operands.key[flat: flat] / 8
        }
        return BlockSparseOperands(query: query, key: key, value: operands.value)
    }

    /// e^x is exactly 0 for x ≤ −88.03, so that a skipped step would have added nothing and rescaled by 1.
    @Test(
        "a huge threshold changes no bit", arguments: InstructionSet.available,
        [Float(89), 1e4, 1e30, .greatestFiniteMagnitude])
    func hugeThreshold(_ set: InstructionSet, _ threshold: Float) throws {
        let shape = try Self.shape()
        let operands = try Self.operands(shape)
        for isCausal in [true, false] {
            let plans = try [nil, threshold].map { try Self.plan(shape, $0, set, isCausal: isCausal) }
            let states = try plans.map { try $0(query: operands.query, key: operands.key, value: operands.value) }
            #expect(states[0].output.bits == states[1].output.bits && states[0].logSumExp.bits == states[1].logSumExp.bits)
        }
    }

    /// With the probabilities p of exact attention, skipped keys have s_j ≤ m − threshold, and their mass S is at most that of
    /// all such keys. The others have 1 − S, and o_kept − o = S·(o_kept − o_skipped), LSE − LSE_kept = −ln(1 − S). Errors of
    /// computed scores move the limit by < 10⁻³: with the terms of `AttentionErrorBound`, λ(√d + 2)u·A ≈ 2·10⁻⁶·A, A < 400.
    @Test("the result moves by the skipped mass at most")
    func boundedBySkippedMass() throws {
        let shape = try Self.shape(queryLength: 60, keyLength: 600)
        let operands = try Self.operands(shape)
        let mask = try BlockMask.random(BlockGrid(shape, blockSize: 64, isCausal: true), density: 0.7, seed: 41)
        let sees = visibility([.blockSparse(mask, head: 0)], shape, isCausal: true)
        let rows = try referenceRows(
            shape, query: operands.query, key: operands.key, value: operands.value, sees: sees)
        /// The scores of the keys that a row sees, and the difference of each channel's largest and smallest value.
        let scenes = rows.enumerated().map { index, row in
            let keys = (0..<shape.keyLength).filter { sees(row.head, row.token, $0) }
            let scores = keys.map { key in
                (0..<16).reduce(0.0) {
                    $0 + Double(operands.query[flat: index * 16 + $1]) * Double(operands.key[flat: key * 16 + $1]) / 4
                }
            }
            let ranges = (0..<11).map { channel in
                let values = keys.map { Double(operands.value[flat: $0 * 11 + channel]) }
                return (values.max() ?? 0) - (values.min() ?? 0)
            }
            return (scores: scores, ranges: ranges)
        }
        for set in InstructionSet.available {
            func state(_ threshold: Float?) throws -> AttentionState {
                try BlockSparseAttention(shape, mask: mask, pvSkipThreshold: threshold, instructionSet: set)(
                    query: operands.query, key: operands.key, value: operands.value)
            }
            let unskipped = try state(nil).output.bits
            for threshold: Float in [0.5, 2, 5, 10, 20] {
                let state = try state(threshold)
                if threshold <= 10 { #expect(state.output.bits != unskipped, "\(set): nothing is skipped at \(threshold)") }
                for (index, row) in rows.enumerated() where row.visibleKeys > 0 {
                    let (scores, ranges) = scenes[index]
                    let limit = scores.max()! - Double(threshold) + 1e-3
                    let mass = scores.filter { $0 <= limit }.reduce(0) { $0 + exp($1 - row.logSumExp) }
                    let bound = AttentionErrorBound(row, headDim: 16)
                    let lse = Double(state.logSumExp[flat: index])
                    #expect(abs(lse - row.logSumExp) <= 2 * bound.logSumExp - log(max(0, 1 - mass)), "\(set), row \(index)")
                    for (channel, expected) in row.output.enumerated() {
                        let error = abs(Double(state.output[flat: index * 11 + channel]) - expected)
                        if !(error <= 2 * bound.output + mass * ranges[channel]) {
                            Issue.record("\(set), \(threshold): row \(index), channel \(channel) is \(error) off")
                        }
                    }
                }
            }
        }
    }

    // MARK: - Crafted steps

    /// Scores are the products of single channels: `high` for the first 128 keys, and `low` for the rest.
    struct Steps {
        let shape: AttentionShape
        var query: Tensor<Float>
        let key: Tensor<Float>
        var value: Tensor<Float>

        init(high: Float, low: Float, query: Float = 1) throws {
            shape = try AttentionShape(queryLength: 100, keyLength: 256, queryHeads: 1, kvHeads: 1, headDim: 1, valueDim: 3)
            self.query = try Tensor([1, 100, 1]) { _ in query }
            key = try Tensor([1, 256, 1]) { $0 < 128 ? high : low }
            value = try .normal([1, 256, 3], seed: 9)
        }

        func run(_ threshold: Float?, _ set: InstructionSet, columns: Int = 2) throws -> AttentionState {
            let mask = try BlockMask(grid: BlockGrid(shape, isCausal: false)) { _, _, column in column < columns }
            return try BlockSparseAttention(
                shape, mask: mask, modifiers: ScoreModifiers(softmaxScale: 1), pvSkipThreshold: threshold,
                instructionSet: set)(query: query, key: key, value: value)
        }
    }

    @Test("a step exactly at the threshold is skipped, one above it is not", arguments: InstructionSet.available)
    func exactThreshold(_ set: InstructionSet) throws {
        let steps = try Steps(high: 16, low: 6)
        let (all, first) = try (steps.run(nil, set), steps.run(nil, set, columns: 1))
        #expect(all.output.bits != first.output.bits)
        for threshold: Float in [1, 9.75, 10] {
            #expect(try steps.run(threshold, set).output.bits == first.output.bits, "\(set), \(threshold)")
            #expect(try steps.run(threshold, set).logSumExp.bits == first.logSumExp.bits, "\(set), \(threshold)")
        }
        for threshold: Float in [10.0625, 11, 80] {
            #expect(try steps.run(threshold, set).output.bits == all.output.bits, "\(set), \(threshold)")
        }
    }

    @Test("values of skipped keys are not read", arguments: InstructionSet.available)
    func skippedValues(_ set: InstructionSet) throws {
        var steps = try Steps(high: 16, low: 6)
        let first = try steps.run(nil, set, columns: 1)
        steps.value[flat: 200 * 3] = .nan
        #expect(try steps.run(10, set).output.bits == first.output.bits)
        #expect(try steps.run(nil, set).output[flat: 0].isNaN)
    }

    @Test("one row that needs a step keeps it for its panel", arguments: InstructionSet.available)
    func panelsDecideTogether(_ set: InstructionSet) throws {
        var steps = try Steps(high: 16, low: 6)
        // Row 0 weighs all keys alike. Its panel is 12 to 48 queries wide; rows from 48 on are in others on every level.
        steps.query[flat: 0] = 0
        let (all, first, skipping) = try (steps.run(nil, set), steps.run(nil, set, columns: 1), steps.run(10, set))
        #expect(skipping.output.bits.prefix(12 * 3) == all.output.bits.prefix(12 * 3))
        #expect(skipping.output.bits.suffix(52 * 3) == first.output.bits.suffix(52 * 3))
    }

    /// m − threshold is m itself where the spacing of floats exceeds the threshold.
    @Test(
        "equal scores are never skipped, however large they are", arguments: InstructionSet.available,
        [Float(1), 1e4, -1e4, 1e15])
    func hugeScores(_ set: InstructionSet, _ size: Float) throws {
        let steps = try Steps(high: abs(size), low: abs(size), query: size)
        #expect(try steps.run(0.5, set).output.bits == steps.run(nil, set).output.bits)
        #expect(try steps.run(0.5, set).logSumExp.bits == steps.run(nil, set).logSumExp.bits)
    }

    @Test("rows that have seen no key skip no key that they see", arguments: InstructionSet.available)
    func firstKeysAreKept(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 200, keyLength: 200, queryHeads: 1, kvHeads: 1, headDim: 1)
        let key = try Tensor<Float>([1, 200, 1]) { _ in -1e3 }
        let ones = try Tensor<Float>([1, 200, 1]) { _ in 1 }
        let attention = try BlockSparseAttention(
            shape, heads: [.streaming(sink: 0, local: 1)], isCausal: true, pvSkipThreshold: 0.001, instructionSet: set)
        let state = try attention(query: ones, key: key, value: ones)
        #expect(state.output.elements.allSatisfy { $0 == 1 } && state.logSumExp.elements.allSatisfy { $0 == -1e3 })
    }

    @Test("a NaN key is not skipped", arguments: InstructionSet.available)
    func poisonedKeys(_ set: InstructionSet) throws {
        let steps = try Steps(high: 16, low: 6)
        var key = steps.key
        key[flat: 250] = .nan
        let attention = try BlockSparseAttention(
            steps.shape, heads: [.dense], isCausal: false, modifiers: ScoreModifiers(softmaxScale: 1), pvSkipThreshold: 1,
            instructionSet: set)
        let state = try attention(query: steps.query, key: key, value: steps.value)
        #expect(state.output.elements.allSatisfy(\.isNaN) && state.logSumExp.elements.allSatisfy(\.isNaN))
    }
}
