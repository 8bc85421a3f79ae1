import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Gated activations and token embedding")
struct RowActivationTests {
    @Test(
        "functions are within their bounds over their range", arguments: InstructionSet.available,
        GatedActivation.Function.allCases)
    func accuracy(_ set: InstructionSet, _ function: GatedActivation.Function) throws {
        let sweep = (-60_000...60_000).map { Float($0) * 2e-4 } + (0...2000).map { -Float($0) * 0.05 }
        let tiny = (0...100).flatMap {
            [Float(sign: .plus, exponent: -$0, significand: 1.3), -Float(sign: .plus, exponent: -$0, significand: 1.3)]
        }
        let points = sweep + tiny
        let y = try GatedActivation(function, instructionSet: set)(Tensor([1, points.count], points))
        for (index, x) in points.enumerated() {
            let expected = ReferenceRows.activation(function, Double(x))
            let error = abs(Double(y[0, index]) - expected)
            if !(error <= ReferenceRows.activationError(function, Double(x))) {
                Issue.record("\(set), \(function): \(y[0, index]) for \(expected) at \(x)")
                return
            }
        }
    }

    static func check<X: AttentionElement, Y: AttentionElement>(
        _ x: X.Type, _ y: Y.Type, _ set: InstructionSet, columns: Int
    ) throws {
        let both = try Tensor<X>.normal([3, 2 * columns], seed: 1, scale: 2)
        for function in GatedActivation.Function.allCases {
            let operation = try GatedActivation(function, instructionSet: set)
            var result = try Tensor<Y>(zeros: [3, columns])
            try operation.run(halvesOf: both, into: &result, on: .serial)
            let gate = try Tensor<X>([3, columns]) { both[$0 / columns, $0 % columns] }
            let up = try Tensor<X>([3, columns]) { both[$0 / columns, columns + $0 % columns] }
            for index in 0..<3 * columns {
                let (g, u) = (Double(gate[flat: index].floatValue), Double(up[flat: index].floatValue))
                let expected = ReferenceRows.activation(function, g) * u
                let bound =
                    ReferenceRows.activationError(function, g) * abs(u)
                    + 2 * RowNormTests.rounding(Y.self) * abs(expected) + 0x1p-25
                if !(abs(Double(result[flat: index].floatValue) - expected) <= bound) {
                    Issue.record("\(set), \(function), \(columns) columns: \(result[flat: index]) for \(expected)")
                    return
                }
            }
            var separate = try Tensor<Y>(zeros: [3, columns])
            try operation.run(gate: gate, up: up, into: &separate)
            #expect(separate.bits == result.bits)
        }
    }

    @Test(
        "gate times up agrees with the oracle, also as halves of one matrix", arguments: InstructionSet.available,
        [1, 3, 7, 8, 15, 16, 17, 64, 129])
    func gated(_ set: InstructionSet, _ columns: Int) throws {
        try Self.check(Float.self, Float.self, set, columns: columns)
        try Self.check(Float16.self, BFloat16.self, set, columns: columns)
        try Self.check(BFloat16.self, Float16.self, set, columns: columns)
    }

    @Test("NaN stays, infinities have the documented limits, threads do not change bits", arguments: InstructionSet.available)
    func special(_ set: InstructionSet) throws {
        for function in GatedActivation.Function.allCases {
            let operation = try GatedActivation(function, instructionSet: set)
            let y = try operation(Tensor<Float>([1, 3], [.nan, .infinity, -.infinity]))
            #expect(y[0, 0].isNaN && y[0, 1] == .infinity, "\(set), \(function): \(y.elements)")
            switch function {
            case .relu, .reluSquared: #expect(y[0, 2] == 0)
            case .gelu, .geluTanh: #expect(y[0, 2].isNaN)
            case .silu: #expect(y[0, 2] == -.infinity)
            }
            let x = try Tensor<Float>.normal([900, 301], seed: 3)
            let first = try operation(gate: x, up: x, on: .serial)
            for threads in [2, 7] {
                #expect(try operation(gate: x, up: x, on: WorkerPool(threads: threads)).bits == first.bits)
            }
        }
    }

    @Test("embedding: rows of the table times the factor", arguments: InstructionSet.available)
    func embedding(_ set: InstructionSet) throws {
        func check<E: AttentionElement>(_ type: E.Type, channels: Int) throws {
            let table = try Tensor<E>.normal([50, channels], seed: 1)
            let tokens = (0..<300).map { $0 * 7 % 50 }
            let embedding = try TokenEmbedding(table: table, scale: 1.5, instructionSet: set)
            let expected = tokens.flatMap { token in (0..<channels).map { table[token, $0].floatValue * 1.5 } }
            for threads in [1, 2, 7] {
                #expect(try embedding(tokens, on: WorkerPool(threads: threads)).elements == expected, "\(set), \(E.self)")
            }
            var half = try Tensor<Float16>(zeros: [300, channels])
            try embedding.run(tokens: tokens, into: &half)
            #expect(half.elements == expected.map { Float16($0) })
        }
        for channels in [1, 7, 16, 33, 512] {
            try check(Float.self, channels: channels)
            try check(Float16.self, channels: channels)
            try check(BFloat16.self, channels: channels)
        }
    }

    @Test("errors name the operand and both numbers")
    func errors() throws {
        let embedding = try TokenEmbedding(table: Tensor<Float>.normal([50, 8], seed: 1))
        expectError(.invalidArgument, "tokens[2]", containing: "0 to 49", "50") { _ = try embedding([0, 49, 50]) }
        expectError(.invalidArgument, "tokens[0]", containing: "-1") { _ = try embedding([-1]) }
        #expect(try embedding([]).shape == [0, 8])
        var y = try Tensor<Float>(zeros: [2, 8])
        expectError(.invalidShape, "y", containing: "1 × 8", "2 × 8") { try embedding.run(tokens: [1], into: &y) }
        expectError(.invalidShape, "table", containing: "[3]") { _ = try TokenEmbedding(table: Tensor<Float>(zeros: [3])) }
        let silu = try GatedActivation(.silu)
        expectError(.invalidShape, "up", containing: "2 × 8", "2 × 9") {
            _ = try silu(gate: Tensor<Float>(zeros: [2, 8]), up: Tensor<Float>(zeros: [2, 9]))
        }
        expectError(.invalidShape, "x", containing: "9") { try silu.run(halvesOf: Tensor<Float>(zeros: [2, 9]), into: &y) }
    }
}
