import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Space-to-channel")
struct SpaceToChannelTests {
    static let grids = [(1, 1), (2, 5), (3, 8), (4, 4), (5, 7), (7, 7), (1, 9), (9, 1)].map {
        GridSize(rows: $0.0, columns: $0.1)
    }

    static func check<E: AttentionElement>(_ type: E.Type, _ grid: GridSize, factor: Int, channels: Int) throws {
        let reshape = try SpaceToChannel(grid: grid, factor: factor, channels: channels)
        let x = try Tensor<E>.normal([3, grid.rows, grid.columns, channels], seed: 1)
        let y = try reshape(x)
        #expect(y.shape == [3, reshape.cells.rows, reshape.cells.columns, reshape.cellChannels])
        for frame in 0..<3 {
            for cell in 0..<reshape.cells.count {
                let (row, column) = cell.quotientAndRemainder(dividingBy: reshape.cells.columns)
                let expected = ReferenceTokenCells.row(of: reshape, frame: frame, cell: (row, column)) {
                    Double(x[flat: $0 * channels + $1].floatValue)
                }
                let first = (frame * reshape.cells.count + cell) * reshape.cellChannels
                let isEqual = expected.indices.allSatisfy { Double(y[flat: first + $0].floatValue) == expected[$0] }
                #expect(isEqual, "\(E.self), \(grid) by \(factor), \(channels) channels: cell \(cell) of frame \(frame)")
            }
        }
        // As tokens, strided, and on other threads.
        let tokens = try Tensor<E>([3, grid.count, channels], x.elements)
        #expect(try reshape(tokens).shape == [3, reshape.cells.count, reshape.cellChannels])
        let wide = try Tensor<E>([3 * grid.count, channels + 3]) { index in
            let (token, channel) = index.quotientAndRemainder(dividingBy: channels + 3)
            return channel < channels ? x[flat: token * channels + channel] : E(9)
        }
        var z = try Tensor<E>(zeros: [3 * reshape.cells.count, reshape.cellChannels])
        try reshape.run(
            MatrixView(wide.span, rows: 3 * grid.count, columns: channels, rowStride: channels + 3),
            into: z.mutableMatrixView(), on: WorkerPool(threads: 7))
        #expect(z.bits == y.bits)
    }

    @Test("elements are where the definition has them", arguments: grids)
    func definition(_ grid: GridSize) throws {
        for factor in [1, 2, 3, 4, 10] {
            try Self.check(Float.self, grid, factor: factor, channels: 5)
            try Self.check(Float16.self, grid, factor: factor, channels: 1)
            try Self.check(BFloat16.self, grid, factor: factor, channels: 17)
        }
    }

    @Test("no frames are no rows")
    func empty() throws {
        let reshape = try SpaceToChannel(grid: GridSize(side: 3), factor: 2, channels: 4)
        #expect(try reshape(Tensor<Float>(zeros: [0, 9, 4])).shape == [0, 4, 16])
        #expect(try reshape(Tensor<Float>(zeros: [2, 5, 3, 3, 4])).shape == [2, 5, 2, 2, 16])
    }

    @Test("errors name the argument and both numbers")
    func errors() throws {
        expectError(.invalidShape, "grid", containing: "0 × 3") {
            _ = try SpaceToChannel(grid: GridSize(rows: 0, columns: 3), factor: 2, channels: 4)
        }
        expectError(.invalidArgument, "factor", containing: "0") {
            _ = try SpaceToChannel(grid: GridSize(side: 3), factor: 0, channels: 4)
        }
        expectError(.invalidArgument, "factor", containing: "\(Int.max)") {
            _ = try SpaceToChannel(grid: GridSize(side: 3), factor: .max, channels: 4)
        }
        expectError(.invalidShape, "channels", containing: "0") {
            _ = try SpaceToChannel(grid: GridSize(side: 3), factor: 2, channels: 0)
        }
        let reshape = try SpaceToChannel(grid: GridSize(side: 3), factor: 2, channels: 4)
        expectError(.invalidShape, "x", containing: "[…, 3, 3, 4]", "[2, 8, 4]") {
            _ = try reshape(Tensor<Float>(zeros: [2, 8, 4]))
        }
        let x = try Tensor<Float>.normal([18, 4], seed: 1)
        var y = try Tensor<Float>([8, 15]) { _ in 7 }
        expectError(.invalidShape, "y", containing: "8 × 16", "8 × 15") {
            try reshape.run(x.matrixView(), into: y.mutableMatrixView())
        }
        expectError(.invalidShape, "x", containing: "9 tokens", "17 rows") {
            let rows = try MatrixView(x.span, rows: 17, columns: 4)
            try reshape.run(rows, into: y.mutableMatrixView())
        }
        #expect(y.elements.allSatisfy { $0 == 7 })
    }
}
