import SparseKernels
import Testing

/// The snippets of Docs/Operators/LowRank.md.
@Suite("Snippets: LowRank")
struct LowRankSnippets {
    /// A matrix of rank 16 with a small part of full rank.
    private func matrix(_ rows: Int, _ columns: Int) throws -> Tensor<Float> {
        var generator = SplitMix64(seed: 1)
        let factors = (0..<16 * (rows + columns)).map { _ in generator.normal() }
        return try Tensor([rows, columns]) { index in
            let (row, column) = (index / columns, index % columns)
            return (0..<16).reduce(0.01 * generator.normal()) {
                $0 + factors[row * 16 + $1] * factors[(rows + column) * 16 + $1]
            }
        }
    }

    @Test("factors, and from one matrix to a similar one")
    func factors() throws {
        let weight = try matrix(64, 96)
        let changed = try Tensor<Float>([64, 96]) { weight[flat: $0] * 1.01 }

        // weight: [outFeatures, inFeatures]
        let factors = try LowRankFactorization(rank: 16)(weight)
        let branch = try LowRankBranch(down: factors.down, up: factors.up)

        // The same weight, a little changed: one power iteration from the factors that were found.
        let quick = try LowRankFactorization(rank: 16, method: .randomized(powerIterations: 1))
        let again = try quick(changed, startingFrom: factors)

        #expect(branch.rank == 16)
        for (a, b) in zip(factors.singularValues, again.singularValues) { #expect(abs(a * 1.01 - b) < 1e-3 * b) }
    }

    @Test("the factor that GPTQ uses")
    func inverseCholesky() throws {
        let hessian = try Tensor<Float>([3, 3], [4, 1, 0, 1, 3, 1, 0, 1, 2])
        let damping: Float = 0.01
        var isFactored = false
        try {
            // hessian: [inFeatures, inFeatures], symmetric; nil when the damping is too small.
            guard let factor = try InverseCholesky(of: hessian, damping: damping) else { return }
            isFactored = factor.upper[flat: 0] > 0
        }()
        #expect(isFactored)
    }

    @Test("rotated activations and weights give the same product")
    func rotation() throws {
        let inFeatures = 96
        let (weight, input) = try (matrix(7, inFeatures), matrix(5, inFeatures))

        // (x · Q) · (W · Q)ᵀ = x · Wᵀ
        let rotation = try HadamardRotation(count: inFeatures, seed: 1)
        let rotatedWeight = try rotation(weight)
        let rotatedInput = try rotation(input)

        func product(_ x: Tensor<Float>, _ w: Tensor<Float>) -> Float {
            (0..<inFeatures).reduce(0) { $0 + x[flat: $1] * w[flat: $1] }
        }
        #expect(abs(product(rotatedInput, rotatedWeight) - product(input, weight)) < 0.05)
    }
}
