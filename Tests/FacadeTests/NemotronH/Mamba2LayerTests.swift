import Foundation
import NemotronH
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Mamba-2 layers of checkpoints")
struct Mamba2LayerTests {
    private static let hidden = 14

    /// Tensors of a layer under their names in a checkpoint.
    private func tensors(_ item: Mamba2Case) throws -> [String: Tensor<Float>] {
        let (c, t) = (item.configuration, item.tensors)
        return [
            "in_proj.weight": try .normal([c.projectedWidth, Self.hidden], seed: 50),
            "out_proj.weight": try .normal([Self.hidden, c.innerWidth], seed: 51),
            "conv1d.weight": try Tensor([c.convolvedWidth, 1, c.convolutionWidth], t.convolutionWeight.elements),
            "conv1d.bias": t.convolutionBias!, "dt_bias": t.timeStepBias, "A_log": t.aLog, "D": t.skip,
            "norm.weight": t.normWeight,
        ]
    }

    private func file(_ tensors: [String: Tensor<Float>], prefix: String, in folder: TemporaryDirectory) throws
        -> SafetensorsFile
    {
        var writer = SafetensorsWriter()
        for (name, tensor) in tensors { try writer.add(prefix + name, tensor) }
        let path = folder.path + "/model.safetensors"
        try writer.write(to: path)
        return try SafetensorsFile(path: path)
    }

    @Test("a layer of a file is its projections around its mixer")
    func layer() throws {
        let folder = try TemporaryDirectory()
        let item = try Mamba2Case.standard()
        let c = item.configuration
        let all = try tensors(item)
        let file = try file(all, prefix: "backbone.layers.2.mixer.", in: folder)
        let layer = try Mamba2Layer(file: file, prefix: "backbone.layers.2.mixer", c)
        #expect(layer.hiddenSize == Self.hidden && layer.configuration == c)
        let x = try Tensor<Float>.normal([9, Self.hidden], seed: 7)
        let batch = try PackedSequences(lengths: [5, 4], slots: [1, 0])
        let result = try layer(x, batch: batch, states: Mamba2States(slots: 2, c))
        let projected = try FloatLinear(weight: all["in_proj.weight"]!)(x)
        let mixed = try item.run(Mamba2Mixer(item.tensors, c), projected, batch, Mamba2States(slots: 2, c))
        #expect(try result == FloatLinear(weight: all["out_proj.weight"]!)(mixed))
        let small = try Mamba2Layer(file: file, prefix: "backbone.layers.2.mixer", c, weights: .float8)
        #expect(small.input.byteCount < layer.input.byteCount)
        let rounded = try small(x, batch: batch, states: Mamba2States(slots: 2, c))
        let scale = result.elements.map(abs).max()!
        #expect(zip(rounded.elements, result.elements).allSatisfy { abs($0 - $1) < 0.5 * scale } && rounded != result)
        let empty = try layer(
            Tensor(zeros: [0, Self.hidden]), batch: PackedSequences(lengths: []), states: Mamba2States(slots: 0, c))
        #expect(empty.shape == [0, Self.hidden])
    }

    @Test("a tensor that is missing or of another shape is named with its file")
    func errors() throws {
        let folder = try TemporaryDirectory()
        let item = try Mamba2Case.standard()
        let all = try tensors(item)
        for name in all.keys where name != "conv1d.bias" {
            var some = all
            some[name] = nil
            let lacking = try file(some, prefix: "", in: folder)
            expectError(.notFound, describing: name, "model.safetensors") {
                _ = try Mamba2Layer(file: lacking, prefix: "", item.configuration)
            }
            some[name] = try .normal([3, 2], seed: 1)
            let other = try file(some, prefix: "", in: folder)
            expectError(.invalidShape, describing: name, "[3, 2]", "model.safetensors") {
                _ = try Mamba2Layer(file: other, prefix: "", item.configuration)
            }
        }
        let mixer = try Mamba2Mixer(item.tensors, item.configuration)
        expectError(.invalidShape, "input.outFeatures") {
            _ = try Mamba2Layer(
                mixer: mixer, input: FloatLinear(weight: Tensor<Float>(zeros: [3, 2])),
                output: FloatLinear(weight: Tensor<Float>(zeros: [3, 2])))
        }
    }

    /// The first layer of the trained model sees embeddings alone, so that its states say whether the mixer is right.
    @Test(
        "the states of the first layer of hybrid-lm are those that float64 has",
        .enabled(if: TestData.externalFile("models/hybrid-lm") != nil, TestData.absence))
    func golden() throws {
        let file = try SafetensorsFile(path: TestData.external + "/models/hybrid-lm/model.safetensors")
        let golden = try SafetensorsFile(path: TestData.external + "/goldens/models/hybrid_lm.safetensors")
        let tokens = try golden.tensor("in.tokens", as: Int32.self).elements.map(Int.init)
        let c = try Mamba2Configuration(heads: 12, headDim: 64, groups: 2, stateSize: 128)
        let layer = try Mamba2Layer(file: file, prefix: "backbone.layers.0.mixer", c)
        let embeddings = try TokenEmbedding(table: file.floatTensor("backbone.embeddings.weight"))
        var hidden = try Tensor<Float>(zeros: [300, 384])
        try embeddings.run(tokens: tokens, into: hidden.mutableMatrixView())
        let x = try RMSNorm(weight: file.floatTensor("backbone.layers.0.norm.weight"), epsilon: 1e-5)(hidden)
        let states = try Mamba2States(slots: 1, c)
        func check(_ prefix: String) throws {
            let (state, window) = (try golden.floatTensor(prefix + "ssm"), try golden.floatTensor(prefix + "conv"))
            let (own, last) = (try states.recurrence.state(of: 0), try states.convolution.state(of: 0))
            for head in 0..<12 {
                for p in 0..<64 {
                    for n in 0..<128 {
                        let expected = state[head, p, n]
                        #expect(abs(own[head, n, p] - expected) <= 1e-3 + 1e-4 * abs(expected))
                    }
                }
            }
            // The file keeps four inputs, of which the oldest is seen by no later token.
            for channel in 0..<c.convolvedWidth {
                for tap in 0..<3 { #expect(abs(last[0, tap, channel] - window[channel, tap + 1]) < 1e-3) }
            }
        }
        func rows(_ range: Range<Int>) throws -> Tensor<Float> {
            try Tensor([range.count, 384]) { x[flat: range.lowerBound * 384 + $0] }
        }
        _ = try layer(rows(0..<200), batch: PackedSequences(lengths: [200]), states: states)
        try check("aux.prefill.layer0.")
        for token in 200..<300 { _ = try layer(rows(token..<token + 1), batch: PackedSequences(stepOf: [0]), states: states) }
        try check("out.layer0.")
    }
}
