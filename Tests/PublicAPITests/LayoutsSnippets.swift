import SparseKernels
import Testing

/// The snippet of Docs/Layouts/README.md.
@Suite("Snippets: layouts")
struct LayoutsSnippets {
    @Test("quantise and exchange a weight")
    func exchange() throws {
        let weight = try Tensor<Float>([8, 64]) { Float($0 % 13) / 13 - 0.5 }
        let format = try WeightFormat(.uint4, groupSize: 32)
        let quantized = try WeightQuantizer(format, scaleType: .float16)(weight)
        let layout = try AWQLayout(quantized)  // qweight, qzeros, scales
        let same = try layout.quantizedWeight()
        let values = try same.dequantized()  // [8, 64]
        let blocks = try GGMLBlocks(quantizing: weight, as: .q4_0)

        #expect(try values == quantized.dequantized() && layout.qweight.shape == [64, 1])
        // Scales are about 1/15, and the rounding error is at most half a scale, or a little more at the ends.
        #expect((0..<weight.count).allSatisfy { abs(values[flat: $0] - weight[flat: $0]) < 0.04 })
        #expect(blocks.bytes.shape == [8, 36])
    }
}
