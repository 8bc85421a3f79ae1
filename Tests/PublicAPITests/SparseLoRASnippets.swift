import SparseKernelsReference
import SparseLoRA
import Testing

/// The snippets of Docs/Papers/SparseLoRA.md, with checks of their comments.
@Suite("Snippets: SparseLoRA")
struct SparseLoRASnippets {
    @Test("layers")
    func layers() throws {
        let gate = try Tensor<Float>.normal([96, 48], seed: 1, scale: 0.2)
        let up = try Tensor<Float>.normal([96, 48], seed: 2, scale: 0.2)
        let down = try Tensor<Float>.normal([48, 96], seed: 3, scale: 0.2)
        let weight = gate
        let x = try Tensor<Float>.normal([20, 48], seed: 4)
        let dy = try Tensor<Float>.normal([20, 48], seed: 5)
        let dq = try Tensor<Float>.normal([20, 96], seed: 6)
        var y = try Tensor<Float>(zeros: [20, 48])
        var q = try Tensor<Float>(zeros: [20, 96])
        var dx = try Tensor<Float>(zeros: [20, 48])
        let labels = (0..<2).map { sample in (0..<10).map { (3 + sample..<7).contains($0) ? 1 : -100 } }

        // Offline, once per model.
        let estimator = try MLPEstimator(gate: gate, up: up)
        var writer = SafetensorsWriter()
        try estimator.add(to: &writer, prefix: "model.layers.3.mlp")

        // In each step.
        let layer = try SparseMLP(gate: gate, up: up, down: down)
        var (tape, workspace) = (SparseMLP.Tape(), SparseLoRAWorkspace())
        let split = try TokenSplit(labels: labels)  // positions 3..<7 have a loss in some sample
        let kept = try estimator.channels(x.matrixView(), batch: 2, sparsity: 0.9)
        try layer.run(
            x: x.matrixView(), split: split, channels: kept, tape: &tape, workspace: &workspace, y: y.mutableMatrixView())
        try layer.gradient(dy.matrixView(), tape: tape, workspace: &workspace, dx: dx.mutableMatrixView())
        print(kept.count, split.sparseRows, split.denseRows)  // 9 of 96 channels, 12 rows, 8 rows

        #expect(split.dense == 3..<7)
        #expect((kept.count, split.sparseRows, split.denseRows) == (9, 12, 8))

        // A projection with its adapter. The frozen weight sees picked channels of context tokens, the adapter everything.
        let query = try SparseProjection(weight: weight, picking: .outputs, loraRank: 4)
        let lora = try LoRAFactors(inFeatures: 48, outFeatures: 96, rank: 4, alpha: 8, seed: 1)
        var (da, db) = (try Tensor<Float>(zeros: lora.a.shape), try Tensor<Float>(zeros: lora.b.shape))
        var record = SparseProjection.Tape()
        try query.run(
            x: x.matrixView(), split: split, channels: kept, lora: lora, tape: &record, workspace: &workspace,
            y: q.mutableMatrixView())
        try query.gradient(
            dq.matrixView(), x: x.matrixView(), lora: lora, aGradient: &da, bGradient: &db, tape: record, workspace: &workspace,
            dx: dx.mutableMatrixView(), accumulates: true)

        #expect((0..<96).filter { q[0, $0] != 0 } == kept.indices.map(Int.init))
        // b is 0 at the start, so that a has no gradient yet.
        #expect(da.elements.allSatisfy { $0 == 0 } && db.elements.contains { $0 != 0 })
    }

    @Test("configurations")
    func configurations() throws {
        let recipe = SparseLoRAConfiguration.llama3Math10K
        print(recipe.layers[14])  // feed-forward 0.99, attention 0.75
        print(recipe.isSparse(step: 40, of: 1000), recipe.isSparse(step: 50, of: 1000))  // false, true
        let read = try SparseLoRAConfiguration(json: recipe.json())  // also the released files
        print(read == recipe)  // true

        #expect(recipe.layers[14] == .init(mlp: 0.99, attention: 0.75))
        #expect(!recipe.isSparse(step: 40, of: 1000) && recipe.isSparse(step: 50, of: 1000))
        #expect(read == recipe)
    }
}
