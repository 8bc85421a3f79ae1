import Foundation
import NemotronH
import SparseKernelsReference
import TestSupport
import Testing

/// Random weights and inputs of a mixer.
struct Mamba2Case: Sendable {
    let configuration: Mamba2Configuration
    let tensors: Mamba2Tensors

    init(_ configuration: Mamba2Configuration, hasBias: Bool = true, seed: UInt64 = 1) throws {
        let c = configuration
        self.configuration = c
        func normal(_ shape: [Int], _ index: UInt64, _ scale: Float) throws -> Tensor<Float> {
            try .normal(shape, seed: seed * 16 + index, scale: scale)
        }
        tensors = Mamba2Tensors(
            convolutionWeight: try normal([c.convolvedWidth, c.convolutionWidth], 0, 0.5),
            convolutionBias: hasBias ? try normal([c.convolvedWidth], 1, 0.2) : nil, timeStepBias: try normal([c.heads], 2, 1),
            aLog: try normal([c.heads], 3, 1), skip: try normal([c.heads], 4, 1), normWeight: try normal([c.innerWidth], 5, 1))
    }

    static func standard() throws -> Mamba2Case {
        try Mamba2Case(Mamba2Configuration(heads: 6, headDim: 10, groups: 2, stateSize: 20))
    }

    func projected(_ tokens: Int, seed: UInt64) throws -> Tensor<Float> {
        try .normal([tokens, configuration.projectedWidth], seed: 100 + seed)
    }

    func run(
        _ mixer: Mamba2Mixer, _ projected: Tensor<Float>, _ batch: PackedSequences, _ states: Mamba2States,
        on pool: WorkerPool = .shared
    ) throws -> Tensor<Float> {
        var output = try Tensor<Float>(zeros: [projected.shape[0], configuration.innerWidth])
        var workspace = Mamba2Workspace()
        try mixer.run(
            projected: projected, into: &output, batch: batch, states: states, workspace: &workspace, on: pool)
        return output
    }
}

@Suite("Mamba-2 between its projections")
struct Mamba2MixerTests {
    /// Rows of a tensor in `Double`.
    private func rows(_ x: Tensor<Float>) -> [[Double]] {
        (0..<x.shape[0]).map { row in (0..<x.shape[1]).map { Double(x[row, $0]) } }
    }

    private func difference(_ x: Tensor<Float>, _ from: Int, _ expected: [[Double]]) -> Double {
        var largest = 0.0
        for (row, values) in expected.enumerated() {
            for (channel, value) in values.enumerated() { largest = max(largest, abs(Double(x[from + row, channel]) - value)) }
        }
        return largest
    }

    @Test("a prompt, its parts and its steps are the definition's, on every level", arguments: InstructionSet.available)
    func definition(_ set: InstructionSet) throws {
        for (sizes, limits, hasBias, tokens) in [
            ((6, 10, 2, 20, 4), 0...Float.infinity, true, 70), ((3, 16, 3, 7, 3), Float(0.01)...0.5, false, 9),
            ((4, 33, 1, 16, 2), 0...Float.infinity, true, 5),
        ] {
            let item = try Mamba2Case(
                Mamba2Configuration(
                    heads: sizes.0, headDim: sizes.1, groups: sizes.2, stateSize: sizes.3, convolutionWidth: sizes.4,
                    timeStepLimits: limits), hasBias: hasBias)
            let projected = try item.projected(tokens, seed: 1)
            let (expected, tolerance) = ReferenceMamba2.outputs(rows(projected), item.tensors, item.configuration)
            #expect(tolerance < 1e-2)
            let mixer = try Mamba2Mixer(item.tensors, item.configuration, instructionSet: set)
            for lengths in [[tokens], [tokens - 3, 0, 3], [1, 1, tokens - 2], [3, tokens - 4, 1]] {
                let states = try Mamba2States(slots: 3, item.configuration)
                var first = 0
                for length in lengths {
                    let part = try Tensor<Float>([length, item.configuration.projectedWidth]) {
                        projected[flat: first * item.configuration.projectedWidth + $0]
                    }
                    let output = try item.run(mixer, part, PackedSequences(lengths: [length], slots: [1]), states)
                    let distance = difference(output, 0, Array(expected[first..<first + length]))
                    #expect(distance <= tolerance, "\(sizes), \(lengths): \(distance) of \(tolerance)")
                    first += length
                }
            }
        }
    }

    @Test("sequences of a batch are those that they are alone, and leave other slots as they are")
    func batches() throws {
        let item = try Mamba2Case.standard()
        let c = item.configuration
        let mixer = try Mamba2Mixer(item.tensors, c)
        let lengths = [40, 0, 1, 2, 17]
        let projected = try item.projected(lengths.reduce(0, +), seed: 2)
        let batch = try PackedSequences(lengths: lengths, slots: [3, 0, 5, 1, 2])
        let together = try Mamba2States(slots: 6, c)
        let untouched = try Tensor<Float>.normal([c.heads, c.stateSize, c.headDim], seed: 9)
        try together.recurrence.setState(untouched, of: 4)
        let output = try item.run(mixer, projected, batch, together)
        var first = 0
        for (length, slot) in zip(lengths, batch.slots) {
            let alone = try Mamba2States(slots: 1, c)
            let part = try Tensor<Float>([length, c.projectedWidth]) { projected[flat: first * c.projectedWidth + $0] }
            let own = try item.run(mixer, part, PackedSequences(lengths: [length]), alone)
            #expect(own.elements == Array(output.elements[first * c.innerWidth..<(first + length) * c.innerWidth]))
            #expect(try together.recurrence.state(of: slot) == alone.recurrence.state(of: 0))
            #expect(try together.convolution.state(of: slot) == alone.convolution.state(of: 0))
            first += length
        }
        #expect(try together.recurrence.state(of: 4) == untouched)
        let empty = try item.run(mixer, try item.projected(0, seed: 0), PackedSequences(lengths: []), together)
        #expect(empty.shape == [0, c.innerWidth])
    }

    @Test("every number of threads gives the same bits")
    func threads() throws {
        let item = try Mamba2Case.standard()
        let mixer = try Mamba2Mixer(item.tensors, item.configuration)
        let projected = try item.projected(90, seed: 3)
        let batch = try PackedSequences(lengths: [70, 20])
        func outputs(_ pool: WorkerPool) throws -> (Tensor<Float>, Tensor<Float>) {
            let states = try Mamba2States(slots: 2, item.configuration)
            return (try item.run(mixer, projected, batch, states, on: pool), try states.recurrence.state(of: 1))
        }
        let expected = try outputs(.serial)
        for threads in [2, 7] {
            let result = try outputs(WorkerPool(threads: threads))
            #expect(result.0 == expected.0 && result.1 == expected.1)
        }
    }

    @Test("rows may have strides, and states 16 bits")
    func stridesAndFormats() throws {
        let item = try Mamba2Case.standard()
        let c = item.configuration
        let mixer = try Mamba2Mixer(item.tensors, c)
        let projected = try item.projected(12, seed: 4)
        let batch = try PackedSequences(lengths: [12])
        let expected = try item.run(mixer, projected, batch, Mamba2States(slots: 1, c))
        let (width, stride) = (c.projectedWidth, c.projectedWidth + 5)
        let wide = try Tensor<Float>([12, stride]) { $0 % stride < width ? projected[$0 / stride, $0 % stride] : .nan }
        var output = try Tensor<Float>([12, c.innerWidth + 3]) { _ in -7 }
        var workspace = Mamba2Workspace()
        try mixer.run(
            projected: MatrixView(wide.span, rows: 12, columns: width, rowStride: stride),
            into: MutableMatrixView(output.mutableSpan, rows: 12, columns: c.innerWidth, rowStride: c.innerWidth + 3),
            batch: batch, states: Mamba2States(slots: 1, c), workspace: &workspace)
        for row in 0..<12 {
            for channel in 0..<c.innerWidth + 3 {
                #expect(output[row, channel] == (channel < c.innerWidth ? expected[row, channel] : -7))
            }
        }
        let short = try Mamba2States(slots: 1, c, format: .bfloat16)
        #expect(short.recurrence.bytesPerSlot == 2 * c.heads * c.stateSize * c.headDim)
        let rounded = try item.run(mixer, projected, batch, short)
        #expect(rounded != expected || short.recurrence.format == .bfloat16)
        let distance = zip(rounded.elements, expected.elements).map { abs($0 - $1) }.max()!
        #expect(distance < 0.1)
    }

    @Test("a workspace grows once")
    func workspace() throws {
        let c = try Mamba2Case.standard().configuration
        var workspace = Mamba2Workspace()
        #expect(workspace.byteCount == 0)
        try workspace.reserve(tokens: 10, c)
        #expect(workspace.byteCount == 4 * 10 * (c.convolvedWidth + c.innerWidth))
        try workspace.reserve(tokens: 3, c)
        #expect(workspace.byteCount == 4 * 10 * (c.convolvedWidth + c.innerWidth))
    }

    @Test("operands that do not fit are named, and no state changes")
    func errors() throws {
        let item = try Mamba2Case.standard()
        let c = item.configuration
        let mixer = try Mamba2Mixer(item.tensors, c)
        let states = try Mamba2States(slots: 2, c)
        let projected = try item.projected(4, seed: 5)
        let batch = try PackedSequences(lengths: [4], slots: [1])
        expectError(.invalidShape, "projected", containing: "[5, \(c.projectedWidth)]", "[4, \(c.projectedWidth)]") {
            _ = try item.run(mixer, projected, PackedSequences(lengths: [5]), states)
        }
        expectError(.invalidShape, "projected") {
            _ = try item.run(mixer, try .normal([4, c.projectedWidth - 1], seed: 1), batch, states)
        }
        expectError(.invalidArgument, "slots[0]", containing: "from 0 to 1", "2") {
            _ = try item.run(mixer, projected, PackedSequences(lengths: [4], slots: [2]), states)
        }
        let other = try Mamba2Configuration(heads: 6, headDim: 10, groups: 2, stateSize: 21)
        expectError(.invalidShape, "convolution") { _ = try item.run(mixer, projected, batch, Mamba2States(slots: 2, other)) }
        expectError(.invalidShape, "recurrence") {
            _ = try Mamba2States(
                convolution: RecurrentStates(slots: 3, heads: 1, rows: 3, columns: c.convolvedWidth),
                recurrence: states.recurrence, c)
        }
        var output = try Tensor<Float>(zeros: [4, c.innerWidth + 1])
        var workspace = Mamba2Workspace()
        expectError(.invalidShape, "output", containing: "[4, \(c.innerWidth)]") {
            try mixer.run(
                projected: projected.matrixView(), into: output.mutableMatrixView(), batch: batch, states: states,
                workspace: &workspace)
        }
        #expect(try states.recurrence.state(of: 1).elements.allSatisfy { $0 == 0 })
        #expect(try states.convolution.state(of: 1).elements.allSatisfy { $0 == 0 })
        for (name, change) in [
            ("convolutionWeight", \Mamba2Tensors.convolutionWeight), ("timeStepBias", \.timeStepBias), ("aLog", \.aLog),
            ("skip", \.skip), ("normWeight", \.normWeight),
        ] as [(String, WritableKeyPath<Mamba2Tensors, Tensor<Float>>)] {
            var tensors = item.tensors
            tensors[keyPath: change] = try .normal([3], seed: 1)
            expectError(.invalidShape, name, containing: "[3]") { _ = try Mamba2Mixer(tensors, c) }
        }
        var tensors = item.tensors
        tensors.convolutionBias = try .normal([3], seed: 1)
        expectError(.invalidShape, "convolutionBias") { _ = try Mamba2Mixer(tensors, c) }
    }
}
