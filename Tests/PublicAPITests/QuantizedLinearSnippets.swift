import SparseKernels
import Testing

/// The snippets of Docs/Operators/QuantizedLinear.md, with checks of their comments.
@Suite("Snippets: quantised linear layers")
struct QuantizedLinearSnippets {
    /// A layer of 48 × 128 with weights of 1/64: codes of 1 with a scale of 1/64.
    static func weight() throws -> (codes: Tensor<UInt8>, scales: Tensor<Float>) {
        try (Tensor([48, 64]) { _ in 0x11 }, Tensor([48, 2]) { _ in 1.0 / 64 })
    }

    @Test("a layer with a low-rank branch, and its codes")
    func layer() throws {
        let (codes, scales) = try Self.weight()
        let smooth = try Tensor<Float>([128]) { _ in 2 }
        let (down, up) = try (Tensor<Float>([32, 128]) { _ in 0.125 }, Tensor<Float>([48, 32]) { _ in 0.25 })
        let bias = try Tensor<Float>([48]) { Float($0) }
        let x = try Tensor<Float>([10, 128]) { $0 % 2 == 0 ? 14 : -2 }

        // codes: [48, 64] bytes of two codes each, the even column in the low nibble; scales: [48, 2].
        let weight = try QuantizedWeight(format: .svdQuantInt4, inFeatures: 128, codes: codes, scales: scales)
        let branch = try LowRankBranch(down: down, up: up)  // [32, 128], [48, 32]

        // Packed for the kernels of this machine; the logical form can go.
        let layer = try QuantizedLinear(
            PackedWeight(weight), activation: .int4, smooth: smooth, lowRank: branch, bias: bias)
        let y = try layer(x)
        print(y.shape)  // [10, 48]

        let activations = try layer.quantized(x)
        print(activations.codes.shape, activations.scales.shape)  // [10, 128] [10, 2]

        #expect(y.shape == [10, 48])
        #expect(activations.codes.shape == [10, 128] && activations.scales.shape == [10, 2])
        // x / 2 is 7, −1, …: the scale is 1. Integers and powers of 2 are exact: 64·(7 − 1)/64, and 32 times 64·(14 − 2)/8 · ¼.
        #expect(activations.codes[flat: 0] == 7 && activations.codes[flat: 1] == -1 && activations.scales[flat: 0] == 1)
        #expect(y[flat: 3 * 48 + 5] == 6 + 768 + 5)
    }

    @Test("rows of larger matrices, and a weight that two layers share")
    func views() throws {
        let (codes, scales) = try Self.weight()
        let weight = try QuantizedWeight(format: .svdQuantInt4, inFeatures: 128, codes: codes, scales: scales)
        let memory = (0..<10 * 200).map { index -> Float in index % 200 < 128 ? Float(index % 8) - 3 : .nan }
        var result = [Float](repeating: 0, count: 10 * 64)
        let x = try Tensor<BFloat16>([10, 128]) { BFloat16(Float($0 % 8) - 3) }
        var halves = try Tensor<Float16>(zeros: [10, 48])

        let packed = try PackedWeight(weight)
        let exact = try QuantizedLinear(packed, activation: .float)  // W4A16
        let fast = try QuantizedLinear(packed, activation: .int8PerToken, epilogue: .gelu)  // W4A8

        // The first 128 of 200 columns of every row; the output goes to a larger matrix as well.
        let rows = try MatrixView(memory.span, rows: 10, columns: 128, rowStride: 200)
        try exact.run(x: rows, y: MutableMatrixView(result.mutableSpan, rows: 10, columns: 48, rowStride: 64))
        try fast.run(x, into: &halves)  // a Tensor<Float16> of [10, 48]

        // Σ −3…4 is 4, sixteen times, divided by 64. GELU(1) = 0.8412, with the error of 8-bit codes.
        #expect(result[9 * 64 + 47] == 1 && result[9 * 64 + 48] == 0)
        #expect(abs(Float(halves[flat: 479]) - 0.8412) < 0.01)
    }

    @Test("layers over one input, and layers of numbers")
    func groups() throws {
        let (codes, scales) = try Self.weight()
        let weight = try QuantizedWeight(format: .svdQuantInt4, inFeatures: 128, codes: codes, scales: scales)
        let layer = try QuantizedLinear(PackedWeight(weight), activation: .int4)
        let other = try QuantizedLinear(PackedWeight(weight), activation: .int4, epilogue: .silu)
        let x = try Tensor<Float>([10, 128]) { $0 % 2 == 0 ? 7 : -1 }
        let halfWeights = try Tensor<Float16>([48, 128]) { _ in 1.0 / 64 }

        let projections = try QuantizedLinearGroup([layer, other])  // one activation format, equal smoothing
        let outputs = try projections(x)  // [10, 48 + 48], side by side

        let head = try FloatLinear(weight: halfWeights)  // Float, Float16 or BFloat16; [48, 128]
        let both = try FloatLinear(weights: [halfWeights, halfWeights])
        try print(head(x).shape, both(x).shape)  // [10, 48] [10, 96]

        #expect(outputs.shape == [10, 96] && outputs[flat: 0] == 6)
        #expect(try head(x)[flat: 0] == 6 && both(x)[flat: 95] == 6)
    }
}
