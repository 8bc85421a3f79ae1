import SparseKernelsReference
import SparseKernelsTraining
import TestSupport
import Testing

@Suite("Gradients of gated activations")
struct ActivationGradientTests {
    @Test("the oracle's slopes are those of finite differences", arguments: GatedActivation.Function.allCases)
    func differences(_ function: GatedActivation.Function) {
        for x in stride(from: -6.03, through: 6, by: 0.11) {
            let slope = ReferenceGradients.differences([x]) { ReferenceRows.activation(function, $0[0]) }[0]
            #expect(abs(slope - ReferenceGradients.slope(function, x)) < 1e-8 * (1 + abs(slope)), "\(function) at \(x)")
        }
    }

    @Test(
        "slopes are within their bounds over their range", arguments: InstructionSet.available,
        GatedActivation.Function.allCases)
    func accuracy(_ set: InstructionSet, _ function: GatedActivation.Function) throws {
        var points: [Float] = []
        for index in -6000...6000 { points.append(Float(index) * 2e-3) }
        for index in -500...500 { points.append(Float(index) * 0.2) }
        let x = try Tensor<Float>([1, points.count], points)
        let ones = try Tensor<Float>([1, points.count]) { _ in 1 }
        var dx = try Tensor<Float>(zeros: x.shape)
        try GatedActivationGradient(function, instructionSet: set).run(x, outputGradient: ones, inputGradient: &dx)
        TrainingSupport.expectNear(
            TrainingSupport.doubles(dx, row: 0), points.map { ReferenceGradients.slope(function, Double($0)) },
            bound: { ReferenceGradients.slopeError(function, Double(points[$0])) + 0x1p-100 }, "\(set), \(function)")
    }

    @Test("both gradients agree with the oracle, with strides", arguments: InstructionSet.available, TrainingSupport.sizes)
    func gated(_ set: InstructionSet, _ columns: Int) throws {
        let rows = 3
        let both = try Tensor<Float>.normal([rows, 2 * columns + 3], seed: 1, scale: 2)
        let dh = try Tensor<Float>.normal([rows, columns], seed: 2)
        for function in GatedActivation.Function.allCases {
            let gradient = try GatedActivationGradient(function, instructionSet: set)
            var result = try Tensor<Float>([rows, 2 * columns + 5]) { _ in 7 }
            var separate = try Tensor<Float>(zeros: [rows, columns])
            do {
                let view = try both.matrixView()
                // The gate's gradient goes into a slice of a wider matrix, whose other columns stay.
                let target = try MutableMatrixView(
                    result.mutableSpan, rows: rows, columns: columns, rowStride: 2 * columns + 5)
                try gradient.run(
                    gate: view.columns(0..<columns), up: view.columns(columns..<2 * columns),
                    outputGradient: dh.matrixView(), gateGradient: target, upGradient: separate.mutableMatrixView(),
                    on: .serial)
            }
            for row in 0..<rows {
                for column in 0..<columns {
                    let (gate, up) = (Double(both[row, column]), Double(both[row, columns + column]))
                    let d = Double(dh[row, column])
                    let expected = d * up * ReferenceGradients.slope(function, gate)
                    let bound =
                        abs(d * up) * ReferenceGradients.slopeError(function, gate) + abs(expected) * 0x1p-22 + 0x1p-100
                    #expect(abs(Double(result[row, column]) - expected) <= bound, "\(set), \(function), gate")
                    let value = d * ReferenceRows.activation(function, gate)
                    let limit = abs(d) * ReferenceRows.activationError(function, gate) + abs(value) * 0x1p-22
                    #expect(abs(Double(separate[row, column]) - value) <= limit, "\(set), \(function), up")
                }
                #expect((columns..<2 * columns + 5).allSatisfy { result[row, $0] == 7 })
            }
        }
    }

    @Test("threads do not change bits, NaN stays in its place, nothing is legitimate", arguments: InstructionSet.available)
    func special(_ set: InstructionSet) throws {
        for function in GatedActivation.Function.allCases {
            let gradient = try GatedActivationGradient(function, instructionSet: set)
            var gate = try Tensor<Float>.normal([500, 301], seed: 3)
            let up = try Tensor<Float>.normal([500, 301], seed: 4)
            func run(_ gate: Tensor<Float>, _ threads: Int) throws -> [UInt32] {
                var (dGate, dUp) = (try Tensor<Float>(zeros: [500, 301]), try Tensor<Float>(zeros: [500, 301]))
                try gradient.run(
                    gate: gate, up: up, outputGradient: up, gateGradient: &dGate, upGradient: &dUp,
                    on: WorkerPool(threads: threads))
                return dGate.bits + dUp.bits
            }
            let first = try run(gate, 1)
            #expect(try run(gate, 2) == first && run(gate, 7) == first, "\(set), \(function)")
            gate[3, 5] = .nan
            let second = try run(gate, 2)
            let place = 3 * 301 + 5
            #expect(Float(bitPattern: second[500 * 301 + place]).isNaN)
            #expect(first.indices.allSatisfy { $0 % (500 * 301) == place || first[$0] == second[$0] })
            var empty = try Tensor<Float>(zeros: [0, 4])
            try gradient.run(empty, outputGradient: Tensor(zeros: [0, 4]), inputGradient: &empty)
        }
    }

    @Test("errors name the operand and both numbers")
    func errors() throws {
        let gradient = try GatedActivationGradient(.silu)
        let (small, large) = (try Tensor<Float>(zeros: [2, 8]), try Tensor<Float>(zeros: [2, 9]))
        var (a, b, c) = (small, small, large)
        func expect(_ name: String, _ body: () throws -> Void) {
            expectError(.invalidShape, name, containing: ["2 × 8", "2 × 9"], body)
        }
        expect("up") {
            try gradient.run(gate: small, up: large, outputGradient: small, gateGradient: &a, upGradient: &b)
        }
        expect("outputGradient") {
            try gradient.run(gate: small, up: small, outputGradient: large, gateGradient: &a, upGradient: &b)
        }
        expect("gateGradient") {
            try gradient.run(gate: small, up: small, outputGradient: small, gateGradient: &c, upGradient: &b)
        }
        expect("upGradient") {
            try gradient.run(gate: small, up: small, outputGradient: small, gateGradient: &a, upGradient: &c)
        }
        expect("inputGradient") { try gradient.run(small, outputGradient: small, inputGradient: &c) }
    }
}
