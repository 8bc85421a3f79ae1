import SparseKernels
import Testing

/// The snippets of Docs/Operators/CausalConvolution.md, with checks of their comments.
@Suite("Snippets: causal convolution and gated norm")
struct CausalConvolutionSnippets {
    @Test("two prompts and a step")
    func convolution() throws {
        let (weight, bias) = try (RowOperatorsSnippets.pattern([6, 4], 7), RowOperatorsSnippets.pattern([6], 5))
        let (x, next) = try (RowOperatorsSnippets.pattern([7, 6], 3), RowOperatorsSnippets.pattern([2, 6], 11))
        var (y, out) = (try Tensor<Float>(zeros: [7, 6]), try Tensor<Float>(zeros: [2, 6]))

        let convolution = try CausalConvolution(weight: weight, bias: bias, activation: .silu)  // [channels, 4], [channels]
        let states = try convolution.makeStates(slots: 2)
        // Two prompts in one batch, and then a token of each.
        let prompts = try PackedSequences(lengths: [5, 2])
        try convolution.run(x.matrixView(), into: y.mutableMatrixView(), batch: prompts, states: states)
        let step = try PackedSequences(stepOf: [0, 1])
        try convolution.run(next.matrixView(), into: out.mutableMatrixView(), batch: step, states: states)

        #expect(try states.state(of: 1)[0, 2, 3] == next[1, 3])
        #expect(try states.state(of: 1)[0, 1, 3] == x[6, 3])
    }

    @Test("a norm of groups with a gate")
    func norm() throws {
        let (inner, z) = try (RowOperatorsSnippets.pattern([3, 64], 3), RowOperatorsSnippets.pattern([3, 64], 7))
        let scale = try RowOperatorsSnippets.pattern([64], 5)

        let norm = try GatedRMSNorm(weight: scale, groups: 8, epsilon: 1e-5, gate: .beforeNorm)
        let normal = try norm(inner, gate: z)
        print(normal.shape)  // [3, 64]

        #expect(normal.shape == [3, 64])
    }
}
