import SparseKernelsReference
import SparseKernelsTraining
import TestSupport
import Testing

@Suite("Gradients of RMSNorm and of rotations")
struct NormGradientTests {
    private static let epsilon: Float = 1e-5

    @Test("the oracle's gradient is that of finite differences")
    func differences() throws {
        let (x, weight) = (try Tensor<Float>.normal([1, 9], seed: 1), try Tensor<Float>.normal([1, 9], seed: 2))
        let dy = try Tensor<Float>.normal([1, 9], seed: 3)
        let (values, w, d) = (
            TrainingSupport.doubles(x, row: 0), TrainingSupport.doubles(weight, row: 0), TrainingSupport.doubles(dy, row: 0)
        )
        func loss(_ x: [Double], _ w: [Double]) -> Double {
            zip(ReferenceRows.rmsNorm(x, weight: w, epsilon: 1e-5), d).reduce(0) { $0 + $1.0 * $1.1 }
        }
        let gradient = ReferenceGradients.rmsNorm(values, weight: w, epsilon: 1e-5, outputGradient: d)
        let input = ReferenceGradients.differences(values) { loss($0, w) }
        let scale = ReferenceGradients.differences(w) { loss(values, $0) }
        TrainingSupport.expectNear(gradient.input, input, bound: { _ in 1e-8 }, "dx")
        TrainingSupport.expectNear(gradient.weight, scale, bound: { _ in 1e-8 }, "dw")
    }

    @Test(
        "agrees with the oracle at all sizes", arguments: InstructionSet.available,
        TrainingSupport.sizes + [512, 1031, 4096])
    func agree(_ set: InstructionSet, _ channels: Int) throws {
        let rows = 5
        let x = try Tensor<Float>.normal([rows, channels], seed: 1, scale: 3)
        let dy = try Tensor<Float>.normal([rows, channels], seed: 2)
        for addsOne in [false, true] {
            let weight = try Tensor<Float>.normal([channels], seed: 3)
            let w = weight.elements.map { Double($0) + (addsOne ? 1 : 0) }
            let gradient = try RMSNormGradient(
                weight: weight, epsilon: Self.epsilon, addsOne: addsOne, instructionSet: set)
            var dx = try Tensor<Float>(zeros: [rows, channels])
            var dw = try Tensor<Float>([channels]) { _ in 1 }
            try gradient.run(x: x, outputGradient: dy, inputGradient: &dx, weightGradient: &dw)
            var (sums, sizes) = ([Double](repeating: 1, count: channels), [Double](repeating: 1, count: channels))
            for row in 0..<rows {
                let (values, d) = (TrainingSupport.doubles(x, row: row), TrainingSupport.doubles(dy, row: row))
                let expected = ReferenceGradients.rmsNorm(
                    values, weight: w, epsilon: Double(Self.epsilon), outputGradient: d)
                let magnitude = ReferenceGradients.rmsNormMagnitude(
                    values, weight: w, epsilon: Double(Self.epsilon), outputGradient: d)
                let relative = 2 * ReferenceRows.sumError(channels)
                TrainingSupport.expectNear(
                    TrainingSupport.doubles(dx, row: row), expected.input, bound: { relative * magnitude[$0] },
                    "\(set), \(channels) channels, row \(row)")
                for channel in 0..<channels {
                    sums[channel] += expected.weight[channel]
                    sizes[channel] += abs(expected.weight[channel])
                }
            }
            let relative = ReferenceRows.sumError(channels)
            TrainingSupport.expectNear(
                dw.elements.map(Double.init), sums, bound: { relative * sizes[$0] }, "\(set), \(channels) channels, dw")
            // Without the weight's gradient, and added to what is there.
            var (plain, added) = (try Tensor<Float>(zeros: dx.shape), x)
            try gradient.run(x: x, outputGradient: dy, inputGradient: &plain)
            try gradient.run(x: x, outputGradient: dy, inputGradient: &added, accumulates: true)
            #expect(plain.bits == dx.bits)
            #expect(added.bits == (try Tensor(x.shape) { dx[flat: $0] + x[flat: $0] }).bits)
        }
    }

    @Test("threads do not change bits, strides are followed, NaN stays in its row", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        var x = try Tensor<Float>.normal([2100, 100], seed: 7)
        let dy = try Tensor<Float>.normal([2100, 100], seed: 8)
        let gradient = try RMSNormGradient(weight: .normal([97], seed: 9), epsilon: 1e-6, instructionSet: set)
        func run(_ threads: Int) throws -> (dx: Tensor<Float>, dw: [UInt32]) {
            let pool = WorkerPool(threads: threads)
            var (dx, dw) = (try Tensor<Float>([2100, 101]) { _ in 7 }, try Tensor<Float>(zeros: [97]))
            let target = try MutableMatrixView(dx.mutableSpan, rows: 2100, columns: 97, rowStride: 101)
            try gradient.run(
                x: x.matrixView().columns(0..<97), outputGradient: dy.matrixView().columns(3..<100), inputGradient: target,
                weightGradient: &dw, on: pool)
            return (dx, dw.bits)
        }
        let first = try run(1)
        for threads in [2, 7] {
            let other = try run(threads)
            #expect(other.dx.bits == first.dx.bits && other.dw == first.dw, "\(set), \(threads) threads")
        }
        #expect((0..<2100).allSatisfy { row in (97..<101).allSatisfy { first.dx[row, $0] == 7 } })
        x[3, 5] = .nan
        let second = try run(2).dx
        #expect((0..<97).allSatisfy { second[3, $0].isNaN })
        #expect((0..<2100).allSatisfy { row in row == 3 || (0..<97).allSatisfy { second[row, $0] == first.dx[row, $0] } })
    }

    @Test("rotating back undoes a rotation, and is its transpose", arguments: InstructionSet.available)
    func rotations(_ set: InstructionSet) throws {
        for pairing in [RotaryEmbedding.Pairing.halfSplit, .interleaved] {
            let table = try RotaryEmbedding(headDim: 20, pairing: pairing, instructionSet: set).table(positions: [
                0, 3, 17, 900,
            ])
            let (x, dy) = (try Tensor<Float>.normal([3, 4, 20], seed: 1), try Tensor<Float>.normal([3, 4, 20], seed: 2))
            var (y, dx) = (x, dy)
            try table.rotate(&y)
            try table.rotateBack(&dx)
            // ⟨R x, dy⟩ = ⟨x, Rᵀ dy⟩.
            func product(_ a: Tensor<Float>, _ b: Tensor<Float>) -> Double {
                zip(a.elements, b.elements).reduce(0) { $0 + Double($1.0) * Double($1.1) }
            }
            #expect(abs(product(y, dy) - product(x, dx)) < 1e-5, "\(set), \(pairing)")
            for threads in [1, 2, 7] {
                var back = y
                try table.rotateBack(&back, on: WorkerPool(threads: threads))
                TrainingSupport.expectNear(
                    back.elements.map(Double.init), x.elements.map(Double.init), bound: { _ in 2e-6 }, "\(set), \(pairing)")
            }
            var other = try Tensor<Float>(zeros: [3, 5, 20])
            expectError(.invalidShape, "x", containing: "4 tokens", "5") { try table.rotateBack(&other) }
        }
    }

    @Test("errors name the operand and both numbers")
    func errors() throws {
        let weight = try Tensor<Float>.normal([8], seed: 1)
        expectError(.invalidShape, "weight", containing: "[2, 8]") {
            _ = try RMSNormGradient(weight: .init(zeros: [2, 8]), epsilon: 0)
        }
        expectError(.invalidArgument, "epsilon", containing: "-1") { _ = try RMSNormGradient(weight: weight, epsilon: -1) }
        expectError(.invalidArgument, "weight", containing: "nan") {
            _ = try RMSNormGradient(weight: Tensor([2]) { _ in .nan }, epsilon: 0)
        }
        let gradient = try RMSNormGradient(weight: weight, epsilon: 0)
        let (x, wide) = (try Tensor<Float>(zeros: [2, 8]), try Tensor<Float>(zeros: [2, 9]))
        var (dx, dw) = (x, try Tensor<Float>(zeros: [9]))
        expectError(.invalidShape, "x", containing: "8", "9") {
            try gradient.run(x: wide, outputGradient: x, inputGradient: &dx)
        }
        expectError(.invalidShape, "outputGradient", containing: "2 × 8", "2 × 9") {
            try gradient.run(x: x, outputGradient: wide, inputGradient: &dx)
        }
        expectError(.invalidShape, "weightGradient", containing: "[8]", "[9]") {
            try gradient.run(x: x, outputGradient: x, inputGradient: &dx, weightGradient: &dw)
        }
        dx = wide
        expectError(.invalidShape, "inputGradient", containing: "2 × 8", "2 × 9") {
            try gradient.run(x: x, outputGradient: x, inputGradient: &dx)
        }
    }
}
