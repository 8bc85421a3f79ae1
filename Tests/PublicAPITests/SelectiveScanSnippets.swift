import SparseKernels
import SparseKernelsReference
import Testing

/// The snippets of Docs/Operators/SelectiveScan.md, with checks of their comments.
@Suite("Snippets: selective scan")
struct SelectiveScanSnippets {
    @Test("prompts and steps")
    func scan() throws {
        let aLog = try Tensor<Float>.normal([64, 16], seed: 1)
        let (d, deltaBias) = try (Tensor<Float>.normal([64], seed: 2), Tensor<Float>.normal([64], seed: 3))
        let (x, delta) = try (Tensor<Float>.normal([50, 64], seed: 4), Tensor<Float>.normal([50, 64], seed: 5))
        let (b, c) = try (Tensor<Float>.normal([50, 16], seed: 6), Tensor<Float>.normal([50, 16], seed: 7))

        let scan = try SelectiveScan(aLog: aLog, skip: d, deltaBias: deltaBias)
        let states = try RecurrentStates(slots: 2, heads: 1, rows: scan.stateSize, columns: scan.channels)
        let batch = try PackedSequences(lengths: [37, 13])
        var y = try Tensor<Float>(zeros: [50, 64])
        try scan.run(
            x: x.matrixView(), delta: delta.matrixView(), b: b.matrixView(), c: c.matrixView(), into: y.mutableMatrixView(),
            batch: batch, states: states)

        // A step of decoding: one token per sequence, which continues from the states.
        let step = try PackedSequences(stepOf: [0, 1])
        let (x1, delta1) = try (Tensor<Float>.normal([2, 64], seed: 8), Tensor<Float>.normal([2, 64], seed: 9))
        let (b1, c1) = try (Tensor<Float>.normal([2, 16], seed: 10), Tensor<Float>.normal([2, 16], seed: 11))
        var y1 = try Tensor<Float>(zeros: [2, 64])
        try scan.run(
            x: x1.matrixView(), delta: delta1.matrixView(), b: b1.matrixView(), c: c1.matrixView(),
            into: y1.mutableMatrixView(), batch: step, states: states)

        // From the last token to the first.
        try states.reset(0)
        try states.reset(1)
        try scan.run(
            x: x.matrixView(), delta: delta.matrixView(), b: b.matrixView(), c: c.matrixView(), into: y.mutableMatrixView(),
            direction: .backward, batch: batch, states: states)

        // B and C of every channel that are the same for all tokens.
        let a = try Tensor<Float>(aLog.shape) { -1 - Float($0 % 16) }
        let fixed = try SelectiveScan(a: a, fixedB: aLog, fixedC: aLog)
        try fixed.run(
            x: x.matrixView(), delta: delta.matrixView(), into: y.mutableMatrixView(), batch: batch, states: states)
        #expect(y.elements.allSatisfy { $0.isFinite } && y1.elements.allSatisfy { $0.isFinite })
    }
}
