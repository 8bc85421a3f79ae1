import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Temporal pooling")
struct TemporalPoolingTests {
    /// The mean of a box, over what is there.
    static func expected(
        _ x: Tensor<Float>, _ pooling: TemporalPooling, frame: Int, row: Int, column: Int, channel: Int
    ) -> (value: Double, bound: Double) {
        let (pool, grid) = (pooling.pool, pooling.grid)
        var values: [Double] = []
        for f in frame * pool.frames..<min(pooling.frames, (frame + 1) * pool.frames) {
            for r in row * pool.rows..<min(grid.rows, (row + 1) * pool.rows) {
                for c in column * pool.columns..<min(grid.columns, (column + 1) * pool.columns) {
                    values.append(Double(x[flat: ((f * grid.rows + r) * grid.columns + c) * x.shape.last! + channel]))
                }
            }
        }
        return ReferenceTokenCells.mean(values)
    }

    @Test("boxes are means, tails of what is there", arguments: InstructionSet.available)
    func means(_ set: InstructionSet) throws {
        let x = try Tensor<Float>.normal([5, 3, 7, 19], seed: 1)
        for (f, r, c) in [(1, 1, 1), (2, 1, 1), (8, 1, 1), (4, 2, 3), (1, 3, 7), (5, 9, 9), (3, 2, 2)] {
            let pooling = try TemporalPooling(
                frames: 5, grid: GridSize(rows: 3, columns: 7), pool: PoolingWindow(frames: f, rows: r, columns: c),
                tails: .averaged, instructionSet: set)
            let y = try pooling(x)
            #expect(y.shape == [(5 + f - 1) / f, (3 + r - 1) / r, (7 + c - 1) / c, 19])
            for index in 0..<y.count {
                let (token, channel) = index.quotientAndRemainder(dividingBy: 19)
                let (frame, place) = token.quotientAndRemainder(dividingBy: pooling.pooledGrid.count)
                let (row, column) = place.quotientAndRemainder(dividingBy: pooling.pooledGrid.columns)
                let e = Self.expected(x, pooling, frame: frame, row: row, column: column, channel: channel)
                #expect(abs(Double(y[flat: index]) - e.value) <= e.bound)
            }
            #expect(try pooling(x, on: WorkerPool(threads: 7)).bits == y.bits)
        }
    }

    @Test("room around frames stays as it is")
    func room() throws {
        let x = try Tensor<Float>.normal([6, 4, 10], seed: 2)
        let grid = GridSize(side: 2)
        let plain = try TemporalPooling(frames: 6, grid: grid, pool: PoolingWindow(frames: 2))(x)
        let pooling = try TemporalPooling(
            frames: 6, grid: grid, pool: PoolingWindow(frames: 2), tokensBefore: 2, tokensAfter: 1)
        #expect(pooling.targetRows == 3 * 7 && pooling.sourceRows == 24)
        var y = try Tensor<Float>([21, 10]) { _ in 7 }
        try pooling.run(x, into: &y)
        for row in 0..<21 {
            let (frame, place) = row.quotientAndRemainder(dividingBy: 7)
            for channel in 0..<10 {
                let isRoom = place < 2 || place == 6
                #expect(y[row, channel] == (isRoom ? 7 : plain[flat: (frame * 4 + place - 2) * 10 + channel]))
            }
        }
        #expect(try pooling(x).shape == [21, 10])
    }

    @Test("eight frames become one, as the released encoder has them")
    func released() throws {
        let x = try Tensor<Float>([16, 1, 3]) { Float($0 / 3) }
        let y = try TemporalPooling(frames: 16, grid: GridSize(side: 1), pool: PoolingWindow(frames: 8))(x)
        #expect(y.elements == [3.5, 3.5, 3.5, 11.5, 11.5, 11.5])
    }

    @Test("errors name the extent and the pool")
    func errors() throws {
        let grid = GridSize(rows: 4, columns: 6)
        for (name, frames, pool) in [
            ("frames", 9, PoolingWindow(frames: 2)), ("grid.rows", 8, PoolingWindow(frames: 2, rows: 3)),
            ("grid.columns", 8, PoolingWindow(frames: 1, rows: 2, columns: 4)),
        ] {
            expectError(.invalidArgument, name, containing: "a multiple") {
                _ = try TemporalPooling(frames: frames, grid: grid, pool: pool)
            }
            _ = try TemporalPooling(frames: frames, grid: grid, pool: pool, tails: .averaged)
        }
        for (name, pool) in [
            ("pool.frames", PoolingWindow(frames: 0)), ("pool.rows", PoolingWindow(frames: 1, rows: -1)),
            ("pool.columns", PoolingWindow(frames: 1, columns: .max)),
        ] {
            expectError(.invalidArgument, name) { _ = try TemporalPooling(frames: 4, grid: grid, pool: pool, tails: .averaged) }
        }
        expectError(.invalidArgument, "tokensAfter", containing: "-1") {
            _ = try TemporalPooling(frames: 4, grid: grid, pool: PoolingWindow(frames: 1), tokensAfter: -1)
        }
        expectError(.invalidShape, "grid", containing: "0 × 6") {
            _ = try TemporalPooling(frames: 4, grid: GridSize(rows: 0, columns: 6), pool: PoolingWindow(frames: 1))
        }
        expectError(.invalidShape, "frames", containing: "2³¹") {
            _ = try TemporalPooling(frames: 1 << 30, grid: grid, pool: PoolingWindow(frames: 1 << 30))
        }
        let pooling = try TemporalPooling(frames: 4, grid: grid, pool: PoolingWindow(frames: 2))
        expectError(.invalidShape, "x", containing: "96 rows", "95") { _ = try pooling(Tensor<Float>(zeros: [95, 3])) }
        let none = try TemporalPooling(frames: 0, grid: grid, pool: PoolingWindow(frames: 8))
        #expect(try none(Tensor<Float>(zeros: [0, 24, 3])).shape == [0, 4, 6, 3])
    }
}
