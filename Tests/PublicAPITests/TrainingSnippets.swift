import SparseKernelsTraining
import Testing

/// The snippets of Docs/Operators/Training.md, with checks of their comments.
@Suite("Snippets: training")
struct TrainingSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("an adapter")
    func adapter() throws {
        let (x, dy) = try (Self.pattern([32, 64], 7), Self.pattern([32, 48], 5))
        var (y, dx) = try (Tensor<Float>(zeros: [32, 48]), Tensor<Float>(zeros: [32, 64]))
        func rank(of factors: LoRAFactors) -> Int { factors.rank }

        // The frozen layer has computed y = x · Wᵀ. The adapter adds to it, and keeps x · aᵀ for the way back.
        let adapter = try LoRAOperator(inFeatures: 64, outFeatures: 48, rank: 4)
        var factors = try LoRAFactors(inFeatures: 64, outFeatures: 48, rank: 4, alpha: 8, seed: 1)
        var projected = try Tensor<Float>(zeros: [32, 4])
        try adapter.run(x: x, factors: factors, projected: &projected, adding: &y)

        // A new adapter adds nothing.
        #expect(y.elements.allSatisfy { $0 == 0 })

        // Back: gradients are added, so that they can be summed over batches and over the branches of a model.
        var (da, db) = try (Tensor<Float>(zeros: [4, 64]), Tensor<Float>(zeros: [48, 4]))
        try adapter.gradient(
            x: x, projected: projected, factors: factors, outputGradient: dy, a: &da, b: &db, adding: &dx)

        #expect(da.elements.allSatisfy { $0 == 0 } && db.elements.contains { $0 != 0 })
        let before = factors

        let optimizer = try AdamW(weightDecay: 0.01)
        let schedule = LearningRateSchedule.cosine(peak: 1e-2, warmupSteps: 2, totalSteps: 20)
        var moments = try (AdamW.Moments(of: factors.a), AdamW.Moments(of: factors.b))
        // One factor for all gradients; the norm tells whether there is a step to take.
        var gradients = [da, db]
        let norm = try GradientNorm.clip(&gradients, to: 1)
        if norm.isFinite {
            let rate = schedule.rate(step: 1)
            try optimizer.step(&factors.a, gradient: gradients[0], moments: &moments.0, learningRate: rate)
            try optimizer.step(&factors.b, gradient: gradients[1], moments: &moments.1, learningRate: rate)
        }
        print(moments.0.step, rank(of: factors))  // 1 4

        #expect(moments.0.step == 1 && moments.1.step == 1 && factors.b != before.b)
        // Against the gradient: the step makes Σ dy · y smaller.
        try adapter.run(x: x, factors: factors, projected: &projected, adding: &y)
        #expect(zip(y.elements, dy.elements).reduce(0) { $0 + $1.0 * $1.1 } < 0)
    }

    @Test("cross-entropy")
    func entropy() throws {
        let logits = try Self.pattern([3, 100], 7)
        var dLogits = logits

        // Next tokens; −100 marks rows that do not count, such as those of a prompt.
        let entropy = try CrossEntropy(vocabulary: 100)
        let loss = try entropy.run(logits, targets: [17, -100, 4], gradient: &dLogits)
        print(loss.tokens, loss.mean > 0)  // 2 true

        #expect(loss.tokens == 2 && loss.mean > 0)
        #expect((0..<100).allSatisfy { dLogits[1, $0] == 0 } && dLogits[0, 17] < 0)
    }

    @Test("activation and norm")
    func layers() throws {
        let (gate, up, dh) = try (Self.pattern([3, 96], 7), Self.pattern([3, 96], 11), Self.pattern([3, 96], 3))
        let (hidden, dNormed, weight) = try (
            Self.pattern([3, 64], 5), Self.pattern([3, 64], 13), Self.pattern([64], 17)
        )
        var (dGate, dUp) = (gate, up)
        var dHidden = try Self.pattern([3, 64], 9)
        let before = dHidden

        // The way back through a gated MLP and its norm: dh is the gradient of silu(gate) · up.
        try GatedActivationGradient(.silu).run(
            gate: gate, up: up, outputGradient: dh, gateGradient: &dGate, upGradient: &dUp)
        // dNormed is what the projections of gate and up give back. The residual stream skips the norm, so its gradient is added to.
        try RMSNormGradient(weight: weight, epsilon: 1e-6).run(
            x: hidden, outputGradient: dNormed, inputGradient: &dHidden, accumulates: true)

        let silu = try GatedActivation(.silu)(gate: gate, up: dh)
        #expect(zip(silu.elements, dUp.elements).allSatisfy { abs($0 - $1) <= 1e-5 })
        #expect(dHidden != before)
    }
}
