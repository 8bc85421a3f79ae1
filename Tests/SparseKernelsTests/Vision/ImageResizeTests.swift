import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Resizing of pictures: the oracle at awkward extents, layouts, threads, non-finite input, borders, errors.
@Suite("Image resize")
struct ImageResizeTests {
    struct Extents: Sendable, CustomTestStringConvertible {
        var source: GridSize
        var target: GridSize
        var testDescription: String { "\(source) to \(target)" }

        init(_ rows: Int, _ columns: Int, _ targetRows: Int, _ targetColumns: Int) {
            source = GridSize(rows: rows, columns: columns)
            target = GridSize(rows: targetRows, columns: targetColumns)
        }
    }

    struct Method: Sendable, CustomTestStringConvertible {
        var filter: ImageResize.Filter
        var antialias = false
        var testDescription: String { "\(filter)\(antialias ? " antialiased" : "")" }
    }

    static let methods =
        ImageResize.Filter.allCases.map { Method(filter: $0) }
        + [Method(filter: .bilinear, antialias: true), Method(filter: .bicubic, antialias: true)]

    /// Single cells, up and down, one axis that stays, around vectors of 4, 8 and 16 lanes, and around a stretch of 128 columns.
    static let extents = [
        Extents(1, 1, 1, 1), Extents(1, 1, 5, 3), Extents(6, 9, 1, 1), Extents(7, 7, 7, 7), Extents(5, 3, 5, 8),
        Extents(9, 31, 4, 31), Extents(27, 27, 26, 10), Extents(4, 15, 17, 33), Extents(16, 17, 15, 16),
        Extents(3, 300, 5, 129),
        Extents(2, 40, 3, 257), Extents(33, 1, 2, 7), Extents(18, 400, 3, 5),
    ]

    @Test("agrees with the oracle in both layouts", arguments: InstructionSet.available, methods)
    func matchesReference(_ set: InstructionSet, _ method: Method) throws {
        for extents in Self.extents {
            let (source, target) = (extents.source, extents.target)
            let resize = try ImageResize(
                source, to: target, filter: method.filter, antialias: method.antialias, instructionSet: set)
            let oracle = ReferenceResize(source, to: target, filter: method.filter, antialias: method.antialias)
            for channels in extents.target.count > 300 ? [3, 19] : [1, 3, 16, 37, 130] {
                let x = try Tensor<Float>.normal([channels, source.rows, source.columns], seed: UInt64(channels))
                let interleaved = try Tensor<Float>([source.rows, source.columns, channels]) {
                    x[flat: $0 % channels * source.count + $0 / channels]
                }
                let y = try resize(x, on: .serial)
                let z = try resize(interleaved, layout: .interleaved, on: .serial)
                #expect(y.shape == [channels, target.rows, target.columns])
                #expect(z.shape == [target.rows, target.columns, channels])
                var worst = (excess: 0.0, text: "")
                for place in stride(from: 0, to: target.count, by: max(1, target.count / 50)) {
                    let (row, column) = (place / target.columns, place % target.columns)
                    for channel in Set([0, channels / 2, channels - 1]) {
                        let (value, magnitude) = oracle.cell(row, column) { x[channel, $0, $1] }
                        let bound = oracle.errorBound(row, column, magnitude: magnitude)
                        for actual in [y[channel, row, column], z[row, column, channel]] {
                            let excess = abs(Double(actual) - value) - bound
                            if !(excess <= worst.excess) {
                                worst = (excess, "(\(channel), \(row), \(column)) \(actual), expected \(value) ± \(bound)")
                            }
                        }
                    }
                }
                #expect(worst.text.isEmpty, "\(set), \(method.testDescription), \(extents.testDescription): \(worst.text)")
            }
        }
    }

    @Test("what a user would state: areas are means, nearest cells are copies", arguments: InstructionSet.available)
    func statedResults(_ set: InstructionSet) throws {
        let x = try Tensor<Float>([1, 4, 6]) { Float($0) }
        let halves = try ImageResize(
            GridSize(rows: 4, columns: 6), to: GridSize(rows: 2, columns: 2), filter: .area, instructionSet: set)
        #expect(try halves(x).elements.map { ($0 * 1000).rounded() / 1000 } == [4, 7, 16, 19])
        let twice = try ImageResize(
            GridSize(rows: 4, columns: 6), to: GridSize(rows: 8, columns: 12), filter: .nearest, instructionSet: set)
        let y = try twice(x)
        for row in 0..<8 { for column in 0..<12 { #expect(y[0, row, column] == x[0, row / 2, column / 2]) } }
        // Weights sum to 1, so that a flat picture stays flat.
        for method in Self.methods {
            let flat = try Tensor<Float>([2, 4, 6]) { _ in 3 }
            let resize = try ImageResize(
                GridSize(rows: 4, columns: 6), to: GridSize(rows: 3, columns: 11), filter: method.filter,
                antialias: method.antialias, instructionSet: set)
            #expect(try resize(flat).elements.allSatisfy { abs($0 - 3) <= 3e-6 }, "\(set), \(method.testDescription)")
        }
    }

    @Test("extents that stay are copied, bit for bit", arguments: InstructionSet.available, methods)
    func copies(_ set: InstructionSet, _ method: Method) throws {
        var x = try Tensor<Float>.normal([2, 11, 21], seed: 1)
        x[flat: 50] = .nan
        x[flat: 51] = -.infinity
        let resize = try ImageResize(
            GridSize(rows: 11, columns: 21), to: GridSize(rows: 11, columns: 21), filter: method.filter,
            antialias: method.antialias, instructionSet: set)
        #expect(try resize(x).bits == x.bits, "\(set)")
        let tokens = try Tensor<Float>([11, 21, 2], x.elements)
        let wide = try ImageResize(
            GridSize(rows: 11, columns: 21), to: GridSize(rows: 11, columns: 21), filter: method.filter, instructionSet: set)
        #expect(try wide(tokens, layout: .interleaved).bits == x.bits, "\(set)")
    }

    @Test("threads, batches and views do not change a bit", arguments: InstructionSet.available, methods)
    func sameBits(_ set: InstructionSet, _ method: Method) throws {
        let (source, target) = (GridSize(rows: 45, columns: 70), GridSize(rows: 61, columns: 52))
        let resize = try ImageResize(
            source, to: target, filter: method.filter, antialias: method.antialias, instructionSet: set)
        let x = try Tensor<Float>.normal([2, 30, 45, 70], seed: 5)
        let serial = try resize(x, on: .serial)
        #expect(serial.shape == [2, 30, 61, 52])
        let tokens = try Tensor<Float>([2, 45, 70, 30], x.elements)
        let serialTokens = try resize(tokens, layout: .interleaved, on: .serial)
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            #expect(try resize(x, on: pool).bits == serial.bits, "\(set), \(threads)")
            #expect(try resize(tokens, layout: .interleaved, on: pool).bits == serialTokens.bits, "\(set), \(threads)")
        }
        // A plane with strides, a part of a picture, and columns of a wider matrix.
        let elements = x.elements
        let plane = elements[3 * source.count..<4 * source.count]
        let expected = Array(serial.elements[3 * target.count..<4 * target.count])
        let wide = plane.indices.flatMap { ($0 + 1) % 70 == 0 ? [plane[$0], .nan, .nan] : [plane[$0]] }
        var result = [Float](repeating: 7, count: 61 * 55)
        try result.withUnsafeMutableBufferPointer { result in
            try resize.run(
                plane: MatrixView(wide.span, rows: 45, columns: 70, rowStride: 72),
                into: MutableMatrixView(result.mutableSpan, rows: 61, columns: 52, rowStride: 55))
        }
        for row in 0..<61 {
            #expect(Array(result[row * 55..<row * 55 + 52]) == Array(expected[row * 52..<row * 52 + 52]))
            #expect(result[row * 55 + 52..<row * 55 + 55].allSatisfy { $0 == 7 })
        }
        var part = try Tensor<Float>(zeros: [1, 61, 52])
        let large = try Tensor<Float>([1, 45, 72], wide)
        let largeView = try large.pictureView()
        let crop = try largeView.cropped(row: 0, column: 0, to: source)
        try resize.run(crop, into: &part)
        #expect(part.elements == expected)
        let count = 2 * source.count
        let columns = try Tensor<Float>([count, 40]) { $0 % 40 < 30 ? tokens[flat: $0 / 40 * 30 + $0 % 40] : .nan }
        var narrow = try Tensor<Float>([2 * target.count, 33]) { _ in 7 }
        var rows = try narrow.mutableMatrixView()
        let columnsView = try columns.matrixView()
        try resize.run(tokens: columnsView.columns(0..<30), into: rows.columns(3..<33))
        #expect(
            narrow.elements.indices.allSatisfy { index in
                let (row, column) = (index / 33, index % 33)
                return column < 3
                    ? narrow[flat: index] == 7
                    : narrow[flat: index].bitPattern == serialTokens[flat: row * 30 + column - 3].bitPattern
            })
    }

    @Test("a NaN passes through its taps only", arguments: InstructionSet.available, methods)
    func nonFinite(_ set: InstructionSet, _ method: Method) throws {
        for (source, target) in [
            (GridSize(rows: 12, columns: 20), GridSize(rows: 18, columns: 33)),
            (GridSize(rows: 12, columns: 20), GridSize(rows: 5, columns: 7)),
        ] {
            let resize = try ImageResize(
                source, to: target, filter: method.filter, antialias: method.antialias, instructionSet: set)
            let oracle = ReferenceResize(source, to: target, filter: method.filter, antialias: method.antialias)
            for channels in [1, 17] {
                var x = try Tensor<Float>.normal([12, 20, channels], seed: 1)
                let clean = try resize(x, layout: .interleaved)
                x[flat: (6 * 20 + 9) * channels] = .nan
                let y = try resize(x, layout: .interleaved)
                for cell in 0..<target.count {
                    let (row, column) = (cell / target.columns, cell % target.columns)
                    let seesRow = oracle.taps(row, from: 12, to: target.rows).contains { $0.cell == 6 }
                    let seesColumn = oracle.taps(column, from: 20, to: target.columns).contains { $0.cell == 9 }
                    for channel in 0..<channels {
                        let (a, b) = (y[flat: cell * channels + channel], clean[flat: cell * channels + channel])
                        let isSpoiled = seesRow && seesColumn && channel == 0
                        #expect(isSpoiled ? a.isNaN : a.bitPattern == b.bitPattern, "\(set), \(method.testDescription)")
                    }
                }
            }
        }
    }

    @Test("nothing outside the pictures is touched")
    func bordersAreKept() async {
        await #expect(processExitsWith: .success) {
            for set in InstructionSet.available {
                for method in Self.methods {
                    for (channels, layout) in [(1, ImageLayout.planar), (3, .interleaved), (21, .interleaved)] {
                        for extents in Self.extents where extents.target.count < 1000 {
                            let (source, target) = (extents.source, extents.target)
                            let resize = try ImageResize(
                                source, to: target, filter: method.filter, antialias: method.antialias, instructionSet: set)
                            for fencesEnd in [false, true] {
                                let x = FencedMemory(
                                    [Float](repeating: 1, count: source.count * channels), fencesEnd: fencesEnd)
                                let y = FencedMemory(
                                    [Float](repeating: .nan, count: target.count * channels), fencesEnd: fencesEnd)
                                if layout == .planar {
                                    try resize.run(
                                        plane: MatrixView(x.elements.span, rows: source.rows, columns: source.columns),
                                        into: MutableMatrixView(
                                            y.elements.mutableSpan, rows: target.rows, columns: target.columns))
                                } else {
                                    try resize.run(
                                        tokens: MatrixView(x.elements.span, rows: source.count, columns: channels),
                                        into: MutableMatrixView(y.elements.mutableSpan, rows: target.count, columns: channels))
                                }
                                #expect(y.elements.allSatisfy { abs($0 - 1) < 1e-5 }, "\(set)")
                            }
                        }
                    }
                }
            }
        }
    }

    @Test("pictures of no pictures or no channels are results like others", arguments: InstructionSet.available)
    func empty(_ set: InstructionSet) throws {
        let resize = try ImageResize(GridSize(side: 3), to: GridSize(side: 2), filter: .bicubic, instructionSet: set)
        #expect(try resize(Tensor<Float>(zeros: [0, 3, 3])).shape == [0, 2, 2])
        #expect(try resize(Tensor<Float>(zeros: [3, 3, 0]), layout: .interleaved).shape == [2, 2, 0])
        #expect(try resize(Tensor<Float>(zeros: [3, 3])).shape == [2, 2])
        let nothing = try Tensor<Float>(zeros: [0, 5])
        var result = try Tensor<Float>(zeros: [0, 5])
        try resize.run(tokens: nothing.matrixView(), into: result.mutableMatrixView())
    }

    @Test("extents and options that cannot be are refused", arguments: InstructionSet.available)
    func badPlans(_ set: InstructionSet) {
        let some = GridSize(side: 4)
        for bad in [
            GridSize(rows: 0, columns: 4), GridSize(rows: 4, columns: -1), GridSize(rows: .max, columns: 2),
            GridSize(rows: 1, columns: 1 << 25),
        ] {
            expectError(.invalidShape, "source", containing: ["\(bad.columns == 4 ? bad.rows : bad.columns)"]) {
                _ = try ImageResize(bad, to: some, filter: .area, instructionSet: set)
            }
            expectError(.invalidShape, "target") { _ = try ImageResize(some, to: bad, filter: .area, instructionSet: set) }
        }
        for filter in [ImageResize.Filter.nearest, .area] {
            expectError(.invalidArgument, "antialias", containing: ["\(filter)"]) {
                _ = try ImageResize(some, to: some, filter: filter, antialias: true, instructionSet: set)
            }
        }
    }

    @Test("operands that disagree with the plan are named, and nothing is written", arguments: InstructionSet.available)
    func mismatches(_ set: InstructionSet) throws {
        let resize = try ImageResize(
            GridSize(rows: 4, columns: 5), to: GridSize(rows: 2, columns: 3), filter: .bilinear, instructionSet: set)
        let right = try Tensor<Float>(zeros: [3, 4, 5])
        var y = try Tensor<Float>([3, 2, 3]) { _ in 7 }
        for shape in [[5], [5, 4], [3, 4, 6], [3, 5, 4], []] {
            let x = try Tensor<Float>(zeros: shape)
            expectError(.invalidShape, "x", containing: ["\(shape)"]) { try resize.run(x, into: &y) }
            expectError(.invalidShape, "x", containing: ["\(shape)"]) { _ = try resize(x) }
        }
        expectError(.invalidShape, "x", containing: ["4, 5, channels"]) { _ = try resize(right, layout: .interleaved) }
        for shape in [[3, 2, 2], [2, 2, 3], [2, 3], [1, 3, 2, 3]] {
            var wrong = try Tensor<Float>([shape.reduce(1, *)] + []) { _ in 7 }
            wrong = try Tensor(shape, wrong.elements)
            expectError(.invalidShape, "y", containing: ["\(shape)"]) { try resize.run(right, into: &wrong) }
            #expect(wrong.elements.allSatisfy { $0 == 7 })
        }
        let tokens = try Tensor<Float>(zeros: [21, 2])
        var target = try Tensor<Float>(zeros: [6, 2])
        expectError(.invalidShape, "x", containing: ["20", "21"]) {
            try resize.run(tokens: tokens.matrixView(), into: target.mutableMatrixView())
        }
        expectError(.invalidShape, "y", containing: ["6 × 3", "6 × 2"]) {
            let wide = try Tensor<Float>(zeros: [20, 3])
            try resize.run(tokens: wide.matrixView(), into: target.mutableMatrixView())
        }
        let picture = try right.pictureView()
        expectError(.invalidShape, "x", containing: ["3 × 5"]) {
            try resize.run(picture.cropped(row: 1, column: 0, to: GridSize(rows: 3, columns: 5)), into: &y)
        }
        #expect(y.elements.allSatisfy { $0 == 7 })
    }
}
