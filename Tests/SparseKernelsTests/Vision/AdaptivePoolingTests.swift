import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Adaptive pooling: windows by their definition, means as areas, threads, NaN, errors.
@Suite("Adaptive pooling")
struct AdaptivePoolingTests {
    /// The window of cell `index` of m, from n.
    static func window(_ index: Int, _ n: Int, _ m: Int) -> Range<Int> { index * n / m..<((index + 1) * n + m - 1) / m }

    @Test("maxima are those of the windows", arguments: InstructionSet.available)
    func maxima(_ set: InstructionSet) throws {
        for (rows, columns, targetRows, targetColumns) in [
            (1, 1, 1, 1), (54, 54, 27, 27), (13, 7, 6, 6), (5, 9, 8, 17), (33, 150, 4, 129), (6, 6, 6, 6), (9, 20, 2, 20),
        ] {
            let (source, target) = (
                GridSize(rows: rows, columns: columns), GridSize(rows: targetRows, columns: targetColumns)
            )
            let pooling = try AdaptivePooling(source, to: target, .maximum, instructionSet: set)
            for channels in [1, 5, 33] {
                let x = try Tensor<Float>.normal([channels, rows, columns], seed: 2)
                let tokens = try Tensor<Float>([rows, columns, channels]) {
                    x[flat: $0 % channels * source.count + $0 / channels]
                }
                let (y, z) = try (pooling(x), pooling(tokens, layout: .interleaved))
                var agrees = true
                for channel in 0..<channels {
                    for row in 0..<targetRows {
                        for column in 0..<targetColumns {
                            var largest = -Float.infinity
                            for r in Self.window(row, rows, targetRows) {
                                for c in Self.window(column, columns, targetColumns) {
                                    largest = max(largest, x[channel, r, c])
                                }
                            }
                            agrees = agrees && y[channel, row, column] == largest && z[row, column, channel] == largest
                        }
                    }
                }
                #expect(agrees, "\(set), \(source) to \(target), \(channels)")
            }
        }
    }

    @Test("means are areas, bit for bit", arguments: InstructionSet.available)
    func means(_ set: InstructionSet) throws {
        let (source, target) = (GridSize(rows: 13, columns: 40), GridSize(rows: 6, columns: 17))
        let x = try Tensor<Float>.normal([3, 13, 40], seed: 3)
        let pooling = try AdaptivePooling(source, to: target, .average, instructionSet: set)
        let resize = try ImageResize(source, to: target, filter: .area, instructionSet: set)
        #expect(try pooling(x).bits == resize(x).bits, "\(set)")
    }

    @Test("NaN and infinities go where their windows are", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let (source, target) = (GridSize(rows: 9, columns: 40), GridSize(rows: 4, columns: 15))
        let pooling = try AdaptivePooling(source, to: target, .maximum, instructionSet: set)
        for layout in [ImageLayout.planar, .interleaved] {
            let shape = layout == .planar ? [1, 9, 40] : [9, 40, 1]
            for place in [0, 4 * 40 + 21, 8 * 40 + 39] {
                var x = try Tensor<Float>.normal(shape, seed: 1)
                let clean = try pooling(x, layout: layout)
                x[flat: place] = .nan
                x[flat: (place + 1) % 360] = -.infinity
                let y = try pooling(x, layout: layout)
                for cell in 0..<target.count {
                    let sees =
                        Self.window(cell / 15, 9, 4).contains(place / 40) && Self.window(cell % 15, 40, 15).contains(place % 40)
                    let hidden = (place + 1) % 360
                    let seesHidden =
                        Self.window(cell / 15, 9, 4).contains(hidden / 40)
                        && Self.window(cell % 15, 40, 15).contains(hidden % 40)
                    if sees { #expect(y[flat: cell].isNaN, "\(set)") }
                    if !sees && !seesHidden { #expect(y[flat: cell] == clean[flat: cell], "\(set)") }
                    if !sees { #expect(!y[flat: cell].isNaN, "\(set)") }
                }
            }
        }
    }

    @Test("threads and views do not change a bit", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let (source, target) = (GridSize(side: 54), GridSize(side: 27))
        let pooling = try AdaptivePooling(source, to: target, .maximum, instructionSet: set)
        let x = try Tensor<Float>.normal([2, 54, 54, 130], seed: 3)
        let serial = try pooling(x, layout: .interleaved, on: .serial)
        for threads in [2, 7] {
            #expect(try pooling(x, layout: .interleaved, on: WorkerPool(threads: threads)).bits == serial.bits, "\(set)")
        }
        var y = try Tensor<Float>(zeros: [2 * 729, 130])
        let tokens = try Tensor<Float>([2 * 54 * 54, 130], x.elements)
        try pooling.run(tokens: tokens.matrixView(), into: y.mutableMatrixView())
        #expect(y.bits == serial.bits)
    }

    @Test("extents that cannot be are refused")
    func errors() throws {
        expectError(.invalidShape, "target", containing: "0 × 3") {
            _ = try AdaptivePooling(GridSize(side: 2), to: GridSize(rows: 0, columns: 3), .average)
        }
        let pooling = try AdaptivePooling(GridSize(side: 4), to: GridSize(side: 2), .maximum)
        expectError(.invalidShape, "x", containing: "[…, 4, 4]", "[4, 5]") { _ = try pooling(Tensor<Float>(zeros: [4, 5])) }
        var y = try Tensor<Float>(zeros: [2, 3])
        expectError(.invalidShape, "y") { try pooling.run(Tensor<Float>(zeros: [4, 4]), into: &y) }
    }
}
