import SVDQuant
import SparseKernelsReference
import TestSupport
import Testing

@Suite("SVDQuant layers")
struct SVDQuantLinearTests {
    private typealias Support = SVDQuantSupport

    /// The error of a `Float` sum of n terms is at most n roundoff units of its magnitudes. Smoothing rounds each x once more,
    /// and the branch is a sum of sums.
    private static func bound(_ layer: SVDQuantLinear, _ magnitude: Double) -> Double {
        Double(layer.inFeatures + layer.rank + 4) * 0x1p-24 * magnitude
    }

    @Test(
        "W4A16 is the layer of its parts", arguments: InstructionSet.available,
        [(1, 1, 1), (3, 70, 2), (7, 64, 1), (130, 200, 17)])
    func exactActivations(_ set: InstructionSet, _ extents: (outFeatures: Int, inFeatures: Int, rank: Int)) throws {
        let layer = try Support.layer(
            extents.outFeatures, extents.inFeatures, rank: extents.rank, activation: .float, instructionSet: set)
        let x = try Tensor<Float>.normal([3, extents.inFeatures], seed: 9)
        let y = try layer(x)
        for token in 0..<3 {
            let row = (0..<extents.inFeatures).map { x[flat: token * extents.inFeatures + $0] }
            for (n, expected) in Support.outputs(of: layer, row).enumerated() {
                let actual = Double(y[flat: token * extents.outFeatures + n])
                #expect(abs(actual - expected.value) <= Self.bound(layer, expected.magnitude))
            }
        }
    }

    @Test("finer activations come nearer, with the same weights", arguments: InstructionSet.available)
    func activationFormats(_ set: InstructionSet) throws {
        let layer = try Support.layer(96, 256, rank: 8, instructionSet: set)
        let x = try Tensor<Float>.normal([16, 256], seed: 3)
        let exact = try layer.with(activation: .float)(x)
        let errors = try [ActivationFormat.int8PerGroup, .int8PerToken, .int4].map { activation in
            Support.distance(try layer.with(activation: activation)(x), exact)
        }
        // 64 normal values have a maximum of 2.63 (root mean square), and the rounding error is step / √12: 0.6% with 127
        // steps, 10.9% with 7. Smoothing makes the values of a group uneven, which adds a quarter.
        #expect(errors[0] < 1.25 * 0.0060 && errors[2] < 1.25 * 0.1085, "\(errors)")
        #expect(errors[0] < errors[1] && errors[1] < 2 * errors[0] && errors[2] > 10 * errors[1], "\(errors)")
    }

    @Test("a shift moves to the bias and back")
    func shifts() throws {
        let layer = try Support.layer(40, 130)
        let shift = ActivationFormat.geluShift
        let shifted = try layer.with(activation: .uint4(shift: shift))
        var generator = SplitMix64(seed: 3)
        let x = try Tensor<Float>([1, 130]) { _ in 2 * generator.uniform() - 0.17 }
        for (before, after) in zip(Support.outputs(of: layer, x.elements), Support.outputs(of: shifted, x.elements)) {
            // The correction is a sum in `Float`, like the layer's own.
            #expect(abs(before.value - after.value) <= Self.bound(layer, after.magnitude))
        }
        let back = try shifted.with(activation: .int4)
        let corrections = Support.outputs(of: shifted, [Float](repeating: 0, count: 130))
        for n in 0..<40 {
            #expect(abs(Double(back.bias![flat: n] - layer.bias![flat: n])) <= 2 * Self.bound(layer, corrections[n].magnitude))
        }
        // Values of one sign have twice the number of steps.
        let exact = try layer.with(activation: .float)(x)
        #expect(try Support.distance(shifted(x), exact) < Support.distance(layer(x), exact))
        #expect(try shifted.with(epilogue: .gelu).activation == .uint4(shift: shift))
    }

    @Test("epilogues and views", arguments: InstructionSet.available)
    func epilogues(_ set: InstructionSet) throws {
        let layer = try Support.layer(33, 65, instructionSet: set)
        let x = try Tensor<BFloat16>.normal([4, 65], seed: 3)
        let y = try layer(x)
        let gated = try layer.with(epilogue: .silu)
        let activated = try gated(x)
        for (y, activated) in zip(y.elements, activated.elements) {
            let expected = silu(Double(y))
            #expect(abs(Double(activated) - expected) <= 4 * 0x1p-23 * (1 + abs(Double(y))))
        }
        var output = try Tensor<Float>(zeros: [4, 33])
        for threads in [1, 2, 7] {
            try gated.run(
                x: x.matrixView(named: "x"), y: output.mutableMatrixView(named: "y"), on: WorkerPool(threads: threads))
            #expect(output == activated)
        }
        #expect(gated.epilogue == .silu && gated.rank == 5 && gated.byteCount == gated.linear.byteCount)
    }

    private func silu(_ x: Double) -> Double {
        var exponential = 1.0
        // Computes e⁻ˣ by halving the argument until the series is short, because tests of this target import no libm.
        let reduced = -x / 1024
        exponential += reduced * (1 + reduced / 2 * (1 + reduced / 3 * (1 + reduced / 4)))
        for _ in 0..<10 { exponential *= exponential }
        return x / (1 + exponential)
    }

    @Test("quantising a layer: rounding, smoothing and the branch each help")
    func quantising() throws {
        let (outFeatures, inFeatures) = (64, 128)
        // A low-rank weight with noise, and activations with outlier channels.
        let down = try Tensor<Float>.normal([4, inFeatures], seed: 1)
        let up = try Tensor<Float>.normal([outFeatures, 4], seed: 2)
        let noise = try Tensor<Float>.normal([outFeatures, inFeatures], seed: 3, scale: 0.2)
        let weight = try Tensor<Float>([outFeatures, inFeatures]) { index in
            let (n, k) = (index / inFeatures, index % inFeatures)
            return (0..<4).reduce(noise[flat: index]) { $0 + up[flat: n * 4 + $1] * down[flat: $1 * inFeatures + k] }
        }
        let outliers = try Tensor<Float>.normal([96, inFeatures], seed: 4)
        let tokens = try Tensor<Float>([96, inFeatures]) { outliers[flat: $0] * ($0 % inFeatures % 31 == 5 ? 30 : 1) }
        let bias = try Tensor<Float>.normal([outFeatures], seed: 5)
        var exact = try Tensor<Float>(zeros: [96, outFeatures])
        for index in 0..<exact.count {
            let (token, n) = (index / outFeatures, index % outFeatures)
            exact[flat: index] = (0..<inFeatures).reduce(bias[flat: n]) {
                $0 + tokens[flat: token * inFeatures + $1] * weight[flat: n * inFeatures + $1]
            }
        }
        let rounded = try SVDQuantLinear(weight: WeightQuantizer(.svdQuantInt4)(weight), bias: bias)
        let smoothed = try SVDQuantLinear(weight: weight, bias: bias, calibration: tokens, rank: 0)
        let whole = try SVDQuantLinear(weight: weight, bias: bias, calibration: tokens, rank: 16)
        let errors = try [rounded, smoothed, whole].map { Support.distance(try $0(tokens), exact) }
        #expect(errors[0] > errors[1] && errors[1] > 1.5 * errors[2], "\(errors)")
        #expect(smoothed.rank == 0 && whole.rank == 16 && whole.smooth != nil)

        // A branch of full rank leaves only the rounding errors of 16 bits to quantise.
        let small = try Tensor<Float>.normal([16, 64], seed: 6)
        let x = try Tensor<Float>.normal([20, 64], seed: 7)
        let complete = try SVDQuantLinear(weight: small, calibration: x, rank: 16)
        let product = try SVDQuantLinear(
            weight: WeightQuantizer(.svdQuantInt4)(Tensor(zeros: [16, 64])),
            lowRank: LowRankBranch(down: small, up: Tensor([16, 16]) { $0 / 16 == $0 % 16 ? 1 : 0 }))(x)
        #expect(try Support.distance(complete(x), product) < 1e-3)
    }

    @Test("bad parts are errors that name them")
    func badInput() throws {
        let weight = try Support.weight(4, 70)
        let good = try Support.smooth(70)
        func make(
            smooth: Tensor<Float>? = nil, lowRank: LowRankBranch? = nil, bias: Tensor<Float>? = nil,
            activation: ActivationFormat = .int4
        ) throws {
            _ = try SVDQuantLinear(weight: weight, smooth: smooth, lowRank: lowRank, bias: bias, activation: activation)
        }
        expectError(.invalidShape, "smooth") { try make(smooth: Support.smooth(64)) }
        for bad in [Float(0), -1, .nan, .infinity] {
            var smooth = good
            smooth[flat: 69] = bad
            expectError(.invalidArgument, "smooth") { try make(smooth: smooth) }
        }
        expectError(.invalidShape, "lowRank") { try make(lowRank: Support.branch(4, 64, rank: 2)) }
        expectError(.invalidShape, "lowRank") { try make(lowRank: Support.branch(5, 70, rank: 2)) }
        expectError(.invalidShape, "bias") { try make(bias: Tensor(zeros: [5])) }
        expectError(.invalidArgument, "bias") { try make(bias: Tensor([4], [0, 0, .nan, 0])) }
        expectError(.invalidArgument, "shift") { try make(activation: .uint4(shift: -1)) }
        let layer = try Support.layer(4, 70)
        expectError(.invalidArgument, "shift") { _ = try layer.with(activation: .uint4(shift: .infinity)) }
        expectError(.invalidShape, "x") { _ = try layer(Tensor<Float>(zeros: [1, 71])) }
        expectError(.invalidShape, "y") {
            let x = try Tensor<Float>(zeros: [2, 70])
            var y = try Tensor<Float>(zeros: [2, 5])
            try layer.run(x: x.matrixView(named: "x"), y: y.mutableMatrixView(named: "y"))
        }
        var broken = try Tensor<Float>.normal([4, 70], seed: 1)
        broken[flat: 7] = .nan
        expectError(.invalidArgument, "weight") {
            _ = try SVDQuantLinear(weight: broken, calibration: Tensor<Float>.normal([8, 70], seed: 2), rank: 2)
        }
    }

    @Test("no tokens give no outputs, and cannot calibrate")
    func noTokens() throws {
        let layer = try Support.layer(6, 64)
        #expect(try layer(Tensor<Float>(zeros: [0, 64])).shape == [0, 6])
        expectError(.invalidShape, "x") { _ = try layer(Tensor<Float>(zeros: [0, 63])) }
        expectError(.invalidShape, "calibration") {
            _ = try SVDQuantLinear(weight: .normal([6, 64], seed: 1), calibration: Tensor(zeros: [0, 64]), rank: 2)
        }
    }
}
