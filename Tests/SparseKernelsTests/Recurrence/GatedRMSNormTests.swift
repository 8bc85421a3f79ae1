import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Gated RMSNorm")
struct GatedRMSNormTests {
    static func check<X: AttentionElement, Z: AttentionElement, Y: AttentionElement>(
        _ xType: X.Type, _ zType: Z.Type, _ yType: Y.Type, _ set: InstructionSet, channels: Int, groups: Int
    ) throws {
        let x = try Tensor<X>.normal([3, channels], seed: 1)
        let z = try Tensor<Z>.normal([3, channels], seed: 2, scale: 2)
        let weight = try Tensor<Float>.normal([channels], seed: 3)
        for gate in [GatedRMSNorm.Gate.beforeNorm, .afterNorm] {
            let label = "\(set), \(X.self), \(Z.self) to \(Y.self), \(channels) channels of \(groups) groups, \(gate)"
            var y = try Tensor<Y>(zeros: x.shape)
            let norm = try GatedRMSNorm(weight: weight, groups: groups, epsilon: 1e-5, gate: gate, instructionSet: set)
            try norm.run(x.matrixView(), gate: z.matrixView(), into: y.mutableMatrixView(), on: .serial)
            let relative = ReferenceRows.sumError(channels / groups) / 2 + 8 * 0x1p-24
            for row in 0..<3 {
                let gates = RowNormTests.doubles(z, row: row)
                let expected = ReferenceConvolution.gatedNorm(
                    RowNormTests.doubles(x, row: row), gate: gates, weight: RowNormTests.doubles(weight, row: 0),
                    groups: groups, epsilon: Double(Float(1e-5)), gatesBefore: gate == .beforeNorm)
                // Twice the largest relative error of silu in the row: of the element, and of the mean.
                let silu = 2 * gates.map { 6e-7 + 1e-7 * abs($0) }.max()!
                RowNormTests.expectNear(
                    RowNormTests.doubles(y, row: row), expected,
                    bound: { abs($0) * (relative + silu + 2 * RowNormTests.rounding(Y.self)) + 0x1p-24 }, label)
            }
        }
    }

    @Test(
        "agrees with the oracle at all sizes", arguments: InstructionSet.available,
        [(1, 1), (2, 2), (3, 1), (14, 2), (16, 1), (34, 2), (64, 8), (129, 3), (1031, 1), (2048, 2)])
    func agree(_ set: InstructionSet, _ size: (channels: Int, groups: Int)) throws {
        try Self.check(Float.self, Float.self, Float.self, set, channels: size.channels, groups: size.groups)
        try Self.check(Float16.self, BFloat16.self, Float.self, set, channels: size.channels, groups: size.groups)
        try Self.check(BFloat16.self, Float.self, Float16.self, set, channels: size.channels, groups: size.groups)
        try Self.check(Float.self, Float16.self, BFloat16.self, set, channels: size.channels, groups: size.groups)
    }

    @Test("groups have means of their own", arguments: InstructionSet.available)
    func groups(_ set: InstructionSet) throws {
        // The second group is a thousand times the first: with one mean for both, the first would vanish.
        let x = try Tensor<Float>([1, 64]) { $0 < 32 ? 1 : 1000 }
        let z = try Tensor<Float>([1, 64]) { _ in 20 }
        let norm = try GatedRMSNorm(
            weight: Tensor([64]) { _ in 1 }, groups: 2, epsilon: 0, gate: .beforeNorm, instructionSet: set)
        let y = try norm(x, gate: z)
        #expect(y.elements.allSatisfy { abs($0 - 1) < 1e-6 }, "\(set): \(y.elements)")
    }

    @Test("in place equals out of place, strides are followed, threads do not change bits", arguments: InstructionSet.available)
    func layouts(_ set: InstructionSet) throws {
        for gate in [GatedRMSNorm.Gate.beforeNorm, .afterNorm] {
            let norm = try GatedRMSNorm(
                weight: .normal([74], seed: 3), groups: 2, epsilon: 1e-5, gate: gate, instructionSet: set)
            let wide = try Tensor<Float16>.normal([400, 160], seed: 6)
            let x = try Tensor<Float16>([400, 74]) { wide[$0 / 74, $0 % 74] }
            let z = try Tensor<Float16>([400, 74]) { wide[$0 / 74, 80 + $0 % 74] }
            var expected = try Tensor<Float16>(zeros: x.shape)
            try norm.run(x.matrixView(), gate: z.matrixView(), into: expected.mutableMatrixView(), on: .serial)
            for threads in [1, 2, 7] {
                let pool = WorkerPool(threads: threads)
                var inPlace = x
                try norm.normalize(inPlace.mutableMatrixView(), gate: z.matrixView(), on: pool)
                #expect(inPlace.bits == expected.bits, "\(set), \(gate), \(threads) threads, in place")
                var y = try Tensor<Float16>([400, 80]) { _ in 7 }
                try norm.run(
                    MatrixView(wide.span, rows: 400, columns: 74, rowStride: 160),
                    gate: MatrixView(wide.span.extracting(80...), rows: 400, columns: 74, rowStride: 160),
                    into: MutableMatrixView(y.mutableSpan, rows: 400, columns: 74, rowStride: 80), on: pool)
                let rows = (y.elements, expected.elements)
                let isRight = (0..<400).allSatisfy { row in
                    rows.0[row * 80..<row * 80 + 74] == rows.1[row * 74..<(row + 1) * 74]
                        && rows.0[row * 80 + 74..<(row + 1) * 80].allSatisfy { $0 == 7 }
                }
                #expect(isRight, "\(set), \(gate), \(threads) threads, strides")
            }
        }
    }

    @Test("what is not finite stays in its group of its row", arguments: InstructionSet.available)
    func special(_ set: InstructionSet) throws {
        var x = try Tensor<Float>.normal([4, 40], seed: 7)
        let z = try Tensor<Float>.normal([4, 40], seed: 8)
        for gate in [GatedRMSNorm.Gate.beforeNorm, .afterNorm] {
            let norm = try GatedRMSNorm(
                weight: .normal([40], seed: 9), groups: 2, epsilon: 1e-5, gate: gate, instructionSet: set)
            let clean = try norm(x, gate: z)
            var dirty = x
            (dirty[1, 3], dirty[2, 30]) = (.nan, .infinity)
            let y = try norm(dirty, gate: z)
            for index in 0..<160 where !(20..<40 ~= index - 20 || 100..<120 ~= index) {
                #expect(y[flat: index] == clean[flat: index], "\(set), \(gate), \(index)")
            }
            #expect((0..<20).allSatisfy { y[1, $0].isNaN } && y[2, 30].isNaN && y[2, 31] == 0)
        }
        x[0, 0] = 3e38
        let norm = try GatedRMSNorm(weight: .normal([40], seed: 9), epsilon: 1e-5, gate: .afterNorm, instructionSet: set)
        #expect(try norm(x, gate: z)[0, 5] == 0, "squares overflow")
        #expect(try norm(Tensor<Float>(zeros: [1, 40]), gate: Tensor<Float>(zeros: [1, 40])).elements.allSatisfy { $0 == 0 })
        #expect(try norm(Tensor<Float>(zeros: [0, 40]), gate: Tensor<Float>(zeros: [0, 40])).shape == [0, 40])
    }

    @Test("errors name the operand and both numbers")
    func errors() throws {
        let weight = try Tensor<Float>.normal([8], seed: 1)
        expectError(.invalidShape, "groups", containing: "8", "3") {
            _ = try GatedRMSNorm(weight: weight, groups: 3, epsilon: 0, gate: .beforeNorm)
        }
        expectError(.invalidShape, "groups", containing: "0") {
            _ = try GatedRMSNorm(weight: weight, groups: 0, epsilon: 0, gate: .beforeNorm)
        }
        expectError(.invalidShape, "weight", containing: "[2, 4]") {
            _ = try GatedRMSNorm(weight: .init(zeros: [2, 4]), epsilon: 0, gate: .beforeNorm)
        }
        expectError(.invalidArgument, "weight", containing: "inf") {
            _ = try GatedRMSNorm(weight: Tensor([2]) { _ in .infinity }, epsilon: 0, gate: .beforeNorm)
        }
        expectError(.invalidArgument, "epsilon", containing: "nan") {
            _ = try GatedRMSNorm(weight: weight, epsilon: .nan, gate: .beforeNorm)
        }
        let norm = try GatedRMSNorm(weight: weight, epsilon: 0, gate: .beforeNorm)
        expectError(.invalidShape, "x", containing: "8", "9") {
            _ = try norm(Tensor<Float>(zeros: [2, 9]), gate: Tensor<Float>(zeros: [2, 9]))
        }
        expectError(.invalidShape, "gate", containing: "2 × 8", "3 × 8") {
            _ = try norm(Tensor<Float>(zeros: [2, 8]), gate: Tensor<Float>(zeros: [3, 8]))
        }
        let (x, z) = (try Tensor<Float>(zeros: [2, 8]), try Tensor<Float>(zeros: [2, 8]))
        var y = try Tensor<Float>(zeros: [1, 8])
        expectError(.invalidShape, "y", containing: "2 × 8", "1 × 8") {
            try norm.run(x.matrixView(), gate: z.matrixView(), into: y.mutableMatrixView())
        }
    }
}
