import SVDQuant
import SparseKernelsReference
import TestSupport
import Testing

/// Layers of random parts, and their results in `Double`.
enum SVDQuantSupport {
    /// A weight of normal values, quantised without smoothing.
    static func weight(
        _ outFeatures: Int, _ inFeatures: Int, _ format: WeightFormat = .svdQuantInt4, scaleType: ElementType = .float16,
        seed: UInt64 = 1
    ) throws -> QuantizedWeight {
        try WeightQuantizer(format, scaleType: scaleType)(Tensor<Float>.normal([outFeatures, inFeatures], seed: seed))
    }

    static func branch(_ outFeatures: Int, _ inFeatures: Int, rank: Int, seed: UInt64 = 2) throws -> LowRankBranch {
        try LowRankBranch(
            down: rounded(.normal([rank, inFeatures], seed: seed, scale: 0.25)),
            up: rounded(.normal([outFeatures, rank], seed: seed + 1, scale: 0.25)))
    }

    /// Values of `Float` that bfloat16 represents exactly.
    static func rounded(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
        tensor.converted(to: BFloat16.self).converted(to: Float.self)
    }

    static func smooth(_ inFeatures: Int, seed: UInt64 = 4) throws -> Tensor<Float> {
        var generator = SplitMix64(seed: seed)
        return try Tensor([inFeatures]) { _ in BFloat16(0.5 + 2 * generator.uniform()).floatValue }
    }

    static func layer(
        _ outFeatures: Int, _ inFeatures: Int, _ format: WeightFormat = .svdQuantInt4, rank: Int = 5,
        activation: ActivationFormat = .int4, scaleType: ElementType = .float16, epilogue: Epilogue = .none, seed: UInt64 = 1,
        instructionSet: InstructionSet? = nil
    ) throws -> SVDQuantLinear {
        try SVDQuantLinear(
            weight: weight(outFeatures, inFeatures, format, scaleType: scaleType, seed: seed),
            smooth: smooth(inFeatures, seed: seed + 4), lowRank: branch(outFeatures, inFeatures, rank: rank, seed: seed + 2),
            bias: rounded(.normal([outFeatures], seed: seed + 5)), activation: activation, epilogue: epilogue,
            instructionSet: instructionSet)
    }

    /// The results of the layer for exact activations, and the sum of the magnitudes of the terms, for each output of one row
    /// of x.
    static func outputs(of layer: SVDQuantLinear, _ x: [Float]) -> [(value: Double, magnitude: Double)] {
        let shift: Double = if case .uint4(let shift) = layer.activation { Double(shift) } else { 0 }
        let hidden = (0..<layer.rank).map { i in
            x.indices.reduce(into: (value: 0.0, magnitude: 0.0)) { sum, k in
                let term = Double(x[k]) * Double(layer.lowRank!.down[flat: i * x.count + k])
                sum = (sum.value + term, sum.magnitude + abs(term))
            }
        }
        return (0..<layer.outFeatures).map { n in
            let bias = Double(layer.bias?[flat: n] ?? 0)
            var sum = (value: bias, magnitude: abs(bias))
            for k in x.indices {
                let smoothed = (Double(x[k]) + shift) / Double(layer.smooth?[flat: k] ?? 1)
                let term = smoothed * Double(layer.weight.value(row: n, column: k))
                sum = (sum.value + term, sum.magnitude + abs(term))
            }
            for i in 0..<layer.rank {
                let factor = Double(layer.lowRank!.up[flat: n * layer.rank + i])
                sum = (sum.value + factor * hidden[i].value, sum.magnitude + abs(factor) * hidden[i].magnitude)
            }
            return sum
        }
    }

    /// √(Σ (a − b)² / Σ b²).
    static func distance(_ a: Tensor<Float>, _ b: Tensor<Float>) -> Double {
        var (difference, norm) = (0.0, 0.0)
        for (a, b) in zip(a.elements, b.elements) {
            difference += Double(a - b) * Double(a - b)
            norm += Double(b) * Double(b)
        }
        return (difference / norm).squareRoot()
    }

    /// Whether all parts are equal, bit for bit.
    static func areIdentical(_ a: SVDQuantLinear, _ b: SVDQuantLinear) -> Bool {
        a.weight.isIdentical(to: b.weight) && a.smooth?.bits == b.smooth?.bits && a.lowRank?.down.bits == b.lowRank?.down.bits
            && a.lowRank?.up.bits == b.lowRank?.up.bits && a.bias?.bits == b.bias?.bits && a.activation == b.activation
            && a.epilogue == b.epilogue
    }
}
