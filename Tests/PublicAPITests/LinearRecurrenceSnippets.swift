import SparseKernels
import Testing

/// The snippets of Docs/Operators/LinearRecurrence.md, with checks of their comments.
@Suite("Snippets: linear recurrences")
struct LinearRecurrenceSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("a prompt and a step in one call")
    func linear() throws {
        let (q, k, v) = try (Self.pattern([2, 21, 16], 7), Self.pattern([2, 21, 16], 5), Self.pattern([2, 21, 16], 3))
        var y = try Tensor<Float>(zeros: [2, 21, 16])

        let shape = try RecurrenceShape(keyHeads: 2, valueHeads: 2, keyDim: 16, valueDim: 16)
        let decays = try LinearRecurrence.lightningDecays(heads: 2, layer: 3, layers: 12)
        let lightning = try LinearRecurrence(shape, decay: .perHead(decays))
        let states = try RecurrentStates(slots: 4, shape: shape)
        // A prompt of 20 tokens in slot 1, and one more token of the sequence in slot 3.
        let batch = try PackedSequences(lengths: [20, 1], slots: [1, 3])
        try lightning.run(query: q, key: k, value: v, into: &y, batch: batch, states: states)

        let dot = (0..<16).reduce(Float(0)) { $0 + q[0, 20, $1] * k[0, 20, $1] }
        #expect(abs(y[0, 20, 5] - dot * v[0, 20, 5]) < 1e-5)
        #expect(try states.state(of: 1) != Tensor(zeros: [2, 16, 16]))
        #expect(try states.state(of: 0) == Tensor(zeros: [2, 16, 16]))
    }

    @Test("Mamba-2 over the rows of one projection")
    func duality() throws {
        let rows = try Self.pattern([20, 100], 7)
        let (aLog, dtBias, d) = try (Self.pattern([4], 3), Self.pattern([4], 5), Self.pattern([4], 11))
        var output = try Tensor<Float>(zeros: [20, 4, 16])

        let ssd = try StateSpaceDuality(
            heads: 4, headDim: 16, stateSize: 8, groups: 2, aLog: aLog, dtBias: dtBias, skip: d)
        let memory = try RecurrentStates(slots: 1, shape: ssd.shape)
        // A row: x of 4 × 16, B and C of 2 × 8, dt of 4.
        func slice(_ heads: Int, _ channels: Int) throws -> TensorGeometry {
            try TensorGeometry(heads: heads, tokens: 20, channels: channels, headStride: channels, tokenStride: 100)
        }
        try ssd.run(
            x: TensorView(rows.span, geometry: slice(4, 16)),
            b: TensorView(rows.span.extracting(droppingFirst: 64), geometry: slice(2, 8)),
            c: TensorView(rows.span.extracting(droppingFirst: 80), geometry: slice(2, 8)),
            dt: MatrixView(rows.span.extracting(droppingFirst: 96), rows: 20, columns: 4, rowStride: 100),
            into: output.mutableView(layout: .nhd), batch: PackedSequences(lengths: [20]), states: memory)

        #expect(output.elements.allSatisfy(\.isFinite) && output.elements.contains { $0 != 0 })
        #expect(try memory.state(of: 0).elements.contains { $0 != 0 })
    }
}
