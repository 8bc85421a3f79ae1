import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Bad input gives an error with its code and argument, and nothing is written.
@Suite("Quantised linear layer: errors")
struct QuantizedLinearErrorsTests {
    static func weight(_ n: Int = 5, _ k: Int = 70) throws -> QuantizedWeight {
        try WeightKind(.int4, 64).weight(n, k, seed: 1)
    }

    static func layer(
        activation: ActivationFormat = .int4, smooth: Tensor<Float>? = nil, lowRank: LowRankBranch? = nil,
        bias: Tensor<Float>? = nil
    ) throws -> QuantizedLinear {
        try QuantizedLinear(
            PackedWeight(weight()), activation: activation, smooth: smooth, lowRank: lowRank, bias: bias)
    }

    @Test("operands that disagree with the layer are named, and nothing is written", arguments: InstructionSet.available)
    func operands(_ set: InstructionSet) throws {
        let layer = try QuantizedLinear(PackedWeight(Self.weight(), instructionSet: set), activation: .int8PerToken)
        for (x, y, argument, texts) in [
            ([3, 69], [3, 5], "x", ["70", "69"]), ([3, 71], [3, 5], "x", ["70", "71"]),
            ([3, 70], [2, 5], "y", ["3 × 5", "2 × 5"]), ([3, 70], [4, 5], "y", ["3 × 5", "4 × 5"]),
            ([3, 70], [3, 4], "y", ["3 × 5", "3 × 4"]), ([3, 70], [3, 6], "y", ["3 × 5", "3 × 6"]),
        ] {
            let input = try Tensor<Float>.normal(x, seed: 1)
            var output = try Tensor<Float>(y) { _ in 77 }
            expectError(.invalidShape, argument, containing: texts) {
                try layer.run(x: input.matrixView(), y: output.mutableMatrixView())
            }
            #expect(output.elements.allSatisfy { $0 == 77 })
        }
        expectError(.invalidShape, "x", containing: ["70", "69"]) {
            _ = try layer(Tensor<Float>(zeros: [3, 69]))
        }
        expectError(.invalidShape, "x") { _ = try layer(Tensor<Float>(zeros: [70])) }
    }

    @Test("smoothing factors must be positive and as many as input features")
    func smooth() throws {
        for shape in [[69], [71], [1, 70], [70, 1], [0]] {
            expectError(.invalidShape, "smooth", containing: ["[70]", "\(shape)"]) {
                _ = try Self.layer(smooth: Tensor(shape) { _ in 1 })
            }
        }
        for bad in [0, -0.0, -1, Float.nan, .infinity, -.infinity] {
            expectError(.invalidArgument, "smooth", containing: ["\(bad)"]) {
                _ = try Self.layer(smooth: Tensor([70]) { $0 == 69 ? bad : 1 })
            }
        }
    }

    @Test("a bias must be finite and as long as the output")
    func bias() throws {
        for shape in [[4], [6], [1, 5], [0]] {
            expectError(.invalidShape, "bias", containing: ["[5]", "\(shape)"]) {
                _ = try Self.layer(bias: Tensor(zeros: shape))
            }
        }
        for bad in [Float.nan, .infinity, -.infinity] {
            expectError(.invalidArgument, "bias", containing: ["\(bad)"]) {
                _ = try Self.layer(bias: Tensor([5]) { $0 == 4 ? bad : 1 })
            }
        }
    }

    @Test("a low-rank branch must have the layer's extents, and finite factors")
    func lowRank() throws {
        expectError(.invalidShape, "lowRank", containing: ["70", "69"]) {
            _ = try Self.layer(lowRank: LayerParts.branch(rank: 2, 5, 69, seed: 1))
        }
        expectError(.invalidShape, "lowRank", containing: ["5", "6"]) {
            _ = try Self.layer(lowRank: LayerParts.branch(rank: 2, 6, 70, seed: 1))
        }
        func branch(_ down: [Int], _ up: [Int], bad: Float = 0, inUp: Bool = false) throws {
            _ = try LowRankBranch(
                down: Tensor(down) { $0 == 1 && !inUp ? bad : 0 }, up: Tensor(up) { $0 == 1 && inUp ? bad : 0 })
        }
        expectError(.invalidShape, "down") { try branch([0, 70], [5, 0]) }
        expectError(.invalidShape, "down") { try branch([8193, 2], [2, 8193]) }
        expectError(.invalidShape, "down") { try branch([70], [5, 1]) }
        expectError(.invalidShape, "up", containing: ["3"]) { try branch([2, 70], [5, 3]) }
        expectError(.invalidShape, "up") { try branch([2, 70], [0, 2]) }
        expectError(.invalidArgument, "down") { try branch([2, 70], [5, 2], bad: .nan) }
        expectError(.invalidArgument, "up") { try branch([2, 70], [5, 2], bad: .infinity, inUp: true) }
    }

    @Test("a shift must be finite and not negative")
    func shift() {
        for bad in [-0.5, Float.nan, .infinity] {
            expectError(.invalidArgument, "shift", containing: ["\(bad)"]) {
                _ = try Self.layer(activation: .uint4(shift: bad))
            }
        }
    }

    @Test("formats know their group sizes")
    func formats() throws {
        for size in [0, -1, 1, 8, 48, 256] {
            expectError(.invalidArgument, "groupSize", containing: ["\(size)"]) {
                _ = try WeightFormat(.int4, groupSize: size)
            }
        }
        #expect(WeightFormat.svdQuantInt4.paddedInFeatures(65) == 128 && WeightFormat.svdQuantInt4.groups(inFeatures: 65) == 2)
        #expect(
            WeightFormat.int8PerChannel.paddedInFeatures(65) == 66 && WeightFormat.int8PerChannel.groups(inFeatures: 65) == 1)
    }

    @Test("a weight's tensors must agree, and its scales be finite")
    func weights() throws {
        func weight(
            codes: [Int] = [5, 64], scales: [Int] = [5, 2], offsets: [Int] = [5, 2], channelScales: [Int] = [5],
            inFeatures: Int = 70, bad: Float = 1, in spoiled: String = ""
        ) throws {
            func values(_ name: String, _ shape: [Int]) throws -> Tensor<Float> {
                try Tensor(shape) { $0 == 1 && name == spoiled ? bad : 1 }
            }
            _ = try QuantizedWeight(
                format: .svdQuantInt4, inFeatures: inFeatures, codes: Tensor(zeros: codes), scales: values("scales", scales),
                offsets: values("offsets", offsets), channelScales: values("channelScales", channelScales))
        }
        try weight()
        expectError(.invalidShape, "codes", containing: ["64", "63"]) { try weight(codes: [5, 63]) }
        expectError(.invalidShape, "codes") { try weight(codes: [320]) }
        expectError(.invalidShape, "codes") { try weight(codes: [0, 64]) }
        expectError(.invalidShape, "inFeatures", containing: ["0"]) { try weight(inFeatures: 0) }
        expectError(.invalidShape, "scales", containing: ["[5, 2]"]) { try weight(scales: [2, 5]) }
        expectError(.invalidShape, "offsets", containing: ["[5, 2]"]) { try weight(offsets: [5, 1]) }
        expectError(.invalidShape, "channelScales", containing: ["[5]"]) { try weight(channelScales: [4]) }
        for name in ["scales", "offsets", "channelScales"] {
            for bad in [Float.nan, .infinity] {
                expectError(.invalidArgument, name, containing: ["\(bad)"]) {
                    try weight(bad: bad, in: name)
                }
            }
        }
    }
}
