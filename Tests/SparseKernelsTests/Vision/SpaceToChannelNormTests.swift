import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Space-to-channel folded into LayerNorm")
struct SpaceToChannelNormTests {
    /// Compares all cells of two frames with the oracle.
    static func check<X: AttentionElement, Y: AttentionElement>(
        _ xType: X.Type, _ yType: Y.Type, _ reshape: SpaceToChannel, offset: Float = 0, _ set: InstructionSet
    ) throws {
        let x = try Tensor<X>([2, reshape.grid.count, reshape.channels]) { index in
            var random = SplitMix64(seed: UInt64(index) &* 77 &+ 1)
            return X(random.normal() + offset)
        }
        let width = reshape.cellChannels
        let (weight, bias) = (try Tensor<Float>.normal([width], seed: 2), try Tensor<Float>.normal([width], seed: 3))
        let norm = try SpaceToChannelNorm(reshape, weight: weight, bias: bias, instructionSet: set)
        var y = try Tensor<Y>(zeros: [2, reshape.cells.count, width])
        try norm.run(x, into: &y, on: .serial)
        let (w, b) = (weight.elements.map(Double.init), bias.elements.map(Double.init))
        let rounding = RowNormTests.rounding(Y.self)
        for cell in 0..<2 * reshape.cells.count {
            let (frame, inFrame) = cell.quotientAndRemainder(dividingBy: reshape.cells.count)
            let (row, column) = inFrame.quotientAndRemainder(dividingBy: reshape.cells.columns)
            let values = ReferenceTokenCells.row(of: reshape, frame: frame, cell: (row, column)) {
                Double(x[flat: $0 * reshape.channels + $1].floatValue)
            }
            let expected = ReferenceRows.layerNorm(values, weight: w, bias: b, epsilon: Double(norm.epsilon))
            let mean = values.reduce(0, +) / Double(width)
            let variance = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(width)
            for channel in 0..<width {
                let (actual, e) = (Double(y[flat: cell * width + channel].floatValue), expected[channel])
                let bound =
                    ReferenceTokenCells.normBound(
                        e, weight: w[channel], bias: b[channel], channels: width, pieces: reshape.factor * reshape.factor,
                        variance: variance, epsilon: Double(norm.epsilon)) + 2 * rounding * abs(e)
                if !(abs(actual - e) <= bound) {
                    Issue.record("\(set), \(X.self) to \(Y.self), \(reshape), cell \(cell): \(actual) for \(e), bound \(bound)")
                    return
                }
            }
        }
    }

    static func reshape(_ rows: Int, _ columns: Int, _ factor: Int, _ channels: Int) throws -> SpaceToChannel {
        try SpaceToChannel(grid: GridSize(rows: rows, columns: columns), factor: factor, channels: channels)
    }

    @Test("agrees with the oracle at all sizes", arguments: InstructionSet.available)
    func agrees(_ set: InstructionSet) throws {
        for (rows, columns, factor) in [(1, 1, 2), (2, 5, 2), (3, 8, 3), (4, 4, 2), (5, 7, 3), (7, 7, 2), (6, 4, 1), (5, 5, 4)]
        {
            for channels in [1, 3, 7, 16, 33, 64] {
                let reshape = try Self.reshape(rows, columns, factor, channels)
                try Self.check(Float.self, Float.self, reshape, set)
                try Self.check(Float16.self, BFloat16.self, reshape, set)
                try Self.check(BFloat16.self, Float16.self, reshape, set)
            }
        }
        // Released widths.
        try Self.check(Float.self, Float.self, Self.reshape(5, 5, 2, 1152), set)
        try Self.check(Float.self, Float.self, Self.reshape(5, 5, 3, 1152), set)
    }

    @Test("cells far away from 0 keep their accuracy", arguments: InstructionSet.available)
    func offset(_ set: InstructionSet) throws {
        // Without padding, whose zeros would be the far ones.
        try Self.check(Float.self, Float.self, Self.reshape(4, 6, 2, 250), offset: 1000, set)
        try Self.check(Float.self, Float.self, Self.reshape(6, 3, 3, 100), offset: -1000, set)
    }

    @Test("is what a user would do in two steps, to a millionth", arguments: InstructionSet.available)
    func unfused(_ set: InstructionSet) throws {
        for factor in [2, 3] {
            let reshape = try Self.reshape(8, 8, factor, 96)
            let x = try Tensor<Float>.normal([3, 64, 96], seed: 4)
            let cells = try reshape(x)
            let plain = try LayerNorm(channels: reshape.cellChannels, instructionSet: set)(
                Tensor([3 * reshape.cells.count, reshape.cellChannels], cells.elements))
            let fused = try SpaceToChannelNorm(reshape, instructionSet: set)(x)
            #expect(fused.shape == [3, reshape.cells.count, reshape.cellChannels])
            // Results are up to 4, so this is the last place of the largest.
            #expect((0..<plain.count).allSatisfy { abs(fused[flat: $0] - plain[flat: $0]) <= 1e-6 }, "\(set), \(factor)")
        }
    }

    @Test("strides, threads and other cells do not change bits", arguments: InstructionSet.available)
    func bits(_ set: InstructionSet) throws {
        let reshape = try Self.reshape(9, 7, 3, 50)
        var x = try Tensor<Float>.normal([40, 63, 50], seed: 5)
        let norm = try SpaceToChannelNorm(reshape, weight: .normal([450], seed: 6), instructionSet: set)
        let first = try norm(x, on: .serial)
        for threads in [2, 7] { #expect(try norm(x, on: WorkerPool(threads: threads)).bits == first.bits, "\(set)") }
        // A cell of NaN and one of an infinity leave all others alone.
        x[0, 0, 3] = .nan
        x[1, 62, 4] = .infinity
        let second = try norm(x)
        let cells = reshape.cells.count
        for cell in 0..<40 * cells {
            let isTouched = cell == 0 || cell == 2 * cells - 1
            let isRight = (cell * 450..<(cell + 1) * 450).allSatisfy { index in
                isTouched ? second[flat: index].isNaN : second[flat: index].bitPattern == first[flat: index].bitPattern
            }
            #expect(isRight, "\(set), cell \(cell)")
        }
    }

    @Test("tokens and results with strides are as those without", arguments: InstructionSet.available)
    func strides(_ set: InstructionSet) throws {
        let reshape = try Self.reshape(5, 4, 2, 24)
        let x = try Tensor<Float>.normal([2 * 20, 40], seed: 7)
        let dense = try Tensor<Float>([2, 20, 24]) { x[flat: $0 / 24 * 40 + $0 % 24] }
        let norm = try SpaceToChannelNorm(reshape, instructionSet: set)
        let expected = try norm(dense)
        var y = try Tensor<Float>([2 * 6, 100]) { _ in 7 }
        try norm.run(
            MatrixView(x.span, rows: 40, columns: 24, rowStride: 40),
            into: MutableMatrixView(y.mutableSpan, rows: 12, columns: 96, rowStride: 100))
        for row in 0..<12 {
            // Pieces of one token are summed apart, so bits may differ from those of whole rows.
            #expect((0..<96).allSatisfy { abs(y[row, $0] - expected[flat: row * 96 + $0]) <= 1e-6 })
            #expect((96..<100).allSatisfy { y[row, $0] == 7 }, "\(set)")
        }
    }

    @Test("results past the caches have the bits of those in them", arguments: InstructionSet.available)
    func streaming(_ set: InstructionSet) throws {
        // 35 MB of results, of 19 equal frames.
        let (frames, width) = (19, 4 * 1152)
        let reshape = try Self.reshape(20, 20, 2, 1152)
        let frame = try Tensor<Float>.normal([400, 1152], seed: 8)
        var x = try Tensor<Float>(zeros: [frames * 400, 1152])
        frame.span.withUnsafeBufferPointer { source in
            var span = x.mutableSpan
            span.withUnsafeMutableBufferPointer { target in
                for index in 0..<frames {
                    (target.baseAddress! + index * frame.count).update(from: source.baseAddress!, count: frame.count)
                }
            }
        }
        let norm = try SpaceToChannelNorm(reshape, instructionSet: set)
        var small = try Tensor<Float>(zeros: [100, width])
        try norm.run(frame.matrixView(), into: small.mutableMatrixView())
        #expect(frames * 100 * width * 4 > 32 << 20)
        // Aligned rows, and rows that are not.
        for stride in [width, width + 1] {
            var y = try Tensor<Float>(zeros: [frames * 100, stride])
            try norm.run(
                x.matrixView(), into: MutableMatrixView(y.mutableSpan, rows: frames * 100, columns: width, rowStride: stride),
                on: WorkerPool(threads: 2))
            let areEqual = y.span.withUnsafeBufferPointer { y in
                small.span.withUnsafeBufferPointer { small in
                    (0..<frames * 100).allSatisfy { row in
                        memcmp(y.baseAddress! + row * stride, small.baseAddress! + row % 100 * width, 4 * width) == 0
                    }
                }
            }
            #expect(areEqual, "\(set), stride \(stride)")
        }
    }

    @Test("nothing outside of the operands is touched")
    func borders() async {
        await #expect(processExitsWith: .success) {
            for (channels, factor) in [(1, 2), (5, 3), (16, 2), (37, 3)] {
                let reshape = try SpaceToChannelNormTests.reshape(5, 4, factor, channels)
                let count = reshape.cells.count * reshape.cellChannels
                for fencesEnd in [true, false] {
                    let x = FencedMemory([Float](repeating: 1.5, count: 20 * channels), fencesEnd: fencesEnd)
                    let y = FencedMemory([Float](repeating: 0, count: count), fencesEnd: fencesEnd)
                    for set in InstructionSet.available {
                        try SpaceToChannelNorm(reshape, instructionSet: set).run(
                            MatrixView(x.elements.span, rows: 20, columns: channels),
                            into: MutableMatrixView(
                                y.elements.mutableSpan, rows: reshape.cells.count, columns: reshape.cellChannels))
                    }
                }
            }
        }
    }

    @Test("errors name the operand and both numbers")
    func errors() throws {
        let reshape = try Self.reshape(4, 4, 2, 8)
        expectError(.invalidShape, "weight", containing: "[32]", "[8]") {
            _ = try SpaceToChannelNorm(reshape, weight: .init(zeros: [8]))
        }
        expectError(.invalidArgument, "epsilon", containing: "-1") { _ = try SpaceToChannelNorm(reshape, epsilon: -1) }
        let norm = try SpaceToChannelNorm(reshape)
        expectError(.invalidShape, "x", containing: "[…, 16, 8]", "[2, 15, 8]") {
            _ = try norm(Tensor<Float>(zeros: [2, 15, 8]))
        }
        let x = try Tensor<Float>(zeros: [2, 16, 8])
        var y = try Tensor<Float>([2, 4, 31]) { _ in 7 }
        expectError(.invalidShape, "y", containing: "[2, 4, 32]", "[2, 4, 31]") { try norm.run(x, into: &y) }
        #expect(y.elements.allSatisfy { $0 == 7 })
        #expect(try norm(Tensor<Float>(zeros: [0, 16, 8])).shape == [0, 4, 32])
    }
}
