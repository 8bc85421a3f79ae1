import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Merging attention over parts of the keys gives attention over all of them.
@Suite("Attention states")
struct AttentionStateTests {
    /// Attention by the oracle over all keys, and by a plan over any range of them.
    struct Scene {
        let shape: AttentionShape
        let query: Tensor<Float>
        let key: Tensor<Float>
        let value: Tensor<Float>
        let set: InstructionSet

        init(_ set: InstructionSet, scale: Float = 1) throws {
            self.set = set
            shape = try AttentionShape(queryLength: 11, keyLength: 150, queryHeads: 4, kvHeads: 2, headDim: 16, valueDim: 9)
            query = try .normal([4, 11, 16], seed: 91, scale: scale)
            key = try .normal([2, 150, 16], seed: 92)
            value = try .normal([2, 150, 9], seed: 93)
        }

        /// The state over the keys in `range`, which strided views read in place.
        func state(_ range: Range<Int>) throws -> AttentionState {
            let part = try AttentionShape(
                queryLength: 11, keyLength: range.count, queryHeads: 4, kvHeads: 2, headDim: 16, valueDim: 9)
            let keys = try TensorGeometry(heads: 2, tokens: range.count, channels: 16, headStride: 150 * 16, tokenStride: 16)
            let values = try TensorGeometry(heads: 2, tokens: range.count, channels: 9, headStride: 150 * 9, tokenStride: 9)
            var output = try Tensor<Float>(zeros: [4, 11, 9])
            var logSumExp = try Tensor<Float>(zeros: [4, 11])
            try DenseAttention(part, instructionSet: set).run(
                query: query.view(), key: TensorView(key.span.extracting((range.lowerBound * 16)...), geometry: keys),
                value: TensorView(value.span.extracting((range.lowerBound * 9)...), geometry: values),
                output: output.mutableView(), logSumExp: logSumExp.mutableSpan)
            return try AttentionState(output: output, logSumExp: logSumExp)
        }

        /// The oracle's rows over all keys.
        func rows() throws -> [ReferenceAttention.Row] {
            try referenceRows(ReferenceAttention(shape), query: query, key: key, value: value)
        }

        /// Compares the result of `merges` merges with attention over all keys.
        ///
        /// Let δo and δL be the bounds of a part, V = max|v|, and w, w' the weights of a merge, w + w' = 1:
        ///
        ///     |δo| ≤ w·δo + w'·δo' + w·w'·|δL − δL'|·|o − o'| + 4u·V  ≤  δo + δL·V + 4u·V
        ///
        /// because w·w' ≤ ¼, |o − o'| ≤ 2V and |δL − δL'| ≤ 2δL. 4u rounds two weights, two products and their sum. For the
        /// LSE, |δL| is at most max(δL, δL') + u·|LSE|, with the rounding of its store. Each merge adds its terms to δo and δL
        /// for the next. The bounds over all keys replace w·δo + w'·δo' of the parts, because the probabilities of a part times
        /// its weight are those of the whole. They are doubled because a part's deviations D are measured from its own output.
        func expectMatch(_ state: AttentionState, merges: Int, _ label: String) throws {
            let u = AttentionErrorBound.unitRoundoff
            let largest = value.elements.reduce(0) { max($0, abs(Double($1))) }
            for (index, row) in try rows().enumerated() {
                let bound = AttentionErrorBound(row, headDim: shape.headDim)
                var (output, lse) = (2 * bound.output, 2 * bound.logSumExp)
                for _ in 0..<merges {
                    output += (lse + 4 * u) * largest
                    lse += u * abs(row.logSumExp)
                }
                let actual = Double(state.logSumExp[flat: index])
                #expect(abs(actual - row.logSumExp) <= lse, "\(label), LSE of row \(index)")
                for (channel, expected) in row.output.enumerated() {
                    let excess = abs(Double(state.output[flat: index * 9 + channel]) - expected) - output
                    if !(excess <= 0) { Issue.record("\(label): row \(index), channel \(channel) is \(excess) off its bound") }
                }
            }
        }
    }

    @Test("two parts merge into the whole, either way round", arguments: InstructionSet.available, [1, 64, 75, 128, 149])
    func twoParts(_ set: InstructionSet, _ cut: Int) throws {
        let scene = try Scene(set)
        let (a, b) = try (scene.state(0..<cut), scene.state(cut..<150))
        try scene.expectMatch(a.merging(b), merges: 1, "\(set), cut at \(cut)")
        try scene.expectMatch(b.merging(a), merges: 1, "\(set), cut at \(cut), reversed")
    }

    /// Larger queries let one part outweigh another by many powers of e.
    @Test("three parts merge into the whole in any order", arguments: InstructionSet.available, [Float(1), 6])
    func threeParts(_ set: InstructionSet, _ scale: Float) throws {
        let scene = try Scene(set, scale: scale)
        let parts = try [scene.state(0..<40), scene.state(40..<41), scene.state(41..<150)]
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let left = try parts[order[0]].merging(parts[order[1]]).merging(parts[order[2]])
            try scene.expectMatch(left, merges: 2, "\(set), \(order), from the left")
            let right = try parts[order[0]].merging(parts[order[1]].merging(parts[order[2]]))
            try scene.expectMatch(right, merges: 2, "\(set), \(order), from the right")
        }
    }

    @Test("parts without a visible key change nothing", arguments: InstructionSet.available)
    func partWithoutKeys(_ set: InstructionSet) throws {
        let scene = try Scene(set)
        let state = try scene.state(0..<150)
        let identity = try AttentionState(heads: 4, tokens: 11, valueDim: 9)
        #expect(identity.output.elements.allSatisfy { $0 == 0 })
        #expect(identity.logSumExp.elements.allSatisfy { $0 == -.infinity })
        for merged in try [state.merging(identity), identity.merging(state)] {
            #expect(merged.output.bits == state.output.bits)
            #expect(merged.logSumExp.bits == state.logSumExp.bits)
        }
        // Merging nothing with nothing gives nothing, and not NaN.
        #expect(try identity.merging(identity) == identity)

        // A plan gives the same when the bias hides all keys from every row.
        let hidden = try Tensor<Float>([1, 11, 150]) { _ in -.infinity }
        let empty = try DenseAttention(scene.shape, instructionSet: set)(
            query: scene.query, key: scene.key, value: scene.value, bias: hidden)
        #expect(empty == identity)
    }

    // MARK: - Single rows

    static func row(_ output: Float, _ logSumExp: Float) throws -> AttentionState {
        try AttentionState(output: Tensor([1, 1, 1], [output]), logSumExp: Tensor([1, 1], [logSumExp]))
    }

    @Test("rows are empty or not independently of each other")
    func mixedRows() throws {
        let a = try AttentionState(
            output: Tensor([1, 4, 1], [1, 0, 3, 0]), logSumExp: Tensor([1, 4], [0, -.infinity, 2, -.infinity]))
        let b = try AttentionState(
            output: Tensor([1, 4, 1], [5, 6, 0, 0]), logSumExp: Tensor([1, 4], [0, 1, -.infinity, -.infinity]))
        for merged in try [a.merging(b), b.merging(a)] {
            #expect(merged.output.elements == [3, 6, 3, 0])
            #expect(merged.logSumExp.elements == [Float(Foundation.log(2.0)), 1, 2, -.infinity])
        }
    }

    @Test("a part that outweighs the other by far leaves it without trace", arguments: [Float(200), 1e4, 1e30, 3e38])
    func hugeDifference(_ difference: Float) throws {
        let (heavy, light) = try (Self.row(2.5, difference), Self.row(-7, -difference))
        for merged in try [heavy.merging(light), light.merging(heavy)] {
            #expect(merged.output.elements == [2.5])
            #expect(merged.logSumExp.elements == [difference])
        }
    }

    @Test("weights follow the LSE values, however large those are", arguments: [Float(-1e4), -80, 0, 80, 1e4])
    func weights(_ offset: Float) throws {
        // Equal parts of any height are averaged exactly, because both weights are ½.
        let equal = try Self.row(1, offset).merging(Self.row(4, offset))
        #expect(equal.output.elements == [2.5])
        let height = Double(offset) + Foundation.log(2)
        #expect(equal.logSumExp.elements == [Float(height)])
        // The weights are 2 : 1. There is one u for each rounded weight, product and sum, times max|o| = 4. ln 2 is a
        // difference of two floats of size |offset|; its error is their rounding, of which at most ¼ reaches the weights.
        let uneven = try Self.row(1, offset + Float(Foundation.log(2.0))).merging(Self.row(4, offset))
        let u = AttentionErrorBound.unitRoundoff
        let bound = 4 * u * 4 + u * (abs(Double(offset)) + 1) / 4 * 3
        #expect(abs(Double(uneven.output[flat: 0]) - 2) <= bound)
    }

    @Test("NaN stays in its row")
    func nonFiniteRows() throws {
        let a = try AttentionState(output: Tensor([1, 2, 1], [.nan, 1]), logSumExp: Tensor([1, 2], [.nan, 0]))
        let b = try AttentionState(output: Tensor([1, 2, 1], [3, 3]), logSumExp: Tensor([1, 2], [0, 0]))
        for merged in try [a.merging(b), b.merging(a)] {
            #expect(merged.output[flat: 0].isNaN && merged.logSumExp[flat: 0].isNaN)
            #expect(merged.output[flat: 1] == 2)
        }
    }

    // MARK: - Errors

    @Test("states of other shapes are refused, and the state is left as it was")
    func shapeErrors() throws {
        let scene = try Scene(.portable)
        var state = try scene.state(0..<20)
        let before = state
        for (heads, tokens, channels) in [(3, 11, 9), (4, 10, 9), (4, 11, 8), (11, 4, 9)] {
            let other = try AttentionState(heads: heads, tokens: tokens, valueDim: channels)
            expectError(
                .invalidShape, "other.output", containing: ["[4, 11, 9]", "[\(heads), \(tokens), \(channels)]"]
            ) { try state.merge(other) }
            #expect(state == before)
        }
        expectError(.invalidShape, "output", containing: ["[4, 11]"]) {
            _ = try AttentionState(output: Tensor(zeros: [4, 11]), logSumExp: Tensor(zeros: [4, 11]))
        }
        expectError(.invalidShape, "logSumExp", containing: ["[4, 11]", "[4, 12]"]) {
            _ = try AttentionState(output: Tensor(zeros: [4, 11, 9]), logSumExp: Tensor(zeros: [4, 12]))
        }
        expectError(.invalidShape, "shape", containing: ["-1"]) {
            _ = try AttentionState(heads: -1, tokens: 2, valueDim: 3)
        }
    }

    @Test("merging a copy of itself keeps the output and adds ln 2")
    func selfMerge() throws {
        var state = try Self.row(1.5, 3)
        try state.merge(state)
        #expect(state.output.elements == [1.5])
        #expect(state.logSumExp.elements == [Float(3 + Foundation.log(2.0))])
    }
}
