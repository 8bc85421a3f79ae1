import SparseKernels
import SparseKernelsReference
import Testing

/// The oracle, tested with values that were computed by hand.
@Suite("Oracle of quantised layers")
struct ReferenceQuantizedLinearTests {
    @Test("E4M3 and E2M1 round to nearest, ties to even")
    func floats() {
        for (x, expected) in [
            (0, 0), (448, 448), (1.0625, 1), (1.1875, 1.25), (1.07, 1.125), (0x1p-9, 0x1p-9), (0x1p-10, 0), (0x1.8p-9, 0x1p-8),
            (0x1p-6, 0x1p-6), (447, 448), (431, 416), (0x1p-140, 0),
        ] as [(Float, Float)] {
            #expect(ReferenceActivationQuantization.nearestE4M3(x) == expected, "\(x)")
        }
        for (x, expected) in [
            (0, 0), (0.25, 0), (0.26, 1), (-0.75, -2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 8), (5, 8), (5.01, 12), (-7, -12),
        ] as [(Float, Int)] {
            #expect(ReferenceActivationQuantization.doubledE2M1(x) == expected, "\(x)")
        }
    }

    @Test("shift, smoothing, scale and codes of a row are those worked out by hand")
    func row() {
        let rule = ReferenceActivationQuantization(.uint4(shift: 0.5), weight: .svdQuantInt4)
        // (7 + ½)/½ = 15, (2 − … + ½)/½: the scale is 15·Float(1/15) = 1.
        let row = rule([7, 1, -0.5, 0.75] as [Float], smooth: [0.5, 0.5, 0.5, 0.5])
        #expect(row.values == [15, 3, 0, 2.5] && row.codes == [15, 3, 0, 2] && row.scales == [1])
        // The shift is rounded to the type of x before the division: 7.03125 + 0.0078125 is 7.03125 in BFloat16.
        let rounded = ReferenceActivationQuantization(.uint4(shift: 0x1p-7), weight: .svdQuantInt4)(
            [BFloat16(7.03125)], smooth: [0.25])
        #expect(rounded.values == [28.125])
        let tokens = ReferenceActivationQuantization(.int8PerToken, weight: .svdQuantInt4)([Float](repeating: -127, count: 200))
        #expect(tokens.scales == [1] && tokens.codes.allSatisfy { $0 == -127 })
        let infinite = ReferenceActivationQuantization(.int4, weight: .svdQuantInt4)([1, .infinity] as [Float])
        #expect(infinite.scales[0].isNaN && infinite.codes == [0, 0])
    }

    @Test("one output is the sum of its terms")
    func output() throws {
        // Codes 3 and −2 have scale ½, offset ¼ and channel scale 2. Activations 7 and −3.5 have scale 1 and codes 7 and −4.
        let weight = try QuantizedWeight(
            format: .svdQuantInt4, inFeatures: 2, codes: Tensor([1, 32]) { $0 == 0 ? 0xe3 : 0 }, scales: Tensor([1, 1], [0.5]),
            offsets: Tensor([1, 1], [0.25]), channelScales: Tensor([1], [2]))
        let branch = try LowRankBranch(down: Tensor([1, 2], [1, 2]), up: Tensor([1, 1], [3]))
        let bias = try Tensor<Float>([1], [10])
        let oracle = ReferenceQuantizedLinear(weight, activation: .int4, lowRank: branch, bias: bias)
        let token = oracle.token([7, -3.5] as [Float])
        #expect(token.row.codes == [7, -4] && token.row.scales == [1])
        // 2·(½·(21 + 8) − ¼·3) + 3·(7 − 7) + 10
        let output = oracle.output(of: token, column: 0)
        #expect(output.value == 37.5)
        // The magnitudes are 2·(14.5 + 0.75) of one segment, 3·(7 + 7), and 10.
        let product: Double = (1 + 5) * 30.5
        let lowRank: Double = (2.0.squareRoot() + 1 + 3) * 42
        let units = output.errorBound / (AttentionErrorBound.confidence * AttentionErrorBound.unitRoundoff)
        #expect(abs(units - (product + lowRank + 20)) < 1e-9)
        // In floating point, the sum is 7·(1.5 − ¼) + 3.5·(1 + ¼), times 2.
        let exact = ReferenceQuantizedLinear(weight, activation: .float)
        #expect(exact.output(of: exact.token([7, -3.5] as [Float]), column: 0).value == 2 * (7 * 1.25 + 3.5 * 1.25))
        let silu = ReferenceQuantizedLinear(weight, activation: .int4, bias: bias, epilogue: .silu)
        #expect(abs(silu.output(of: token, column: 0).value - 37.5) < 1e-12)
    }
}
