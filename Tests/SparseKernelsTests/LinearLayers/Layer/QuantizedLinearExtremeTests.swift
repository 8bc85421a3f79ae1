import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// The largest sums, zeros, and input that is not finite.
@Suite("Quantised linear layer: extremes")
struct QuantizedLinearExtremeTests {
    /// Activations of one sign and of both, with equal magnitudes, so that every code is the largest.
    static func extremeInputs(_ m: Int, _ k: Int) throws -> [Tensor<Float>] {
        try [
            Tensor([m, k]) { _ in 1 }, Tensor([m, k]) { _ in -1 }, Tensor([m, k]) { $0 % 2 == 0 ? 1 : -1 },
            Tensor([m, k]) { $0 / 2 % 2 == 0 ? 1 : -1 },
        ]
    }

    @Test("no sum overflows when every code is the largest", arguments: WeightKind.all.indices)
    func largestSums(_ index: Int) throws {
        let kind = WeightKind.all[index]
        let codes =
            switch kind.format.code {
            case .int4: [-8, -7, 7]
            case .uint4: [15]
            case .int8: [-128, -127, 127]
            case .fp4: [7, 15]
            }
        for code in codes {
            // There are two groups of 128, and a ragged one.
            let (n, k) = (17, 290)
            let weight = try kind.weight(n, k, seed: 1, code: code)
            let packed = try QuantizedLinearTests.packed(weight)
            for activation in ActivationFormat.all {
                let parts = LayerParts(weight: weight, activation: activation)
                for m in [1, 5] {
                    for (number, x) in try Self.extremeInputs(m, k).enumerated() {
                        if case .uint4 = activation, number > 0 { continue }
                        let expected = ExpectedOutputs(parts, x: x, rows: 1, columns: 1)
                        for weight in packed {
                            let y = try parts.layer(weight).output(of: x, as: Float.self)
                            expected.expectMatch(
                                y,
                                "\(weight.instructionSet), \(kind.testDescription), code \(code), \(activation), input \(number)"
                            )
                        }
                    }
                }
            }
        }
    }

    @Test("activations of zero give the bias, and zero groups nothing", arguments: ActivationFormat.all)
    func zeros(_ activation: ActivationFormat) throws {
        let (n, k) = (17, 200)
        // A shift gives zeros non-zero codes.
        if case .uint4 = activation { return }
        for kind in WeightKind.all {
            let parts = try LayerParts(
                weight: kind.weight(n, k, seed: 1), activation: activation, smooth: LayerParts.smooth(k, seed: 2),
                lowRank: LayerParts.branch(rank: 3, n, k, seed: 3), bias: Tensor.normal([n], seed: 4))
            let bias = try #require(parts.bias)
            let zeros = try Tensor<Float16>(zeros: [2, k])
            var holes = try Tensor<Float16>.normal([2, k], seed: 5)
            for index in 0..<128 { holes[flat: index] = 0 }
            let expected = ExpectedOutputs(parts, x: holes)
            for weight in try QuantizedLinearTests.packed(parts.weight) {
                let layer = try parts.layer(weight)
                let y = try layer(zeros).elements
                #expect(y == bias.elements + bias.elements, "\(weight.instructionSet), \(kind.testDescription)")
                try expected.expectMatch(layer(holes), "\(weight.instructionSet), \(kind.testDescription), zero groups")
            }
        }
    }

    @Test("tiny and huge activations give finite outputs", arguments: ActivationFormat.all)
    func ranges(_ activation: ActivationFormat) throws {
        let (n, k) = (9, 130)
        for kind in WeightKind.main {
            let weight = try kind.weight(n, k, seed: 1)
            for magnitude: Float in [.leastNonzeroMagnitude, 1e-42, 1e-38, 1e-30, 1e-8, 1e30] {
                let x = try Tensor<Float>([2, k]) { magnitude * Float($0 % 3) }
                let parts = LayerParts(weight: weight, activation: activation)
                for packed in try QuantizedLinearTests.packed(weight) {
                    let y = try parts.layer(packed)(x).elements
                    #expect(
                        y.allSatisfy { $0.isFinite },
                        "\(packed.instructionSet), \(kind.testDescription), \(activation), \(magnitude)")
                }
            }
        }
    }

    @Test("NaN and infinities stay in their rows", arguments: ActivationFormat.all)
    func notFinite(_ activation: ActivationFormat) throws {
        let (m, n, k) = (11, 17, 200)
        for kind in WeightKind.main {
            let parts = try LayerParts(
                weight: kind.weight(n, k, seed: 1), activation: activation, smooth: LayerParts.smooth(k, seed: 2),
                lowRank: LayerParts.branch(rank: 17, n, k, seed: 3), bias: Tensor.normal([n], seed: 4))
            let bare = LayerParts(weight: parts.weight, activation: activation)
            let clean: Tensor<Float> = try activation.input(m, k, seed: 5)
            var spoiled = clean
            for (row, column, value) in [(0, 3, Float.nan), (4, 100, .infinity), (5, k - 1, -.infinity), (m - 1, 64, .nan)] {
                spoiled[flat: row * k + column] = value
            }
            let badRows = [0, 4, 5, m - 1]
            for packed in try QuantizedLinearTests.packed(parts.weight) {
                for layer in try [parts.layer(packed), bare.layer(packed)] {
                    let expected = try layer(clean).bits
                    let y = try layer(spoiled)
                    let (bits, values) = (y.bits, y.elements)
                    for row in 0..<m {
                        let range = row * n..<(row + 1) * n
                        let label = "\(packed.instructionSet), \(kind.testDescription), \(activation), row \(row)"
                        if badRows.contains(row) {
                            #expect(values[range].allSatisfy { !$0.isFinite }, "\(label)")
                        } else {
                            #expect(bits[range] == expected[range], "\(label)")
                        }
                    }
                }
            }
        }
    }
}
