import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

@Suite("Vision transformers")
struct VisionTransformerTests {
    private func expect(_ y: Tensor<Float>, firstRow: Int = 0, matches expected: BoundedMatrix, _ label: String) {
        var worst = 0.0
        for index in expected.values.indices {
            let actual = Double(y[flat: firstRow * expected.columns + index])
            worst = actual.isNaN ? .infinity : max(worst, abs(actual - expected.values[index]) / expected.errors[index])
        }
        #expect(worst <= 1, "\(label): \(worst) of the bound")
    }

    private func pictures(_ count: Int, rows: Int = 20, columns: Int = 20) throws -> Tensor<Float> {
        try .normal([count, 3, rows, columns], seed: 5)
    }

    private func picture(_ all: Tensor<Float>, _ index: Int) throws -> Tensor<Float> {
        let count = all.count / all.shape[0]
        return try Tensor(Array(all.shape.dropFirst())) { all[flat: index * count + $0] }
    }

    @Test("every layer, the tokens and the pooled row agree with the description in Double", arguments: [false, true])
    func agree(_ isCLIP: Bool) throws {
        let tiny = try TinyVisionModel(isCLIP: isCLIP)
        let pictures = try pictures(2)
        for set in InstructionSet.available {
            let model = try VisionTransformer(folder: tiny.folder, instructionSet: set)
            #expect(model.layers.count == 3 && model.configuration.grid == GridSize(side: 3))
            var (hidden, workspace): ([Tensor<Float>], VisionWorkspace) = ([], VisionWorkspace())
            let output = try model(pictures, workspace: &workspace) { _, tokens in hidden.append(tokens) }
            let length = isCLIP ? 10 : 9
            #expect(output.tokens.shape == [2 * length, 24] && output.grid == GridSize(side: 3))
            for index in 0..<2 {
                let label = "\(isCLIP ? "CLIP" : "SigLIP"), \(set), picture \(index)"
                let expected = try tiny.reference(picture(pictures, index))
                for layer in 0..<3 {
                    expect(
                        hidden[layer], firstRow: index * length, matches: expected.hidden[layer + 1], "\(label), layer \(layer)"
                    )
                }
                expect(output.tokens, firstRow: index * length, matches: expected.tokens, label)
                expect(try #require(output.pooled), firstRow: index, matches: expected.pooled, label + ", pooled")
                if let projected = expected.projected {
                    expect(try #require(output.projected), firstRow: index, matches: projected, label + ", projected")
                } else {
                    #expect(output.projected == nil)
                }
            }
        }
    }

    @Test("what a user would state: single precision is within 10⁻⁵ of Double, 8 bits within a few percent")
    func tolerances() throws {
        let tiny = try TinyVisionModel()
        let pictures = try pictures(1)
        let expected = try tiny.reference(picture(pictures, 0)).tokens.values
        let norm = expected.reduce(0) { $0 + $1 * $1 }.squareRoot()
        for (format, bound) in [(VisionLinearFormat.float32, 1e-6), (.float16, 2e-3), (.bfloat16, 1e-2), (.w8a8, 4e-2)] {
            let tokens = try VisionTransformer(folder: tiny.folder, linear: format)(pictures).tokens
            let error = zip(tokens.elements, expected).reduce(0) { $0 + (Double($1.0) - $1.1) * (Double($1.0) - $1.1) }
            #expect(error.squareRoot() <= bound * norm, "\(format): \(error.squareRoot() / norm)")
        }
    }

    @Test("the bits do not depend on threads or on other pictures")
    func independence() throws {
        let tiny = try TinyVisionModel(isCLIP: true)
        let model = try VisionTransformer(folder: tiny.folder, linear: .w8a8)
        let pictures = try pictures(3)
        let all = try model(pictures, on: .serial)
        #expect(try model(pictures, on: WorkerPool(threads: 7)).tokens == all.tokens)
        let alone = try model(picture(pictures, 1))
        #expect(alone.tokens.elements == Array(all.tokens.elements[10 * 24..<20 * 24]))
        #expect(alone.pooled?.elements == Array(try #require(all.pooled).elements[24..<48]))
    }

    @Test("random weights depend on seed and names only, and spread their tokens")
    func random() throws {
        let c = VisionTransformerConfiguration(
            imageSize: 28, patchSize: 7, layer: VisionLayerConfiguration(width: 36, heads: 3, hidden: 50), layers: 2,
            hasPoolingHead: true)
        let weights = try VisionTransformerWeights(c, seed: 3)
        #expect(try weights.layer(1).up.weight == VisionTransformerWeights(c, seed: 3).layer(1).up.weight)
        #expect(try weights.layer(1).up.weight != VisionTransformerWeights(c, seed: 4).layer(1).up.weight)
        #expect(try weights.layer(1).up.weight != weights.layer(0).up.weight)
        let output = try VisionTransformer(weights)(pictures(1, rows: 30, columns: 28))
        #expect(output.tokens.elements.allSatisfy(\.isFinite) && output.pooled?.shape == [1, 36])
        #expect(Set(output.tokens.elements.map { $0.bitPattern }).count > 400)
        var wrong = c
        wrong.patchSize = 29
        #expect(throws: SparseKernelsError.self) { try VisionTransformerWeights(wrong, seed: 1) }
    }

    @Test(
        "another number of patches has a position table that was resized to it, but for the class token",
        arguments: [false, true])
    func otherGrids(_ isCLIP: Bool) throws {
        let tiny = try TinyVisionModel(isCLIP: isCLIP)
        let pictures = try pictures(2, rows: 27, columns: 26)
        let resized = try VisionTransformer(folder: tiny.folder)(pictures)
        #expect(resized.grid == GridSize(side: 4))
        // A model that was made for 24 pixels, with that table.
        let name = "vision_model.embeddings.position_embedding.weight"
        let (table, first) = (tiny.weights[name]!, isCLIP ? 24 : 0)
        let grid = try Tensor<Float>([3, 3, 24]) { table[flat: first + $0] }
        let larger = try ImageResize(GridSize(side: 3), to: GridSize(side: 4), filter: .bicubic)(grid, layout: .interleaved)
        try tiny.write(
            replacing: name, by: Tensor([16 + first / 24, 24], Array(table.elements[..<first]) + larger.elements))
        try tiny.write(
            text: TinyVisionModel.configuration(isCLIP: isCLIP, changes: ["image_size": "24"]), to: "config.json")
        #expect(try VisionTransformer(folder: tiny.folder)(pictures).tokens == resized.tokens)
        let wide = try VisionTransformer(folder: tiny.folder)(.normal([3, 6, 50], seed: 1))
        #expect(wide.grid == GridSize(rows: 1, columns: 8) && wide.tokens.shape == [8 + first / 24, 24])
    }

    @Test("pictures of other shapes are refused")
    func shapes() throws {
        let tiny = try TinyVisionModel()
        let model = try VisionTransformer(folder: tiny.folder)
        for shape in [[3, 5, 20], [3, 20, 5], [1, 20, 20], [20, 20], [0, 3, 20, 20], [2, 4, 20, 20], [1, 1, 3, 20, 20]] {
            let error = #expect(throws: SparseKernelsError.self) { try model(Tensor(zeros: shape)) }
            #expect(error?.code == .invalidShape && error?.argument == "pictures", "\(shape)")
        }
    }

    @Test("what stops a pass between layers comes out of it")
    func stopping() throws {
        let tiny = try TinyVisionModel()
        let model = try VisionTransformer(folder: tiny.folder)
        var (last, workspace) = (-1, VisionWorkspace())
        let stop = SparseKernelsError(.invalidArgument, "layer", expected: "less", actual: "enough")
        #expect(throws: stop) {
            _ = try model(pictures(1), workspace: &workspace) { layer, _ throws(SparseKernelsError) in
                last = layer
                if layer == 1 { throw stop }
            }
        }
        #expect(last == 1)
    }
}
