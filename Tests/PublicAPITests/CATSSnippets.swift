import CATS
import Foundation
import SparseKernelsReference
import Testing

/// The snippets of Docs/Papers/CATS.md, with checks of their comments.
@Suite("Snippets: CATS")
struct CATSSnippets {
    @Test("a threshold from a sample, a step, and a file")
    func layer() throws {
        let gate = try Tensor<Float16>.normal([256, 64], seed: 1, scale: 0.125)
        let up = try Tensor<Float16>.normal([256, 64], seed: 2, scale: 0.125)
        let down = try Tensor<Float16>.normal([64, 256], seed: 3, scale: 0.0625)
        let sample = try Tensor<Float>.normal([50, 64], seed: 4)
        let x = try Tensor<Float>.normal([1, 64], seed: 5)
        let folder = NSTemporaryDirectory() + "sparsekernels-cats-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }

        // Once: how large the gate's results are on a text, and the threshold that drops half of them.
        let dense = try CATSLayer(gate: gate, up: up, down: down, threshold: 0)
        var (histogram, workspace) = (ActivationHistogram(), CATSWorkspace())
        try dense.record(sample, into: &histogram, workspace: &workspace)
        let thresholds = try CATSThresholds([histogram], sparsity: 0.5)  // a histogram per layer

        // Then the layer of every step. The copy shares the weights.
        let layer = try dense.with(threshold: thresholds.values[0])
        var y = try Tensor<Float>(zeros: [1, 64])
        let computed = try layer.run(x, into: &y, workspace: &workspace)
        print(computed)  // about 128 of 256 channels

        try thresholds.write(to: folder + "/cats.json")
        let restored = try CATSThresholds(path: folder + "/cats.json")

        #expect(abs(computed - 128) < 40)
        #expect(restored == thresholds)
        #expect(y.elements.contains { $0 != 0 })
    }
}
