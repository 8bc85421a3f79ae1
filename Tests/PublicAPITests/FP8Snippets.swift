import SparseKernels
import Testing

/// The snippets of Docs/Operators/FP8.md, with checks of their comments.
@Suite("Snippets: FP8")
struct FP8Snippets {
    @Test("a layer with weights of 8 bits")
    func layer() throws {
        let (w, bias) = try (RowOperatorsSnippets.pattern([32, 48], 7), RowOperatorsSnippets.pattern([32], 5))
        let x = try RowOperatorsSnippets.pattern([3, 48], 3)

        let weight = try Float8Tensor<E4M3>(w)  // codes, and scale = 448 / max |w|
        let layer = try FloatLinear(weight: weight, bias: bias)
        let y = try layer(x)
        print(y.shape, layer.byteCount < 2 * w.count)  // [3, 32] true

        #expect(y.shape == [3, 32] && layer.byteCount < 2 * w.count)
        #expect(weight.scale == 448 / w.elements.map(abs).max()!)
    }

    @Test("a matrix to codes and back")
    func conversion() throws {
        let x = try RowOperatorsSnippets.pattern([3, 48], 3)
        var (codes, back) = (try Tensor<E5M2>(zeros: [3, 48]), try Tensor<Float>(zeros: [3, 48]))

        let conversion = try Float8Conversion(Float8Scaling(usesPowersOfTwo: true))
        let scale = try conversion.quantize(x.matrixView(), into: codes.mutableMatrixView())
        try conversion.dequantize(codes.matrixView(), scale: scale, into: back.mutableMatrixView())

        #expect(zip(x.elements, back.elements).allSatisfy { abs($0 - $1) <= abs($0) / 8 })
    }
}
