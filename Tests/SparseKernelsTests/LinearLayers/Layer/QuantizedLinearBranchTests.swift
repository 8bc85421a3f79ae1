import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Operations fused with the product: smoothing, low-rank branch, bias, epilogues. Element types and strides of operands.
@Suite("Quantised linear layer: what is fused, and operands")
struct QuantizedLinearBranchTests {
    @Test("low-rank branches of every rank agree with the oracle, with and without bias", arguments: ActivationFormat.all)
    func ranks(_ activation: ActivationFormat) throws {
        for (index, rank) in [0, 1, 16, 17, 32, 33, 128].enumerated() {
            let (m, n, k) = (
                [1, 2, 5, 8, 17, 3, 9][index], [48, 17, 7, 24, 49, 1, 16][index], [200, 65, 64, 16, 130, 63, 1][index]
            )
            let kind = WeightKind.main[index % WeightKind.main.count]
            for hasBias in [false, true] {
                let parts = try LayerParts(
                    weight: kind.weight(n, k, seed: 1), activation: activation, smooth: LayerParts.smooth(k, seed: 2),
                    lowRank: rank == 0 ? nil : LayerParts.branch(rank: rank, n, k, seed: 3),
                    bias: hasBias ? Tensor.normal([n], seed: 5) : nil)
                let x: Tensor<Float16> = try activation.input(m, k, seed: 6)
                try QuantizedLinearTests.expectMatches(
                    parts, QuantizedLinearTests.packed(parts.weight), x: x,
                    "\(kind.testDescription), \(activation), rank \(rank), bias \(hasBias)")
            }
        }
    }

    @Test("the largest rank and ranks around half of it agree with the oracle", arguments: [ActivationFormat.int4, .float])
    func largestRanks(_ activation: ActivationFormat) throws {
        for (rank, m) in [(4097, 1), (LowRankBranch.maximumRank, 1), (LowRankBranch.maximumRank, 9)] {
            let (n, k) = (41, 70)
            let kind = WeightKind.main[0]
            // Factors with values outside F16 and factors within it are stored in different types.
            let branch = try LayerParts.branch(rank: rank, n, k, seed: 3)
            let halves = try LowRankBranch(
                down: branch.down.converted(to: Float16.self).converted(),
                up: branch.up.converted(to: Float16.self).converted())
            for lowRank in m == 1 ? [branch] : [branch, halves] {
                let parts = try LayerParts(
                    weight: kind.weight(n, k, seed: 1), activation: activation, lowRank: lowRank,
                    bias: Tensor.normal([n], seed: 5))
                let x: Tensor<Float> = try activation.input(m, k, seed: 6)
                try QuantizedLinearTests.expectMatches(
                    parts, QuantizedLinearTests.packed(parts.weight), x: x, "\(activation), rank \(rank), \(m) rows")
            }
        }
    }

    @Test("no rows give no rows", arguments: ActivationFormat.all)
    func noRows(_ activation: ActivationFormat) throws {
        for set in InstructionSet.available {
            let layer = try LayerParts(
                weight: WeightKind(.int4, 64).weight(5, 70, seed: 1), activation: activation,
                smooth: LayerParts.smooth(70, seed: 2), lowRank: LayerParts.branch(rank: 3, 5, 70, seed: 3), epilogue: .gelu
            ).layer(set)
            #expect(try layer(Tensor<Float>(zeros: [0, 70])).shape == [0, 5])
            #expect(try layer(Tensor<BFloat16>(zeros: [0, 70])).shape == [0, 5])
            var y = try Tensor<Float16>(zeros: [0, 5])
            try layer.run(Tensor<Float>(zeros: [0, 70]), into: &y)
            expectError(.invalidShape, "x", containing: ["70", "69"]) {
                _ = try layer(Tensor<Float>(zeros: [0, 69]))
            }
            for shape in [[1, 5], [0, 6], [0], [5, 0]] {
                expectError(.invalidShape, "y", containing: shape.count == 2 ? ["0 × 5"] : ["rank 2"]) {
                    var y = try Tensor<Float>(zeros: shape)
                    try layer.run(Tensor<Float>(zeros: [0, 70]), into: &y)
                }
            }
        }
    }

    @Test("the branch takes activations before shift, smoothing and rounding")
    func branchInput() throws {
        // With zero weights, the branch is the whole output.
        let parts = try LayerParts(
            weight: WeightKind(.int4, 64).weight(9, 70, seed: 1, code: 0), activation: .uint4(shift: 0.5),
            smooth: LayerParts.smooth(70, seed: 2), lowRank: LayerParts.branch(rank: 5, 9, 70, seed: 3))
        let x = try Tensor<Float>.normal([4, 70], seed: 4)
        let branch = try #require(parts.lowRank)
        for set in InstructionSet.available {
            let y = try parts.layer(set)(x)
            for (m, n) in [(0, 0), (1, 8), (3, 5)] {
                var (expected, magnitude) = (0.0, 0.0)
                for i in 0..<5 {
                    for k in 0..<70 {
                        let term =
                            Double(x[flat: m * 70 + k]) * Double(branch.down[flat: i * 70 + k])
                            * Double(branch.up[flat: n * 5 + i])
                        expected += term
                        magnitude += abs(term)
                    }
                }
                #expect(abs(Double(y[flat: m * 9 + n]) - expected) <= 1e-5 * magnitude, "\(set)")
            }
        }
    }

    @Test("epilogues agree with the oracle", arguments: [Epilogue.none, .gelu, .silu, .geluErf])
    func epilogues(_ epilogue: Epilogue) throws {
        for (index, activation) in ActivationFormat.all.enumerated() {
            for m in [1, 9] {
                let kind = WeightKind.main[index % WeightKind.main.count]
                let (n, k) = (index % 2 == 0 ? 49 : 15, 130)
                let parts = try LayerParts(
                    weight: kind.weight(n, k, seed: 1), activation: activation,
                    lowRank: index % 2 == 0 ? LayerParts.branch(rank: 16, n, k, seed: 2) : nil,
                    bias: Tensor.normal([n], seed: 3, scale: 2), epilogue: epilogue)
                let x: Tensor<Float> = try activation.input(m, k, seed: 4)
                try QuantizedLinearTests.expectMatches(
                    parts, QuantizedLinearTests.packed(parts.weight), x: x, "\(activation), \(epilogue), \(m) tokens")
            }
        }
    }

    @Test("epilogues of huge arguments are their limits, not NaN", arguments: InstructionSet.available)
    func epilogueLimits(_ set: InstructionSet) throws {
        let bias = try Tensor<Float>([6], [-1e30, -1e4, -100, 100, 1e4, 1e30])
        for epilogue in [Epilogue.gelu, .silu, .geluErf] {
            let parts = try LayerParts(
                weight: WeightKind(.int4, 64).weight(6, 64, seed: 1, code: 0), activation: .int4, bias: bias, epilogue: epilogue
            )
            let y = try parts.layer(set)(Tensor<Float>.normal([1, 64], seed: 1)).elements
            // Exponentials larger than e⁸⁸ may be replaced by it.
            #expect((0..<3).allSatisfy { abs(y[$0]) <= 1e-38 * abs(bias[flat: $0]) }, "\(set), \(epilogue): \(y)")
            #expect(Array(y[3...]) == Array(bias.elements[3...]), "\(set), \(epilogue): \(y)")
        }
    }

    @Test("smoothing divides, and rounds to the type of x", arguments: ActivationFormat.all)
    func smoothing(_ activation: ActivationFormat) throws {
        let (m, n, k) = (7, 24, 200)
        for kind in WeightKind.main {
            let parts = try LayerParts(
                weight: kind.weight(n, k, seed: 1), activation: activation, smooth: LayerParts.smooth(k, seed: 2))
            let packed = try QuantizedLinearTests.packed(parts.weight)
            let label = "\(kind.testDescription), \(activation)"
            try QuantizedLinearTests.expectMatches(
                parts, packed, x: activation.input(m, k, seed: 3) as Tensor<Float>, label)
            try QuantizedLinearTests.expectMatches(
                parts, packed, x: activation.input(m, k, seed: 3) as Tensor<Float16>, label + ", fp16")
            try QuantizedLinearTests.expectMatches(
                parts, packed, x: activation.input(m, k, seed: 3) as Tensor<BFloat16>, label + ", bf16")
        }
    }

    @Test("strided rows of any type give the bits of adjacent ones", arguments: InstructionSet.available)
    func strides(_ set: InstructionSet) throws {
        for m in [1, 6, 17] {
            try expectSameBits(m, set, from: Float.self, to: BFloat16.self)
            try expectSameBits(m, set, from: Float16.self, to: Float.self)
            try expectSameBits(m, set, from: BFloat16.self, to: Float16.self)
        }
    }

    private func expectSameBits<X: AttentionElement, Y: AttentionElement>(
        _ m: Int, _ set: InstructionSet, from: X.Type, to: Y.Type
    ) throws {
        let (n, k, gap) = (17, 65, 5)
        for (index, activation) in ActivationFormat.all.enumerated() {
            let parts = try LayerParts(
                weight: WeightKind.main[index % WeightKind.main.count].weight(n, k, seed: 1), activation: activation,
                smooth: LayerParts.smooth(k, seed: 2), lowRank: LayerParts.branch(rank: 17, n, k, seed: 3),
                bias: Tensor.normal([n], seed: 5))
            let layer = try parts.layer(set)
            let x: Tensor<X> = try activation.input(m, k, seed: 6)
            let expected = try layer.output(of: x, as: Y.self)
            if set == .portable { ExpectedOutputs(parts, x: x).expectMatch(expected, "\(activation), \(X.self) to \(Y.self)") }
            // Between rows x has NaN, and y a guard value.
            let guardValue = Y(987)
            var spread = [X](repeating: X(.nan), count: m * (k + gap))
            let adjacent = x.elements
            for row in 0..<m {
                for column in 0..<k { spread[row * (k + gap) + column] = adjacent[row * k + column] }
            }
            var result = [Y](repeating: guardValue, count: m * (n + gap))
            try layer.run(
                x: MatrixView(spread.span, rows: m, columns: k, rowStride: k + gap),
                y: MutableMatrixView(result.mutableSpan, rows: m, columns: n, rowStride: n + gap))
            let rows = result.indices.filter { $0 % (n + gap) < n }.map { result[$0].floatValue.bitPattern }
            #expect(rows == expected.bits, "\(set), \(activation), \(m) tokens of \(X.self)")
            let overwritten = result.indices.first { $0 % (n + gap) >= n && result[$0].floatValue != guardValue.floatValue }
            #expect(overwritten == nil, "\(set), \(activation): wrote between rows")
        }
    }
}
