import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// NaN, infinities and huge numbers affect the rows that see them, as IEEE arithmetic demands, and no other row.
@Suite("Attention of non-finite input")
struct AttentionNonFiniteTests {
    /// A clean run, and its comparison with runs in which one element is poisoned.
    struct Scene {
        let shape: AttentionShape
        let mask: AttentionMask
        let attention: DenseAttention
        var query: Tensor<Float>
        var key: Tensor<Float>
        var value: Tensor<Float>
        let clean: AttentionState

        /// More than two panels of the widest level and two steps of keys. The widths end within a tile.
        init(_ set: InstructionSet, _ mask: AttentionMask, queryLength: Int = 110, keyLength: Int = 150) throws {
            shape = try AttentionShape(
                queryLength: queryLength, keyLength: keyLength, queryHeads: 4, kvHeads: 2, headDim: 10, valueDim: 13)
            self.mask = mask
            attention = try DenseAttention(shape, mask: mask, instructionSet: set)
            query = try .normal([4, queryLength, 10], seed: 51)
            key = try .normal([2, keyLength, 10], seed: 52)
            value = try .normal([2, keyLength, 13], seed: 53)
            clean = try attention(query: query, key: key, value: value)
        }

        func run() throws -> AttentionState { try attention(query: query, key: key, value: value) }

        /// Whether query row `row` of all heads sees key `token` of head `kvHead`.
        func sees(row: Int, kvHead: Int, token: Int) -> Bool {
            row / shape.queryLength / shape.queryHeadsPerKVHead == kvHead
                && ReferenceAttention(shape, mask: mask).isVisible(query: row % shape.queryLength, key: token)
        }

        /// The first wrong row. Rows are NaN where `isSpoiled`, anything where `isOpen`, and else have the clean run's bits.
        func firstWrongRow(
            _ state: AttentionState, isSpoiled: (Int) -> Bool, isOpen: (Int) -> Bool = { _ in false }
        ) -> Int? {
            let (output, lse) = (state.output.elements, state.logSumExp.elements)
            let (cleanOutput, cleanLSE) = (clean.output.bits, clean.logSumExp.bits)
            return (0..<lse.count).first { row in
                let channels = row * shape.valueDim..<(row + 1) * shape.valueDim
                if isOpen(row) { return false }
                if isSpoiled(row) { return !lse[row].isNaN || output[channels].contains { !$0.isNaN } }
                return output[channels].map(\.bitPattern) != Array(cleanOutput[channels])
                    || lse[row].bitPattern != cleanLSE[row]
            }
        }
    }

    static let masks: [AttentionMask] = [.full, .causal, .causal(window: 20), .full(window: 9)]
    static let poisons: [Float] = [.nan, .infinity, -.infinity]
    /// Keys at the edges of tiles, panels and steps.
    static let tokens = [0, 1, 40, 63, 77, 127, 128, 149]

    @Test("a poisoned query row spoils only itself", arguments: InstructionSet.available)
    func poisonedQuery(_ set: InstructionSet) throws {
        for poison in Self.poisons {
            for row in [0, 15, 16, 47, 48, 109, 110, 439] {
                var scene = try Scene(set, .causal)
                scene.query[flat: row * 10 + 3] = poison
                // ±∞ makes scores of both signs, and ∞ − ∞ is NaN.
                let wrong = try scene.firstWrongRow(scene.run(), isSpoiled: { $0 == row })
                #expect(wrong == nil, "\(set): \(poison) in row \(row)")
            }
        }
    }

    @Test("a NaN key spoils exactly the rows that see it", arguments: InstructionSet.available, masks)
    func poisonedKey(_ set: InstructionSet, _ mask: AttentionMask) throws {
        let scene = try Scene(set, mask)
        for token in Self.tokens {
            for kvHead in 0..<2 {
                var poisoned = scene
                poisoned.key[flat: (kvHead * 150 + token) * 10 + 9] = .nan
                let wrong = try scene.firstWrongRow(
                    poisoned.run(), isSpoiled: { scene.sees(row: $0, kvHead: kvHead, token: token) })
                #expect(wrong == nil, "\(set): key \(token) of head \(kvHead)")
            }
        }
    }

    @Test("an infinite key wins or vanishes by the sign of its score", arguments: InstructionSet.available, masks)
    func infiniteKey(_ set: InstructionSet, _ mask: AttentionMask) throws {
        let scene = try Scene(set, mask)
        for token in [0, 63, 128] {
            var poisoned = scene
            poisoned.key[flat: token * 10] = .infinity
            let state = try poisoned.run()
            // The other channels are finite, so the score is ±∞ by the sign of q's channel 0. +∞ gives ∞ − ∞ in the softmax. −∞
            // hides the key, so that the row attends to the others.
            let seers = (0..<440).filter { scene.sees(row: $0, kvHead: 0, token: token) }
            let won = Set(seers.filter { scene.query[flat: $0 * 10] > 0 })
            let lost = Set(seers).subtracting(won)
            let wrong = scene.firstWrongRow(state, isSpoiled: won.contains, isOpen: lost.contains)
            #expect(wrong == nil, "\(set): key \(token)")
            let reference = ReferenceAttention(scene.shape, mask: mask)
            for row in lost where row % 5 == 0 {
                let expected = try reference.row(
                    head: row / 110, token: row % 110, query: scene.query.view(), key: scene.key.view(),
                    value: scene.value.view(), hides: { $0 == token })
                let bound = AttentionErrorBound(expected, headDim: 10)
                for (channel, value) in expected.output.enumerated() {
                    let actual = Double(state.output[flat: row * 13 + channel])
                    #expect(abs(actual - value) <= bound.output, "\(set): key \(token), row \(row)")
                }
            }
        }
    }

    @Test("a poisoned value spoils its channel in exactly the rows that see it", arguments: InstructionSet.available, masks)
    func poisonedValue(_ set: InstructionSet, _ mask: AttentionMask) throws {
        let scene = try Scene(set, mask)
        let cleanBits = scene.clean.output.bits
        for poison in Self.poisons {
            for token in Self.tokens {
                for channel in [0, 12] {
                    var poisoned = scene
                    poisoned.value[flat: (150 + token) * 13 + channel] = poison
                    let state = try poisoned.run()
                    var wrong: [Int] = []
                    for (index, value) in state.output.elements.enumerated() {
                        // Weights of finite scores are positive, so an infinity keeps its sign.
                        let isTouched =
                            index % 13 == channel && scene.sees(row: index / 13, kvHead: 1, token: token)
                        let isRight =
                            isTouched
                            ? (poison.isNaN ? value.isNaN : value == poison) : value.bitPattern == cleanBits[index]
                        if !isRight { wrong.append(index) }
                    }
                    #expect(wrong.isEmpty, "\(set): \(poison) at token \(token), channel \(channel): \(wrong.prefix(4))")
                    #expect(state.logSumExp.bits == scene.clean.logSumExp.bits, "values have no part in the LSE")
                }
            }
        }
    }

    @Test("a NaN value reaches 16-bit rows that see it and no others", arguments: InstructionSet.available)
    func poisonedStagedValue(_ set: InstructionSet) throws {
        let scene = try Scene(set, .causal(window: 20))
        var value = scene.value.converted(to: Float16.self)
        let clean = try attend(scene.attention, query: scene.query, key: scene.key, value: value, as: BFloat16.self)
        value[flat: 90 * 13 + 5] = .nan
        let state = try attend(scene.attention, query: scene.query, key: scene.key, value: value, as: BFloat16.self)
        for index in 0..<state.output.count {
            let isTouched = index % 13 == 5 && scene.sees(row: index / 13, kvHead: 0, token: 90)
            let (actual, before) = (state.output[flat: index], clean.output[flat: index])
            if isTouched ? !actual.floatValue.isNaN : actual != before { Issue.record("\(set): element \(index)") }
        }
    }

    // MARK: - Rows without keys

    @Test(
        "queries before the first key are empty, whatever the operands hold", arguments: InstructionSet.available,
        [(60, 10), (200, 3), (110, 109)])
    func emptyRows(_ set: InstructionSet, _ lengths: (queries: Int, keys: Int)) throws {
        let missing = lengths.queries - lengths.keys
        for poison in Self.poisons + [1] {
            var scene = try Scene(set, .causal, queryLength: lengths.queries, keyLength: lengths.keys)
            for index in 0..<scene.value.count { scene.value[flat: index] = poison }
            for index in 0..<scene.key.count { scene.key[flat: index] = poison }
            let state = try scene.run()
            for row in 0..<4 * lengths.queries where row % lengths.queries < missing {
                let channels = state.output.elements[row * 13..<(row + 1) * 13]
                if !channels.allSatisfy({ $0.bitPattern == 0 }) || state.logSumExp[flat: row] != -.infinity {
                    Issue.record("\(set): row \(row) with \(poison)")
                }
            }
            // The other rows see a key.
            if poison == 1 {
                let others = (0..<4 * lengths.queries).filter { $0 % lengths.queries >= missing }
                #expect(others.allSatisfy { state.logSumExp[flat: $0].isFinite }, "\(set)")
            }
        }
    }

    // MARK: - Huge scores

    @Test("one dominating key of score 1e30 gives its value", arguments: InstructionSet.available)
    func dominatingKey(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 20, keyLength: 150, queryHeads: 1, kvHeads: 1, headDim: 4, valueDim: 5)
        let attention = try DenseAttention(shape, modifiers: ScoreModifiers(softmaxScale: 1), instructionSet: set)
        let value = try Tensor<Float>.normal([1, 150, 5], seed: 61)
        for winner in [0, 5, 127, 149] {
            for others: Float in [0, -1e15, 0.9e15] {
                let query = try Tensor<Float>([1, 20, 4]) { $0 % 4 == 0 ? 1e15 : 0 }
                let key = try Tensor<Float>([1, 150, 4]) { $0 % 4 == 0 ? ($0 / 4 == winner ? 1e15 : others) : 1 }
                let state = try attention(query: query, key: key, value: value)
                // The winner's weight is exactly 1 and the others' weights are exactly 0.
                let wanted = Array(value.bits[winner * 5..<(winner + 1) * 5])
                for row in 0..<20 { #expect(Array(state.output.bits[row * 5..<(row + 1) * 5]) == wanted, "\(set)") }
                // q·scale, the product and the LSE are rounded, and 1e15 twice as a float: within 6u.
                let bound = 6 * AttentionErrorBound.unitRoundoff * 1e30
                #expect(state.logSumExp.elements.allSatisfy { abs(Double($0) - 1e30) <= bound }, "\(set)")
            }
        }
    }

    @Test("equal scores of ±1e30 average the values", arguments: InstructionSet.available, [Float(1e15), -1e15])
    func hugeEqualScores(_ set: InstructionSet, _ size: Float) throws {
        let shape = try AttentionShape(queryLength: 20, keyLength: 150, queryHeads: 1, kvHeads: 1, headDim: 4, valueDim: 5)
        let attention = try DenseAttention(shape, instructionSet: set)
        let value = try Tensor<Float>.normal([1, 150, 5], seed: 62)
        let query = try Tensor<Float>([1, 20, 4]) { _ in 1e15 }
        let key = try Tensor<Float>([1, 150, 4]) { _ in size }
        let state = try attention(query: query, key: key, value: value)
        // All weights are exactly 1, so only the sum of 150 values and the division round. λ is that of `AttentionErrorBound`.
        let largest = value.elements.reduce(0) { max($0, abs(Double($1))) }
        let bound = (AttentionErrorBound.confidence * 150.squareRoot() + 4) * AttentionErrorBound.unitRoundoff * largest
        for channel in 0..<5 {
            let mean = (0..<150).reduce(0) { $0 + Double(value[flat: $1 * 5 + channel]) } / 150
            for row in 0..<20 { #expect(abs(Double(state.output[flat: row * 5 + channel]) - mean) <= bound, "\(set)") }
        }
    }

    @Test("a soft cap bounds infinite scores", arguments: InstructionSet.available)
    func cappedInfinity(_ set: InstructionSet) throws {
        // q·k = ±∞ becomes ±cap, so that two keys have the weights e² and e⁻² and nothing is NaN.
        let shape = try AttentionShape(queryLength: 3, keyLength: 2, queryHeads: 1, kvHeads: 1, headDim: 1)
        let modifiers = ScoreModifiers(softmaxScale: 1, logitsSoftCap: 2)
        let state = try DenseAttention(shape, modifiers: modifiers, instructionSet: set)(
            query: Tensor<Float>([1, 3, 1], [1, 1, 1]), key: Tensor<Float>([1, 2, 1], [.infinity, -.infinity]),
            value: Tensor<Float>([1, 2, 1], [1, 0]))
        // As in `AttentionErrorBound`, σ is the error of tanh and of rounding cap·tanh; 2e-7·(1 + 4/2) is the error of e⁻⁴.
        let u = AttentionErrorBound.unitRoundoff
        let sigma = (4e-7 + 3 * u) * 2
        let bound = 2 * (2 * sigma + 2e-7 * 3) + 6 * u
        let expected = 0.982_013_790_037_908_4  // e⁴ / (e⁴ + 1)
        for index in 0..<3 { #expect(abs(Double(state.output[flat: index]) - expected) <= bound, "\(set)") }
    }
}
