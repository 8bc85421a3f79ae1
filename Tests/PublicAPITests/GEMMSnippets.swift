import SparseKernels
import Testing

/// The snippets of Docs/Operators/GEMM.md.
@Suite("Snippets: GEMM")
struct GEMMSnippets {
    @Test("a linear layer")
    func linearLayer() throws {
        let (tokens, inFeatures, outFeatures) = (70, 96, 50)
        let activations = try Tensor<Float>([tokens, inFeatures]) { Float($0 % 7) - 3 }
        let weights = try Tensor<Float>([outFeatures, inFeatures]) { Float($0 % 5) - 2 }

        // activations: [tokens, inFeatures]; weights: [outFeatures, inFeatures], used transposed.
        let gemm = try GEMM(m: tokens, n: outFeatures, k: inFeatures, transposesB: true)
        var result = try Tensor<Float>(zeros: [tokens, outFeatures])
        try gemm.run(a: activations, b: weights, into: &result)

        // Small integers are exact.
        let expected = (0..<inFeatures).reduce(Float(0)) {
            $0 + activations[flat: 3 * inFeatures + $1] * weights[flat: 4 * inFeatures + $1]
        }
        #expect(result[flat: 3 * outFeatures + 4] == expected)
    }

    @Test("rows of a larger matrix")
    func views() throws {
        let source = (0..<10 * 24).map { Float($0 % 11) }
        let b = try Tensor<Float>([16, 4]) { Float($0 % 3) }
        var c = try Tensor<Float>(zeros: [10, 4])
        let gemm = try GEMM(m: 10, n: 4, k: 16)

        // The first 16 of 24 columns, in place.
        let a = try MatrixView(source.span, rows: 10, columns: 16, rowStride: 24)
        try gemm.run(a: a, b: b.matrixView(), c: c.mutableMatrixView(), on: .serial)

        let expected = (0..<16).reduce(Float(0)) { $0 + source[2 * 24 + $1] * b[flat: $1 * 4 + 3] }
        #expect(c[flat: 2 * 4 + 3] == expected)
    }
}
