import SparseKernels
import Testing

/// The snippets of Docs/Operators/SparseLinear.md.
@Suite("Snippets: SparseLinear")
struct SparseLinearSnippets {
    @Test("an MLP with picked channels, and its gradient")
    func mlp() throws {
        let (tokens, model, inner) = (3, 8, 40)
        let g = try Tensor<Float>([inner, model]) { Float($0 % 7) - 3 }
        let u = try Tensor<Float>([inner, model]) { Float($0 % 5) - 2 }
        let d = try Tensor<Float>([model, inner]) { Float($0 % 3) - 1 }
        let x = try Tensor<Float>([tokens, model]) { Float($0 % 4) - 1 }
        let scores = (0..<inner).map { Float(($0 * 7) % inner) }
        var y = try Tensor<Float>(zeros: [tokens, model])

        let gate = try SparseLinear(weight: g, picking: .outputs)  // g and u: [inner, model]
        let up = try SparseLinear(weight: u, picking: .outputs)
        let down = try SparseLinear(weight: d, picking: .inputs)  // d: [model, inner]

        // The tenth of the channels with the largest scores.
        let count = try ChannelSubset.count(ofWidth: scores.count, sparsity: 0.9)
        let kept = try ChannelSubset.strongest(scores, count: count)

        var (a, b) = (try Tensor<Float>(zeros: [tokens, count]), try Tensor<Float>(zeros: [tokens, count]))
        try gate.run(x: x.matrixView(), channels: kept, y: a.mutableMatrixView())
        try up.run(x: x.matrixView(), channels: kept, y: b.mutableMatrixView())
        var hidden = try Tensor<Float>(zeros: [tokens, count])
        try GatedActivation(.silu).run(gate: a.matrixView(), up: b.matrixView(), into: hidden.mutableMatrixView())
        try down.run(x: hidden.matrixView(), channels: kept, y: y.mutableMatrixView())

        #expect(kept.indices.map { scores[Int($0)] }.sorted() == scores.sorted().suffix(count))
        var expected: Float = 0
        for (t, channel) in kept.indices.enumerated() { expected += hidden[1, t] * d[2, Int(channel)] }
        #expect(abs(y[1, 2] - expected) < 1e-3)

        let dy = y
        var dHidden = try Tensor<Float>(zeros: [tokens, kept.count])
        try down.inputGradient(dy.matrixView(), channels: kept, into: dHidden.mutableMatrixView())

        let first = (0..<model).reduce(Float(0)) { $0 + dy[0, $1] * d[$1, Int(kept.indices[0])] }
        #expect(abs(dHidden[0, 0] - first) < 1e-2)
    }

    @Test("columns")
    func columns() throws {
        let kept = try ChannelSubset([1, 4], of: 6)
        let wide = try Tensor<Float>([2, 6]) { Float($0) }
        var (compact, back) = (try Tensor<Float>(zeros: [2, 2]), try Tensor<Float>(zeros: [2, 6]))

        let moves = try ColumnMoves()
        try moves.gather(wide.matrixView(), kept, into: compact.mutableMatrixView())
        try moves.scatter(compact.matrixView(), kept, into: back.mutableMatrixView())  // other columns are 0

        #expect(compact.elements == [1, 4, 7, 10])
        #expect(back.elements == [0, 1, 0, 0, 4, 0, 0, 7, 0, 0, 10, 0])
    }

    @Test("a quantised layer")
    func quantized() throws {
        let w = try Tensor<Float>([16, 256]) { Float($0 % 15) - 7 }
        let part = try Tensor<Float>([1, 128]) { Float($0 % 3) }
        var out = try Tensor<Float>(zeros: [1, 16])

        let layer = try QuantizedLinear(PackedWeight(WeightQuantizer(.svdQuantInt4)(w)), activation: .float)
        let sparse = try SparseQuantizedLinear(layer, picking: .inputs)
        print(sparse.blockSize)  // 64: the inputs of a group share a scale
        let groups = try ChannelSubset([0, 3], of: sparse.blocks)
        try sparse.run(x: part.matrixView(), channels: sparse.channels(ofBlocks: groups), y: out.mutableMatrixView())

        #expect(sparse.blockSize == 64)
        var expected: Float = 0
        for k in 0..<128 { expected += part[0, k] * w[5, k < 64 ? k : k + 128] }
        #expect(abs(out[0, 5] - expected) < 0.01 * abs(expected) + 1)
    }
}
