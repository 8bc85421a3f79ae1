import CATS
import SparseKernelsReference
import TestSupport
import Testing

/// A layer's weights, and the layer in `Double`.
struct CATSCase<W: AttentionElement> {
    let gate: Tensor<W>
    let up: Tensor<W>
    let down: Tensor<W>
    let function: GatedActivation.Function

    init(width: Int, inner: Int, function: GatedActivation.Function = .silu) throws {
        let scale = 1 / Float(width).squareRoot()
        gate = try .normal([inner, width], seed: 1, scale: scale)
        up = try .normal([inner, width], seed: 2, scale: scale)
        down = try .normal([width, inner], seed: 3, scale: 1 / Float(inner).squareRoot())
        self.function = function
    }

    func layer(
        _ threshold: Float, breakEven: Double = 1, unionTokens: Int = 8, _ set: InstructionSet? = nil
    ) throws -> CATSLayer {
        try CATSLayer(
            gate: gate, up: up, down: down, threshold: threshold, function: function, breakEvenDensity: breakEven,
            unionTokens: unionTokens, instructionSet: set)
    }

    func input(_ tokens: Int, seed: UInt64 = 4) throws -> Tensor<Float> { try .normal([tokens, gate.shape[1]], seed: seed) }

    func expected(_ x: Tensor<Float>, threshold: Double?) -> [ReferenceGatedMLP.Row] {
        let oracle = ReferenceGatedMLP(gate: gate, up: up, down: down, function: function)
        let width = x.shape[1]
        return (0..<x.shape[0]).map { token in
            oracle.row((0..<width).map { Double(x[flat: token * width + $0]) }, threshold: threshold)
        }
    }

    /// Checks y `[tokens, width]` against the oracle.
    func compare(
        _ y: Tensor<Float>, _ rows: [ReferenceGatedMLP.Row], _ label: @autoclosure () -> String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        var worst = (excess: 0.0, text: "")
        for (token, row) in rows.enumerated() {
            for (index, value) in row.output.enumerated() {
                let actual = Double(y[flat: token * row.output.count + index])
                let excess = abs(actual - value) - row.errorBound[index]
                if !(excess <= worst.excess) { worst = (excess, "(\(token), \(index)): \(actual), expected \(value)") }
            }
        }
        #expect(worst.text.isEmpty, "\(label()): \(worst.text)", sourceLocation: sourceLocation)
    }
}

extension CATSLayer {
    /// The output for all rows, and the channels that were computed.
    func output(_ x: Tensor<Float>, on pool: WorkerPool = .shared) throws -> (y: Tensor<Float>, computed: Int) {
        var y = try Tensor<Float>(zeros: [x.shape[0], width])
        var workspace = CATSWorkspace()
        let computed = try run(x, into: &y, workspace: &workspace, on: pool)
        return (y, computed)
    }
}

@Suite("CATS: layers")
struct CATSLayerTests {
    private func check<W: AttentionElement>(_ type: W.Type, _ set: InstructionSet) throws {
        for (width, inner) in [(24, 70), (33, 7), (1, 1), (17, 131)] {
            let item = try CATSCase<W>(width: width, inner: inner)
            for threshold: Float in [0, 0.1, 0.4] {
                for tokens in [1, 2, 5, 11] {
                    let x = try item.input(tokens)
                    let rows = item.expected(x, threshold: Double(threshold))
                    let (y, computed) = try item.layer(threshold, set).output(x)
                    item.compare(y, rows, "\(set), \(W.self), \(width) × \(inner), threshold \(threshold), \(tokens) tokens")
                    #expect(computed <= inner)
                }
            }
        }
    }

    @Test("layers agree with the oracle, for all types of weights", arguments: InstructionSet.available)
    func oracle(_ set: InstructionSet) throws {
        try check(Float.self, set)
        try check(Float16.self, set)
        try check(BFloat16.self, set)
    }

    @Test("all functions", arguments: GatedActivation.Function.allCases)
    func functions(_ function: GatedActivation.Function) throws {
        let item = try CATSCase<Float>(width: 20, inner: 50, function: function)
        let x = try item.input(3)
        for set in InstructionSet.available {
            item.compare(try item.layer(0.2, set).output(x).y, item.expected(x, threshold: 0.2), "\(set), \(function)")
        }
    }

    @Test("the union of what tokens keep, with zeros where a token lacks a channel, is what all channels give")
    func unions() throws {
        let item = try CATSCase<Float16>(width: 40, inner: 200)
        let x = try item.input(6)
        for set in InstructionSet.available {
            let sparse = try item.layer(0.3, breakEven: 1, set).output(x)
            let whole = try item.layer(0.3, breakEven: 0, set).output(x)
            let many = try item.layer(0.3, unionTokens: 5, set).output(x)
            #expect(sparse.computed < 200 && whole.computed == 200 && many.computed == 200)
            let rows = item.expected(x, threshold: 0.3)
            item.compare(sparse.y, rows, "\(set), union")
            item.compare(whole.y, rows, "\(set), past break-even")
            item.compare(many.y, rows, "\(set), many tokens")
            // The union has the channels that some token keeps.
            let kept = (0..<200).count { channel in
                rows.contains { abs($0.activations[channel]) > 0.3 }
            }
            #expect(abs(sparse.computed - kept) <= 1, "\(set)")
        }
    }

    @Test("a threshold of 0 is the dense layer; a large one leaves nothing")
    func limits() throws {
        let item = try CATSCase<Float>(width: 32, inner: 96)
        let x = try item.input(1)
        let dense = item.expected(x, threshold: nil)
        let (y, computed) = try item.layer(0).output(x)
        item.compare(y, dense, "threshold 0")
        #expect(computed == 96)
        let (nothing, none) = try item.layer(1000).output(x)
        #expect(none == 0 && nothing.elements.allSatisfy { $0 == 0 })
        #expect(try item.layer(0).output(try Tensor(zeros: [0, 32])).computed == 0)
    }

    @Test("the error grows with the sparsity, and the computed channels fall")
    func monotone() throws {
        let item = try CATSCase<Float>(width: 64, inner: 512)
        var histogram = ActivationHistogram()
        var workspace = CATSWorkspace()
        let sample = try item.input(64, seed: 9)
        try item.layer(0).record(sample, into: &histogram, workspace: &workspace)
        let layer = try item.layer(0)
        let x = try item.input(16, seed: 10)
        let dense = try layer.output(x).y
        var (errors, computed): ([Double], [Int]) = ([], [])
        for sparsity in stride(from: 0.0, through: 0.9, by: 0.1) {
            let sparse = try layer.with(threshold: histogram.threshold(sparsity: sparsity))
            var (error, channels) = (0.0, 0)
            for token in 0..<16 {
                let row = try Tensor([1, 64]) { x[flat: token * 64 + $0] }
                let (y, count) = try sparse.output(row)
                channels += count
                error += (0..<64).reduce(0) { $0 + pow(Double(y[flat: $1] - dense[flat: token * 64 + $1]), 2) }
            }
            errors.append(error)
            computed.append(channels)
            // A part s of the channels is dropped, on text like that of the calibration.
            #expect(abs(Double(channels) / (16 * 512) - (1 - sparsity)) < 0.03, "sparsity \(sparsity)")
        }
        #expect(zip(errors, errors.dropFirst()).allSatisfy { $0 < $1 }, "\(errors)")
        #expect(zip(computed, computed.dropFirst()).allSatisfy { $0 > $1 }, "\(computed)")
    }

    private func pow(_ x: Double, _ power: Int) -> Double { x * x }

    @Test("bits do not depend on threads, strides, or what the workspace held")
    func determinism() throws {
        let item = try CATSCase<Float16>(width: 96, inner: 300)
        let layer = try item.layer(0.2)
        var workspace = CATSWorkspace()
        for tokens in [1, 3, 12] {
            let x = try item.input(tokens)
            let expected = try layer.output(x, on: .serial).y.bits
            for threads in [1, 2, 7] {
                let pool = WorkerPool(threads: threads)
                #expect(try layer.output(x, on: pool).y.bits == expected, "\(threads) threads, \(tokens) tokens")
                // Rows apart, and a workspace that other calls have used.
                let wide = try Tensor<Float>([tokens, 101]) { $0 % 101 < 96 ? x[flat: $0 / 101 * 96 + $0 % 101] : .nan }
                var y = try Tensor([tokens, 99]) { _ in Float.nan }
                try layer.run(
                    MatrixView(wide.span, rows: tokens, columns: 96, rowStride: 101),
                    into: MutableMatrixView(y.mutableSpan, rows: tokens, columns: 96, rowStride: 99), workspace: &workspace,
                    on: pool)
                let rows = try Tensor([tokens, 96]) { y[flat: $0 / 96 * 99 + $0 % 96] }
                #expect(rows.bits == expected)
                #expect((0..<tokens).allSatisfy { y[flat: $0 * 99 + 97].isNaN })
            }
        }
    }

    @Test("NaN is never dropped, and stays in its token")
    func nonFinite() throws {
        let item = try CATSCase<Float>(width: 16, inner: 40)
        for set in InstructionSet.available {
            let layer = try item.layer(0.3, set)
            var x = try item.input(3)
            let clean = try layer.output(x).y
            x[1, 2] = .nan
            let (y, computed) = try layer.output(x)
            #expect(computed == 40)
            for column in 0..<16 {
                #expect(y[1, column].isNaN)
                #expect(y[0, column].isFinite && y[2, column].isFinite)
                #expect(abs(y[0, column] - clean[0, column]) < 1e-4)
            }
        }
    }

    @Test("errors name the operand and both numbers, and write nothing")
    func errors() throws {
        let item = try CATSCase<Float>(width: 8, inner: 12)
        for threshold: Float in [.nan, -1, .infinity] {
            expectError(.invalidArgument, "threshold", containing: "\(threshold)") { _ = try item.layer(threshold) }
            expectError(.invalidArgument, "threshold") { _ = try item.layer(0).with(threshold: threshold) }
        }
        expectError(.invalidArgument, "breakEvenDensity", containing: "1.5") { _ = try item.layer(0, breakEven: 1.5) }
        expectError(.invalidArgument, "unionTokens", containing: "0") { _ = try item.layer(0, unionTokens: 0) }
        let other = try Tensor<Float>(zeros: [12, 9])
        expectError(.invalidShape, "up", containing: "[12, 8]", "[12, 9]") {
            _ = try CATSLayer(gate: item.gate, up: other, down: item.down, threshold: 0)
        }
        expectError(.invalidShape, "down", containing: "[8, 12]", "[12, 9]") {
            _ = try CATSLayer(gate: item.gate, up: item.up, down: other, threshold: 0)
        }
        expectError(.invalidShape, "gate") {
            _ = try CATSLayer(gate: Tensor<Float>(zeros: [0, 8]), up: item.up, down: item.down, threshold: 0)
        }
        let layer = try item.layer(0.1)
        var workspace = CATSWorkspace()
        var y = try Tensor([2, 8]) { _ in Float(7) }
        let x = try item.input(2)
        expectError(.invalidShape, "x", containing: "8", "7") {
            try layer.run(
                MatrixView(x.span, rows: 2, columns: 7), into: y.mutableMatrixView(), workspace: &workspace)
        }
        expectError(.invalidShape, "y", containing: "2 × 8", "1 × 8") {
            try layer.run(
                x.matrixView(), into: MutableMatrixView(y.mutableSpan, rows: 1, columns: 8), workspace: &workspace)
        }
        #expect(y.elements.allSatisfy { $0 == 7 })
    }
}
