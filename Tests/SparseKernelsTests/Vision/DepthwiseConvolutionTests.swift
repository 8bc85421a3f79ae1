import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Depthwise convolution: the oracle at all sides and around vectors, tiles and parts; threads, views, NaN, borders, errors.
@Suite("Depthwise convolution")
struct DepthwiseConvolutionTests {
    @Test("agrees with the oracle", arguments: InstructionSet.available, [1, 3, 5, 7, 9])
    func matchesReference(_ set: InstructionSet, _ side: Int) throws {
        for (rows, columns, channels) in [
            (1, 1, 1), (1, 1, 17), (2, 3, 5), (9, 1, 4), (7, 11, 16), (5, 12, 3), (4, 13, 33), (3, 25, 8), (27, 27, 20),
            (3, 121, 2),
            (62, 2, 7),
        ] {
            let grid = GridSize(rows: rows, columns: columns)
            let weight = try Tensor<Float>.normal([channels, 1, side, side], seed: 1)
            let bias = try Tensor<Float>.normal([channels], seed: 2)
            let x = try Tensor<Float>.normal([rows, columns, channels], seed: 3)
            for hasBias in [true, false] {
                let convolution = try DepthwiseConvolution(
                    weight: weight, bias: hasBias ? bias : nil, instructionSet: set)
                let y = try convolution(x, on: .serial)
                var worst = (excess: 0.0, text: "")
                for flat in stride(from: 0, to: y.count, by: max(1, y.count / 300)) {
                    let (cell, channel) = (flat / channels, flat % channels)
                    let (value, magnitude) = ReferenceDepthwise.cell(
                        cell / columns, cell % columns, grid: grid, side: side, bias: hasBias ? Double(bias[flat: channel]) : 0,
                        weight: { weight[channel, 0, $0, $1] }, x: { x[$0, $1, channel] })
                    let bound = ReferenceDepthwise.errorBound(magnitude: magnitude, side: side)
                    let excess = abs(Double(y[flat: flat]) - value) - bound
                    if !(excess <= worst.excess) { worst = (excess, "\(flat): \(y[flat: flat]), expected \(value) ± \(bound)") }
                }
                #expect(worst.text.isEmpty, "\(set), \(grid), \(channels), k \(side): \(worst.text)")
            }
        }
    }

    @Test("what a user would state: a square of ones counts its cells", arguments: InstructionSet.available)
    func statedResult(_ set: InstructionSet) throws {
        let convolution = try DepthwiseConvolution(
            weight: Tensor([3, 1, 3, 3]) { _ in 1 }, bias: Tensor([3], [0, 10, 20]), instructionSet: set)
        let y = try convolution(Tensor([3, 4, 3]) { _ in 1 })
        #expect((0..<12).map { y[flat: $0 * 3] } == [4, 6, 6, 4, 6, 9, 9, 6, 4, 6, 6, 4])
        #expect((0..<12).allSatisfy { y[flat: $0 * 3 + 2] == y[flat: $0 * 3] + 20 })
    }

    @Test("threads, batches and views do not change a bit", arguments: InstructionSet.available)
    func sameBits(_ set: InstructionSet) throws {
        let convolution = try DepthwiseConvolution(
            weight: .normal([37, 1, 7, 7], seed: 1), bias: .normal([37], seed: 2), instructionSet: set)
        let x = try Tensor<Float>.normal([3, 65, 31, 37], seed: 3)
        let serial = try convolution(x, on: .serial)
        for threads in [2, 7] { #expect(try convolution(x, on: WorkerPool(threads: threads)).bits == serial.bits, "\(set)") }
        let one = 65 * 31 * 37
        let second = try Tensor<Float>([65, 31, 37], Array(x.elements[one..<2 * one]))
        #expect(try convolution(second).elements == Array(serial.elements[one..<2 * one]), "\(set)")
        // Columns of wider matrices.
        let cells = 3 * 65 * 31
        let wide = try Tensor<Float>([cells, 40]) { $0 % 40 < 37 ? x[flat: $0 / 40 * 37 + $0 % 40] : .nan }
        var target = try Tensor<Float>([cells, 39]) { _ in 5 }
        var rows = try target.mutableMatrixView()
        try convolution.run(
            tokens: wide.matrixView().columns(0..<37), grid: GridSize(rows: 65, columns: 31), into: rows.columns(1..<38))
        #expect(
            target.elements.indices.allSatisfy { index in
                let (row, column) = (index / 39, index % 39)
                return column < 1 || column > 37
                    ? target[flat: index] == 5
                    : target[flat: index].bitPattern == serial[flat: row * 37 + column - 1].bitPattern
            })
    }

    @Test("a NaN reaches the cells that see it, of its channel", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let convolution = try DepthwiseConvolution(weight: .normal([18, 1, 5, 5], seed: 1), instructionSet: set)
        var x = try Tensor<Float>.normal([9, 14, 18], seed: 2)
        let clean = try convolution(x)
        for (row, column, channel, value) in [(4, 7, 3, Float.nan), (0, 0, 17, .infinity), (8, 13, 0, -.infinity)] {
            x[row, column, channel] = value
            let y = try convolution(x)
            for r in 0..<9 {
                for c in 0..<14 {
                    for k in 0..<18 {
                        let sees = abs(r - row) <= 2 && abs(c - column) <= 2 && k == channel
                        #expect(
                            sees ? !y[r, c, k].isFinite : y[r, c, k].bitPattern == clean[r, c, k].bitPattern, "\(set)")
                    }
                }
            }
            x[row, column, channel] = 0
            x = try Tensor<Float>.normal([9, 14, 18], seed: 2)
        }
    }

    @Test("nothing outside the grids is touched")
    func bordersAreKept() async {
        await #expect(processExitsWith: .success) {
            for set in InstructionSet.available {
                for (rows, columns, channels) in [(1, 1, 1), (5, 13, 3), (6, 7, 16), (4, 26, 19), (61, 3, 32)] {
                    let convolution = try DepthwiseConvolution(
                        weight: .normal([channels, 1, 7, 7], seed: 1), instructionSet: set)
                    let count = rows * columns
                    for fencesEnd in [false, true] {
                        let x = FencedMemory([Float](repeating: 1, count: count * channels), fencesEnd: fencesEnd)
                        let y = FencedMemory([Float](repeating: .nan, count: count * channels), fencesEnd: fencesEnd)
                        try convolution.run(
                            tokens: MatrixView(x.elements.span, rows: count, columns: channels),
                            grid: GridSize(rows: rows, columns: columns),
                            into: MutableMatrixView(y.elements.mutableSpan, rows: count, columns: channels))
                        #expect(y.elements.allSatisfy { !$0.isNaN }, "\(set)")
                    }
                }
            }
        }
    }

    @Test("no cells are a result like others", arguments: InstructionSet.available)
    func empty(_ set: InstructionSet) throws {
        let convolution = try DepthwiseConvolution(weight: .normal([4, 1, 3, 3], seed: 1), instructionSet: set)
        for shape in [[0, 5, 4], [5, 0, 4], [0, 3, 3, 4]] {
            #expect(try convolution(Tensor<Float>(zeros: shape)).shape == shape)
        }
    }

    @Test("weights and operands of other shapes are refused", arguments: InstructionSet.available)
    func errors(_ set: InstructionSet) throws {
        for shape in [[4, 1, 2, 2], [4, 1, 3, 5], [4, 2, 3, 3], [4, 3, 3], [0, 1, 3, 3], [2, 1, 65, 65]] {
            expectError(.invalidShape, "weight", containing: ["\(shape)"]) {
                _ = try DepthwiseConvolution(weight: Tensor(zeros: shape), instructionSet: set)
            }
        }
        let weight = try Tensor<Float>.normal([4, 1, 3, 3], seed: 1)
        expectError(.invalidShape, "bias", containing: ["[4]", "[5]"]) {
            _ = try DepthwiseConvolution(weight: weight, bias: Tensor(zeros: [5]), instructionSet: set)
        }
        var spoiled = weight
        spoiled[flat: 7] = .infinity
        expectError(.invalidArgument, "weight", containing: ["inf", "7"]) {
            _ = try DepthwiseConvolution(weight: spoiled, instructionSet: set)
        }
        let convolution = try DepthwiseConvolution(weight: weight, instructionSet: set)
        expectError(.invalidShape, "x", containing: ["4]", "[2, 2, 5]"]) {
            _ = try convolution(Tensor<Float>(zeros: [2, 2, 5]))
        }
        expectError(.invalidShape, "x", containing: ["[2, 4]"]) { _ = try convolution(Tensor<Float>(zeros: [2, 4])) }
        var y = try Tensor<Float>([2, 3, 4]) { _ in 7 }
        expectError(.invalidShape, "y", containing: ["[3, 2, 4]", "[2, 3, 4]"]) {
            try convolution.run(Tensor<Float>(zeros: [3, 2, 4]), into: &y)
        }
        let (cells, few) = try (Tensor<Float>(zeros: [7, 4]), Tensor<Float>(zeros: [6, 4]))
        var target = try Tensor<Float>([6, 4]) { _ in 7 }
        expectError(.invalidShape, "x", containing: ["6", "7"]) {
            try convolution.run(
                tokens: cells.matrixView(), grid: GridSize(rows: 2, columns: 3), into: target.mutableMatrixView())
        }
        expectError(.invalidShape, "grid", containing: ["0 × 3"]) {
            try convolution.run(tokens: few.matrixView(), grid: GridSize(rows: 0, columns: 3), into: target.mutableMatrixView())
        }
        #expect(y.elements.allSatisfy { $0 == 7 } && target.elements.allSatisfy { $0 == 7 })
    }
}
