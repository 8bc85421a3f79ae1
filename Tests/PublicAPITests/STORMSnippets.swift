import STORM
import SparseKernelsReference
import Testing

/// The snippets of Docs/Papers/STORM.md, with checks of their comments.
@Suite("Snippets: STORM")
struct STORMSnippets {
    static func direction() throws -> STORMDirectionWeights {
        try STORMDirectionWeights(
            convolution: .normal([64, 4], seed: 1), convolutionBias: .normal([64], seed: 2),
            projection: .normal([34, 64], seed: 3, scale: 0.1), stepProjection: .normal([64, 2], seed: 4),
            stepBias: .normal([64], seed: 5), aLog: .normal([64, 16], seed: 6), skip: .normal([64], seed: 7))
    }

    @Test("encoding and reducing")
    func encode() throws {
        let (forward, backward) = try (Self.direction(), Self.direction())
        let layer = try STORMLayerWeights(
            normWeight: .normal([32], seed: 8), normBias: .normal([32], seed: 9),
            inputProjection: .normal([128, 32], seed: 10, scale: 0.2), forward: forward, backward: backward,
            outputProjection: .normal([32, 64], seed: 11, scale: 0.1))
        let weights = [layer]
        var tokens = try Tensor<Float>.normal([8 * 36, 32], seed: 12)

        let encoder = try STORMEncoder(weights, STORMConfiguration(width: 32))
        let states = try encoder.makeStates()
        try encoder.run(&tokens, states: states)  // [frames · tokens of a frame, width]
        let frames = try Tensor([8, 6, 6, 32], tokens.elements)
        let fewer = try STORMTokenReduction(temporalPool: 4, samplingRate: 2)(frames)
        print(fewer.shape)  // [1, 6, 6, 32]

        #expect(fewer.shape == [1, 6, 6, 32])

        // Frames as they come: one direction, which continues from the states.
        let stream = try STORMEncoder(weights, STORMConfiguration(width: 32, combination: .forwardOnly))
        let memory = try stream.makeStates()
        var frame = try Tensor<Float>.normal([36, 32], seed: 13)
        try stream.run(&frame, states: memory)
        try memory.reset(0)  // before another video
        #expect(frame.elements.allSatisfy { $0.isFinite })
    }
}
