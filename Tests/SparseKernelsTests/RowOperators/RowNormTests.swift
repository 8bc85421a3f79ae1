import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("RMSNorm and LayerNorm")
struct RowNormTests {
    static func doubles<Element: AttentionElement>(_ tensor: Tensor<Element>, row: Int) -> [Double] {
        let columns = tensor.shape.last!
        return (0..<columns).map { Double(tensor[flat: row * columns + $0].floatValue) }
    }

    /// The rounding of the element type, relative.
    static func rounding<Element: AttentionElement>(_ type: Element.Type) -> Double {
        switch Element.elementType {
        case .float16: 0x1p-11
        case .bfloat16: 0x1p-8
        default: 0x1p-24
        }
    }

    static func expectNear(_ actual: [Double], _ expected: [Double], bound: (Double) -> Double, _ label: String) {
        let bad = actual.indices.first { !(abs(actual[$0] - expected[$0]) <= bound(expected[$0])) }
        if let bad { Issue.record("\(label): \(actual[bad]) for \(expected[bad]) at \(bad)") }
    }

    static func check<X: AttentionElement, Y: AttentionElement>(
        _ xType: X.Type, _ yType: Y.Type, channels: Int, offset: Float = 0, _ set: InstructionSet
    ) throws {
        let x = try Tensor<X>(
            [3, channels],
            generate: { index in
                var random = SplitMix64(seed: UInt64(index) &* 77 &+ 1)
                return X(random.normal() + offset)
            })
        let weight = try Tensor<Float>.normal([channels], seed: 2)
        let bias = try Tensor<Float>.normal([channels], seed: 3)
        let (w, b) = (doubles(weight, row: 0), doubles(bias, row: 0))
        var y = try Tensor<Y>(zeros: [3, channels])
        let label = "\(set), \(X.self) to \(Y.self), \(channels) channels"
        try RMSNorm(weight: weight, epsilon: 1e-5, instructionSet: set).run(x, into: &y, on: .serial)
        let relative = ReferenceRows.sumError(channels) / 2 + 6 * 0x1p-24
        for row in 0..<3 {
            let expected = ReferenceRows.rmsNorm(doubles(x, row: row), weight: w, epsilon: Double(Float(1e-5)))
            expectNear(
                doubles(y, row: row), expected, bound: { abs($0) * (relative + 2 * rounding(Y.self)) + 0x1p-24 },
                "RMS, " + label)
        }
        try LayerNorm(channels: channels, weight: weight, bias: bias, instructionSet: set).run(x, into: &y, on: .serial)
        for row in 0..<3 {
            let values = doubles(x, row: row)
            let expected = ReferenceRows.layerNorm(values, weight: w, bias: b, epsilon: Double(Float(1e-5)))
            let mean = values.reduce(0, +) / Double(channels)
            let variance = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(channels)
            // The mean of the deviations is within their magnitude's share of the error of sums; one channel has variance 0.
            let deviation = (variance + 1e-5).squareRoot()
            let absolute =
                (2 * ReferenceRows.sumError(channels) * (variance.squareRoot() + 0x1p-24 * Double(abs(offset)))
                    + (channels == 1 ? 0 : 0x1p-23)) / deviation
            for (index, value) in doubles(y, row: row).enumerated() {
                let e = expected[index]
                let scaled = abs(e - b[index])
                let bound =
                    scaled * (relative + 8 * 0x1p-24) + abs(w[index]) * absolute + 0x1p-23 * abs(b[index])
                    + 2 * rounding(Y.self) * abs(e) + 0x1p-24
                if !(abs(value - e) <= bound) {
                    Issue.record("Layer, \(label): \(value) for \(e) at \(index), bound \(bound)")
                    return
                }
            }
        }
    }

    @Test(
        "agree with the oracle at all sizes", arguments: InstructionSet.available,
        [1, 2, 3, 7, 8, 15, 16, 17, 31, 64, 127, 129, 512, 1031, 4096, 16_384])
    func agree(_ set: InstructionSet, _ channels: Int) throws {
        try Self.check(Float.self, Float.self, channels: channels, set)
        try Self.check(Float16.self, BFloat16.self, channels: channels, set)
        try Self.check(BFloat16.self, Float16.self, channels: channels, set)
    }

    @Test("a row far away from 0 keeps its accuracy", arguments: InstructionSet.available)
    func offset(_ set: InstructionSet) throws {
        for channels in [64, 1000, 16_384] { try Self.check(Float.self, Float.self, channels: channels, offset: 1000, set) }
    }

    @Test("adding to the residual is the sum, and its norm", arguments: InstructionSet.available)
    func residual(_ set: InstructionSet) throws {
        let x = try Tensor<Float16>.normal([5, 83], seed: 1)
        var residual = try Tensor<Float>.normal([5, 83], seed: 2)
        let sums = try Tensor<Float>([5, 83]) { residual[flat: $0] + Float(x[flat: $0]) }
        let norm = try RMSNorm(weight: .normal([83], seed: 3), epsilon: 1e-6, addsOne: true, instructionSet: set)
        var (y, expected) = (try Tensor<Float>(zeros: [5, 83]), try Tensor<Float>(zeros: [5, 83]))
        try norm.run(adding: x, to: &residual, into: &y)
        try norm.run(sums, into: &expected)
        #expect(residual.bits == sums.bits && y.bits == expected.bits, "\(set)")
        // 1 + w is what Gemma multiplies by.
        let weight = try Tensor<Float>.normal([83], seed: 3)
        let plain = try RMSNorm(weight: Tensor([83]) { 1 + weight[flat: $0] }, epsilon: 1e-6, instructionSet: set)
        #expect(try plain(sums).bits == expected.bits)
    }

    @Test("in place equals out of place in every layout and type", arguments: InstructionSet.available)
    func inPlace(_ set: InstructionSet) throws {
        func check<E: AttentionElement>(_ type: E.Type, heads: Int, tokens: Int) throws {
            let x = try Tensor<E>.normal([tokens, heads, 24], seed: 4)
            let norm = try RMSNorm(weight: .normal([24], seed: 5), epsilon: 1e-6, instructionSet: set)
            var y = try Tensor<E>(zeros: [tokens * heads, 24])
            try norm.run(Tensor<E>([tokens * heads, 24], x.elements), into: &y)
            for threads in [1, 2, 7] {
                var z = x
                try norm.normalize(&z, layout: .nhd, on: WorkerPool(threads: threads))
                #expect(z.bits == y.bits, "\(set), \(E.self), \(heads) heads, \(tokens) tokens")
            }
        }
        for (heads, tokens) in [(1, 1), (3, 200), (70, 2), (32, 1)] {
            try check(Float.self, heads: heads, tokens: tokens)
            try check(Float16.self, heads: heads, tokens: tokens)
            try check(BFloat16.self, heads: heads, tokens: tokens)
        }
    }

    @Test("strides are followed, and what lies between rows stays", arguments: InstructionSet.available)
    func strides(_ set: InstructionSet) throws {
        let x = try Tensor<Float>.normal([4, 40], seed: 6)
        var y = try Tensor<Float>([4, 50]) { _ in 7 }
        let norm = try LayerNorm(channels: 37, instructionSet: set)
        try norm.run(
            MatrixView(x.span, rows: 4, columns: 37, rowStride: 40),
            into: MutableMatrixView(y.mutableSpan, rows: 4, columns: 37, rowStride: 50))
        for row in 0..<4 {
            let expected = try norm(Tensor([1, 37]) { x[row, $0] })
            #expect((0..<37).allSatisfy { y[row, $0] == expected[0, $0] } && (37..<50).allSatisfy { y[row, $0] == 7 })
        }
    }

    @Test("threads do not change bits, nor rows each other", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        var x = try Tensor<Float>.normal([2000, 512], seed: 7)
        let norm = try RMSNorm(weight: .normal([512], seed: 8), epsilon: 1e-6, instructionSet: set)
        let first = try norm(x, on: .serial)
        for threads in [2, 7] { #expect(try norm(x, on: WorkerPool(threads: threads)).bits == first.bits) }
        x[3, 5] = .nan
        x[5, 6] = .infinity
        let second = try norm(x)
        for row in 0..<2000 where row != 3 && row != 5 {
            #expect((0..<512).allSatisfy { second[row, $0].bitPattern == first[row, $0].bitPattern })
        }
        #expect((0..<512).allSatisfy { second[3, $0].isNaN } && second[5, 6].isNaN && second[5, 7] == 0)
        // Zeros, and no rows at all.
        #expect(try norm(Tensor<Float>(zeros: [1, 512])).elements.allSatisfy { $0 == 0 })
        #expect(try norm(Tensor<Float>(zeros: [0, 512])).shape == [0, 512])
    }

    @Test("errors name the operand and both numbers")
    func errors() throws {
        let weight = try Tensor<Float>.normal([8], seed: 1)
        expectError(.invalidShape, "weight", containing: "[2, 8]") {
            _ = try RMSNorm(weight: .init(zeros: [2, 8]), epsilon: 0)
        }
        expectError(.invalidArgument, "epsilon", containing: "-1") { _ = try RMSNorm(weight: weight, epsilon: -1) }
        expectError(.invalidArgument, "weight", containing: "nan") {
            _ = try RMSNorm(weight: Tensor([2]) { _ in .nan }, epsilon: 0)
        }
        expectError(.invalidShape, "bias", containing: "[8]", "[9]") { _ = try LayerNorm(channels: 9, bias: weight) }
        expectError(.invalidShape, "channels", containing: "0") { _ = try LayerNorm(channels: 0) }
        let norm = try RMSNorm(weight: weight, epsilon: 0)
        expectError(.invalidShape, "x", containing: "8", "9") { _ = try norm(Tensor<Float>(zeros: [2, 9])) }
        var y = try Tensor<Float>(zeros: [3, 8])
        expectError(.invalidShape, "y", containing: "2 × 8", "3 × 8") { try norm.run(Tensor<Float>(zeros: [2, 8]), into: &y) }
        var z = try Tensor<Float>(zeros: [3, 2, 9])
        expectError(.invalidShape, "x", containing: "8 channels") { try norm.normalize(&z) }
    }
}
