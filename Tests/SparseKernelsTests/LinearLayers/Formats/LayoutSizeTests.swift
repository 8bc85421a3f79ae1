import SparseKernels
import SparseKernelsReference
import Testing

/// The size formulas and worked examples of Docs/Layouts.
@Suite("Sizes of weight layouts")
struct LayoutSizeTests {
    @Test(
        "rows take padded columns times bits, and a scale per group",
        arguments: [
            // Code, group size, K, bytes per row, groups.
            (WeightFormat.Code.int4, 64, 3072, 1536, 48), (.int4, 64, 100, 64, 2), (.int4, nil, 7, 4, 1),
            (.uint4, 128, 4096, 2048, 32), (.uint4, 32, 33, 32, 2), (.int8, nil, 3073, 3074, 1), (.int8, 32, 3072, 3072, 96),
            (.fp4, 16, 3072, 1536, 192), (.fp4, 16, 1, 8, 1),
        ] as [(WeightFormat.Code, Int?, Int, Int, Int)])
    func rows(_ code: WeightFormat.Code, _ groupSize: Int?, _ columns: Int, _ bytes: Int, _ groups: Int) throws {
        let format = try WeightFormat(code, groupSize: groupSize)
        let weight = try WeightQuantizer(format)(Tensor.normal([2, columns], seed: 1))
        #expect(weight.codes.shape == [2, bytes] && format.bytesPerRow(inFeatures: columns) == bytes)
        #expect(weight.scales.shape == [2, groups])
        #expect(weight.offsets?.shape == (code == .uint4 ? [2, groups] : nil))
        #expect(weight.channelScales?.shape == (code == .fp4 ? [2] : nil))
    }

    @Test("int4 codes are two's-complement nibbles, the even column low")
    func int4() throws {
        let weight = try WeightQuantizer(WeightFormat(.int4, groupSize: 16))(Tensor([1, 5], [7, -7, 1, -2, 0.4]))
        #expect(weight.scales.elements == [1])
        #expect(weight.codes.elements == [0x97, 0xe1, 0, 0, 0, 0, 0, 0])
    }

    @Test("uint4 codes count from the lowest value")
    func uint4() throws {
        let weight = try WeightQuantizer(WeightFormat(.uint4, groupSize: 16))(Tensor([1, 4], [-1.25, 2.5, 0, 0.3]))
        #expect(weight.scales.elements == [0.25] && weight.offsets?.elements == [1.25])
        #expect(weight.codes.elements == [0xf0, 0x65, 0, 0, 0, 0, 0, 0])
    }

    @Test("NVFP4 codes are E2M1, under an E4M3 scale and one for the whole weight")
    func nvfp4() throws {
        // 2688 = 448 · 6, so that both scales are exact.
        let weight = try WeightQuantizer(.nvfp4)(Tensor([1, 4], [2688, -1344, 224, -100]))
        #expect(weight.channelScales?.elements == [1] && weight.scales.elements == [448])
        #expect(weight.codes.elements == [0xd7, 0x01, 0, 0, 0, 0, 0, 0])
        #expect(try weight.dequantized().elements == [2688, -1344, 224, 0])
    }

    @Test("int8 codes are signed bytes")
    func int8() throws {
        let weight = try WeightQuantizer(.int8PerChannel)(Tensor([1, 3], [127, -127, -2]))
        #expect(weight.scales.elements == [1] && weight.codes.elements == [0x7f, 0x81, 0xfe, 0])
    }

    @Test("words of AWQ and GPTQ have their nibbles in the orders of the examples")
    func words() throws {
        let format = try WeightFormat(.uint4, groupSize: nil)
        let scales = try Tensor<Float>([8, 1]) { _ in 1 }
        let down = try QuantizedWeight(format: format, integers: Tensor([8, 1]) { Int8($0) }, scales: scales)
        #expect(try AWQLayout(down).qweight.elements == [0x7531_6420])
        let along = try QuantizedWeight(format: format, integers: Tensor([8, 8]) { Int8($0 % 8) }, scales: scales)
        #expect(try GPTQLayout(along, version: .v2).qweight.elements == .init(repeating: 0x7654_3210, count: 8))
    }

    @Test("AWQ, GPTQ and MatMulNBits tensors have half a byte per weight")
    func interchange() throws {
        let weight = try WeightQuantizer(WeightFormat(.uint4, groupSize: 32))(Tensor.normal([16, 64], seed: 2))
        let awq = try AWQLayout(weight)
        #expect(awq.qweight.shape == [64, 2] && awq.qzeros.shape == [2, 2] && awq.scales.shape == [2, 16])
        let gptq = try GPTQLayout(weight, version: .v2)
        #expect(gptq.qweight.shape == [8, 16] && gptq.qzeros.shape == [2, 2] && gptq.scales.shape == [2, 16])
        let onnx = try MatMulNBitsLayout(weight)
        #expect(onnx.b.shape == [16, 2, 16] && onnx.scales.shape == [16, 2] && onnx.zeroPoints?.shape == [16, 1])
    }
}
