import KernelInterface
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Layers of numbers against sums in `Double`.
@Suite("Linear layer of numbers")
struct FloatLinearTests {
    /// Compares y with x·Wᵀ + bias after the epilogue, under the bound of a sum of K products in any order.
    private func expectMatches<X: AttentionElement, W: AttentionElement, Y: AttentionElement>(
        _ y: Tensor<Y>, _ x: Tensor<X>, _ w: Tensor<W>, _ bias: Tensor<Float>?, _ epilogue: Epilogue, _ label: String
    ) {
        let (m, n, k) = (x.shape[0], w.shape[0], x.shape[1])
        var worst = 0.0
        for row in 0..<m {
            for column in 0..<n {
                var (sum, magnitude) = (0.0, 0.0)
                for i in 0..<k {
                    let term = Double(x[flat: row * k + i].floatValue) * Double(w[flat: column * k + i].floatValue)
                    sum += term
                    magnitude += abs(term)
                }
                if let bias {
                    sum += Double(bias[flat: column])
                    magnitude += abs(Double(bias[flat: column]))
                }
                let expected = epilogue.reference(sum)
                // Slopes of GELU and SiLU are below 1.2; their own errors are below 1e-6 of the argument.
                let bound =
                    1.2 * (Double(k) / 4 + 8) * 0x1p-24 * magnitude + (epilogue == .none ? 0 : 1e-6 * max(1, abs(sum)))
                    + Y.unitRoundoff * abs(expected) + Y.subnormalRoundoff
                worst = max(worst, abs(Double(y[flat: row * n + column].floatValue) - expected) / bound)
            }
        }
        #expect(worst <= 1, "\(label): \(worst) of the bound")
    }

    private func expect<X: AttentionElement, W: AttentionElement, Y: AttentionElement>(
        _ set: InstructionSet, _ x: X.Type, _ w: W.Type, _ y: Y.Type, _ m: Int, _ n: Int, _ k: Int, _ epilogue: Epilogue,
        hasBias: Bool
    ) throws {
        let input = try Tensor<X>.normal([m, k], seed: UInt64(m + k))
        let weight = try Tensor<W>.normal([n, k], seed: UInt64(n), scale: 0.5)
        let bias = hasBias ? try Tensor<Float>.normal([n], seed: 77) : nil
        let layer = try FloatLinear(weight: weight, bias: bias, epilogue: epilogue, instructionSet: set)
        var output = try Tensor<Y>(zeros: [m, n])
        try layer.run(input, into: &output)
        expectMatches(output, input, weight, bias, epilogue, "\(set), \(X.self)·\(W.self) → \(Y.self), \(m)×\(n)×\(k)")
        for threads in [1, 2, 7] {
            var again = try Tensor<Y>(zeros: [m, n])
            try layer.run(input, into: &again, on: WorkerPool(threads: threads))
            #expect(again.bits == output.bits, "\(threads) threads")
        }
    }

    @Test("types, shapes, bias and epilogues agree with Double", arguments: InstructionSet.available)
    func shapes(_ set: InstructionSet) throws {
        let epilogues: [Epilogue] = [.none, .silu, .gelu, .geluErf]
        for (index, (m, n, k)) in [
            (1, 1, 1), (1, 17, 5), (1, 100, 513), (2, 33, 130), (3, 15, 64), (5, 16, 129), (7, 49, 1), (8, 64, 200),
            (65, 31, 260),
            (140, 20, 33),
        ].enumerated() {
            let (epilogue, hasBias) = (epilogues[index % 4], index % 2 == 0)
            try expect(set, Float.self, Float.self, Float.self, m, n, k, epilogue, hasBias: hasBias)
            try expect(set, Float.self, Float16.self, Float.self, m, n, k, epilogue, hasBias: !hasBias)
            try expect(set, BFloat16.self, BFloat16.self, Float.self, m, n, k, epilogue, hasBias: hasBias)
            try expect(set, Float16.self, Float.self, BFloat16.self, m, n, k, epilogue, hasBias: !hasBias)
            try expect(set, Float.self, BFloat16.self, Float16.self, m, n, k, .none, hasBias: hasBias)
        }
    }

    @Test("several weights side by side have the bits of each alone", arguments: InstructionSet.available)
    func stacked(_ set: InstructionSet) throws {
        let parts = try [(24, 1), (5, 2), (40, 3)].map { try Tensor<Float16>.normal([$0.0, 70], seed: $0.1) }
        let all = try FloatLinear(weights: parts, instructionSet: set)
        #expect(all.outFeatures == 69)
        for m in [1, 6, 30] {
            let x = try Tensor<Float>.normal([m, 70], seed: 9)
            let y = try all(x)
            var first = 0
            for part in parts {
                let alone = try FloatLinear(weight: part, instructionSet: set)(x)
                for row in 0..<m {
                    for column in 0..<part.shape[0] { #expect(y[row, first + column] == alone[row, column]) }
                }
                first += part.shape[0]
            }
        }
    }

    @Test("strided rows, no rows, and rows that are not finite", arguments: InstructionSet.available)
    func rows(_ set: InstructionSet) throws {
        let weight = try Tensor<BFloat16>.normal([20, 30], seed: 1)
        let layer = try FloatLinear(weight: weight, instructionSet: set)
        var wide = try Tensor<Float>.normal([9, 50], seed: 2)
        let narrow = try Tensor<Float>([9, 30]) { wide[flat: $0 / 30 * 50 + 7 + $0 % 30] }
        var y = try Tensor<Float>.normal([9, 33], seed: 3)
        let before = y
        try layer.run(
            x: MatrixView(wide.span.extracting(droppingFirst: 7), rows: 9, columns: 30, rowStride: 50),
            y: MutableMatrixView(y.mutableSpan, rows: 9, columns: 20, rowStride: 33))
        let expected = try layer(narrow)
        for row in 0..<9 {
            for column in 0..<33 {
                #expect(y[row, column] == (column < 20 ? expected[row, column] : before[row, column]))
            }
        }
        #expect(try layer(Tensor<Float>(zeros: [0, 30])).shape == [0, 20])
        wide = narrow
        wide[3, 4] = .nan
        wide[5, 0] = .infinity
        let spoilt = try layer(wide)
        for row in 0..<9 {
            for column in 0..<20 {
                let value = spoilt[row, column]
                #expect(row == 3 ? value.isNaN : row == 5 ? !value.isFinite : value == expected[row, column])
            }
        }
    }

    @Test("a row has the same bits alone and among any number of others", arguments: InstructionSet.available)
    func alone(_ set: InstructionSet) throws {
        // Less than a block of the sum, four blocks and more, and a number that is no multiple of anything.
        for k in [100, 512, 1101] {
            let weight = try Tensor<Float>.normal([40, k], seed: 1)
            let layers = try [
                FloatLinear(weight: weight, instructionSet: set),
                FloatLinear(weight: weight.converted(to: BFloat16.self), instructionSet: set),
                FloatLinear(weight: Float8Tensor<E4M3>(weight), instructionSet: set),
            ]
            let x = try Tensor<Float>.normal([19, k], seed: 2)
            for layer in layers {
                let all = try layer(x).bits
                for count in [1, 2, 3, 4, 5, 8, 9, 12, 13] {
                    let some = try layer(Tensor<Float>([count, k]) { x[flat: $0] }).bits
                    #expect(some == Array(all[..<(count * 40)]), "\(set), \(count) rows of \(k)")
                }
            }
        }
    }

    @Test("errors name the operand")
    func errors() throws {
        let weight = try Tensor<Float>(zeros: [4, 3])
        expectError(.invalidShape, "weight") { _ = try FloatLinear(weight: Tensor<Float>(zeros: [4])) }
        expectError(.invalidShape, "weight") { _ = try FloatLinear(weight: Tensor<Float>(zeros: [0, 3])) }
        expectError(.invalidShape, "weights") { _ = try FloatLinear(weights: [] as [Tensor<Float>]) }
        expectError(.invalidShape, "weights") { _ = try FloatLinear(weights: [weight, Tensor<Float>(zeros: [4, 2])]) }
        expectError(.invalidShape, "bias") { _ = try FloatLinear(weight: weight, bias: Tensor<Float>(zeros: [3])) }
        expectError(.invalidArgument, "bias") {
            _ = try FloatLinear(weight: weight, bias: Tensor<Float>([4], [0, 0, .nan, 0]))
        }
        let layer = try FloatLinear(weight: weight)
        expectError(.invalidShape, "x") { _ = try layer(Tensor<Float>(zeros: [2, 4])) }
        expectError(.invalidShape, "y") {
            var y = try Tensor<Float>(zeros: [2, 3])
            try layer.run(Tensor<Float>(zeros: [2, 3]), into: &y)
        }
    }
}

@Suite("Rows of tasks with floats")
struct ValueRowsTests {
    @Test("no task has a single row unless the product has", arguments: [(4, 8), (8, 16)])
    func noSingleRow(tileRows: Int, laneCount: Int) {
        for depth in [0, 64, 512, 3072, 4096, 14_336, 1 << 20] {
            for rows in 1...1024 {
                let size = QuantizedScratch.valueRows(rows, depth: depth, tileRows: tileRows, laneCount: laneCount)
                #expect(size >= 1 && size <= QuantizedScratch.taskRows, "\(rows) rows of \(depth)")
                #expect(rows == 1 || rows % size != 1, "\(rows) rows of \(depth) in tasks of \(size)")
            }
        }
    }

    /// 449 rows of 3072 channels are tasks of 64 rows and one row where vectors have 16 lanes, if nobody takes care.
    @Test("a row has the same bits in any number of rows", arguments: InstructionSet.available)
    func rowsAlone(_ set: InstructionSet) throws {
        let (rows, k) = (449, 3072)
        let x = try Tensor<Float>.normal([rows, k], seed: 5)
        let layer = try FloatLinear(weight: Tensor<Float>.normal([16, k], seed: 6), instructionSet: set)
        let all = try layer(x)
        let last = try Tensor<Float>([2, k]) { x[flat: (rows - 2) * k + $0] }
        let some = try layer(last)
        #expect(Array(all.bits.suffix(32)) == Array(some.bits))
    }
}
