import KernelInterface
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// The matrix product: sizes around every block edge, strides, threads, non-finite input, and bounds of memory.
@Suite("GEMM")
struct GEMMTests {
    struct Size: Sendable, CustomTestStringConvertible {
        var m: Int
        var n: Int
        var k: Int
        var testDescription: String { "\(m)×\(n)×\(k)" }
    }

    /// 1 and its neighbours, then each block edge with the other extents small. Tiles are 4 or 8 rows high, and panels 12, 24
    /// or 48 columns wide; the cache blocks are named.
    static let sizes: [Size] = {
        var sizes = [Size(m: 1, n: 1, k: 1), Size(m: 3, n: 7, k: 1), Size(m: 1, n: 1, k: 300), Size(m: 7, n: 3, k: 3)]
        for edge in [4, 8, 16] { sizes += (edge - 1...edge + 1).map { Size(m: $0, n: 5, k: 7) } }
        for edge in [4, 8, 12, 16, 24, 32, 36, 48, 96] { sizes += (edge - 1...edge + 1).map { Size(m: 9, n: $0, k: 5) } }
        for edge in [GEMMScratch.depthBlock, 2 * GEMMScratch.depthBlock] {
            sizes += (edge - 1...edge + 1).map { Size(m: 5, n: 13, k: $0) }
        }
        sizes += (-1...1).map { Size(m: GEMMScratch.rowBlock + $0, n: 7, k: 3) }
        sizes += (-1...1).map { Size(m: 5, n: GEMMScratch.columnBlock + $0, k: 3) }
        // Few rows: every height, around groups of rows of B, whole vectors and depth blocks.
        for m in [1, 2, 3, 4, 5, 7, 8, 9, GEMMScratch.fewRows, GEMMScratch.fewRows + 1] {
            sizes += [Size(m: m, n: 9, k: 35), Size(m: m, n: 33, k: 16), Size(m: m, n: 50, k: 261), Size(m: m, n: 4, k: 5)]
        }
        sizes.append(Size(m: 1, n: GEMMScratch.rowSums + 5, k: 6))
        // All edges are ragged at once, with two row blocks and two depth blocks.
        sizes.append(Size(m: GEMMScratch.rowBlock + 2, n: 17, k: GEMMScratch.depthBlock + 1))
        return sizes
    }()

    /// A product from strided operands, whose rows are `gap` elements apart and come after `gap` elements. Gaps of A and B are
    /// NaN, those of C a guard value.
    struct Product {
        let size: Size
        let transposesB: Bool
        let gap: Int
        var a: [Float]
        var b: [Float]
        static let guardValue: Float = 987.25

        init(_ size: Size, transposesB: Bool, gap: Int) throws {
            self.size = size
            self.transposesB = transposesB
            self.gap = gap
            a = try Self.rows(Tensor<Float>.normal([size.m, size.k], seed: 101), gap)
            b = try Self.rows(Tensor<Float>.normal(transposesB ? [size.n, size.k] : [size.k, size.n], seed: 102), gap)
        }

        static func rows(_ tensor: Tensor<Float>, _ gap: Int) -> [Float] {
            let columns = tensor.shape[1]
            let filler = Array(repeating: Float.nan, count: gap)
            let elements = tensor.elements
            return filler + (0..<tensor.shape[0]).flatMap { elements[$0 * columns..<($0 + 1) * columns] + filler }
        }

        var bRows: Int { transposesB ? size.n : size.k }
        var bColumns: Int { transposesB ? size.k : size.n }

        func indexOfA(_ row: Int, _ column: Int) -> Int { gap + row * (size.k + gap) + column }
        /// The index of an element of B as it is multiplied, k × n.
        func indexOfB(_ row: Int, _ column: Int) -> Int {
            gap + (transposesB ? column * (size.k + gap) + row : row * (size.n + gap) + column)
        }
        func indexOfC(_ row: Int, _ column: Int) -> Int { gap + row * (size.n + gap) + column }

        /// Runs `multiply` with views of A, B and C and returns C's whole buffer.
        func run(
            _ multiply: (MatrixView<Float>, MatrixView<Float>, consuming MutableMatrixView<Float>) throws -> Void
        ) throws -> [Float] {
            var c = Array(repeating: Self.guardValue, count: gap + size.m * (size.n + gap))
            try c.withUnsafeMutableBufferPointer { c in
                try multiply(
                    MatrixView(a.span.extracting(gap...), rows: size.m, columns: size.k, rowStride: size.k + gap),
                    MatrixView(b.span.extracting(gap...), rows: bRows, columns: bColumns, rowStride: bColumns + gap),
                    MutableMatrixView(
                        c.extracting(gap...).mutableSpan, rows: size.m, columns: size.n, rowStride: size.n + gap))
            }
            return c
        }

        func run(_ set: InstructionSet, on pool: WorkerPool = .serial) throws -> [Float] {
            let gemm = try GEMM(m: size.m, n: size.n, k: size.k, transposesB: transposesB, instructionSet: set)
            return try run { a, b, c in try gemm.run(a: a, b: b, c: c, on: pool) }
        }

        /// Whether an element of C's buffer is in no row of C.
        func isGap(_ index: Int) -> Bool { index < gap || (index - gap) % (size.n + gap) >= size.n }

        /// Compares every `step`-th element and the last one with the oracle, and checks the guards.
        func expectMatch(_ c: [Float], step: Int = 1, _ label: String, sourceLocation: SourceLocation = #_sourceLocation) {
            var worst = (excess: 0.0, text: "")
            for flat in Array(stride(from: 0, to: size.m * size.n, by: step)) + [size.m * size.n - 1] {
                let (row, column) = (flat / size.n, flat % size.n)
                let (value, magnitude) = ReferenceMatrixProduct.element(
                    row: row, column: column, depth: size.k, a: { a[indexOfA($0, $1)] }, b: { b[indexOfB($0, $1)] })
                let bound = ReferenceMatrixProduct.errorBound(magnitude: magnitude, depth: size.k)
                let actual = Double(c[indexOfC(row, column)])
                let excess = abs(actual - value) - bound
                if !(excess <= worst.excess) { worst = (excess, "(\(row), \(column)) \(actual), expected \(value) ± \(bound)") }
            }
            #expect(worst.text.isEmpty, "\(label): \(worst.text)", sourceLocation: sourceLocation)
            let overwritten = c.indices.first { isGap($0) && c[$0] != Self.guardValue }
            #expect(overwritten == nil, "\(label): wrote between rows", sourceLocation: sourceLocation)
        }
    }

    @Test("agrees with the oracle and keeps to its rows", arguments: InstructionSet.available, sizes)
    func matchesReference(_ set: InstructionSet, _ size: Size) throws {
        let step = max(1, size.m * size.n * size.k / 20_000)
        for transposesB in [false, true] {
            for gap in [0, 3] {
                let product = try Product(size, transposesB: transposesB, gap: gap)
                try product.expectMatch(product.run(set), step: step, "\(set), B\(transposesB ? "ᵀ" : ""), gap \(gap)")
            }
        }
    }

    @Test("strides and transposition do not change a bit", arguments: InstructionSet.available)
    func sameBitsFromAnyLayout(_ set: InstructionSet) throws {
        let size = Size(m: GEMMScratch.fewRows + 13, n: 61, k: 270)
        let plain = try Product(size, transposesB: false, gap: 0)
        let expected = try plain.run(set).map(\.bitPattern)
        for (transposesB, gap) in [(false, 1), (true, 0), (true, 5)] {
            var product = try Product(size, transposesB: transposesB, gap: gap)
            for row in 0..<size.k {
                for column in 0..<size.n { product.b[product.indexOfB(row, column)] = plain.b[plain.indexOfB(row, column)] }
            }
            let c = try product.run(set)
            #expect(c.indices.filter { !product.isGap($0) }.map { c[$0].bitPattern } == expected, "\(set)")
        }
    }

    @Test("results have the same bits on 1, 2 and 7 threads", arguments: InstructionSet.available, [false, true])
    func sameBitsOnAnyThreads(_ set: InstructionSet, _ transposesB: Bool) throws {
        // Two row blocks by two column blocks are four tasks, with enough work to wake threads.
        let size = Size(m: GEMMScratch.rowBlock + 20, n: GEMMScratch.columnBlock + 30, k: 40)
        #expect(size.m * size.n * size.k > WorkerPool.workCutoff)
        let product = try Product(size, transposesB: transposesB, gap: 1)
        let serial = try product.run(set).map(\.bitPattern)
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            for _ in 0..<3 { #expect(try product.run(set, on: pool).map(\.bitPattern) == serial, "\(set), \(threads)") }
        }
    }

    @Test("few rows have the same bits on 1, 2 and 7 threads", arguments: InstructionSet.available, [false, true])
    func fewRowsOnAnyThreads(_ set: InstructionSet, _ transposesB: Bool) throws {
        for m in [1, 2, 3, 5, 8, GEMMScratch.fewRows] {
            let product = try Product(Size(m: m, n: 1409, k: 523), transposesB: transposesB, gap: 1)
            let serial = try product.run(set).map(\.bitPattern)
            for threads in [2, 7] {
                let pool = WorkerPool(threads: threads)
                #expect(try product.run(set, on: pool).map(\.bitPattern) == serial, "\(set), m \(m), \(threads) threads")
            }
        }
    }

    @Test("blocks that follow the number of threads do not change a bit", arguments: InstructionSet.available, [false, true])
    func sameBitsInAnyBlocks(_ set: InstructionSet, _ transposesB: Bool) throws {
        for size in [Size(m: 130, n: 301, k: 270), Size(m: GEMMScratch.fewRows + 1, n: 700, k: 300)] {
            let product = try Product(size, transposesB: transposesB, gap: 0)
            let serial = try product.run(set).map(\.bitPattern)
            for threads in [2, 3, 7, 16] {
                let pool = WorkerPool(threads: threads)
                #expect(try product.run(set, on: pool).map(\.bitPattern) == serial, "\(set), \(size), \(threads) threads")
            }
        }
    }

    @Test("a row has the same bits in every batch of its kind", arguments: InstructionSet.available)
    func rowsDoNotDependOnTheBatch(_ set: InstructionSet) throws {
        let (n, k, rows) = (101, 523, GEMMScratch.fewRows + 25)
        for transposesB in [false, true] {
            let all = try Product(Size(m: rows, n: n, k: k), transposesB: transposesB, gap: 0)
            func bits(_ range: Range<Int>) throws -> [[UInt32]] {
                var part = try Product(Size(m: range.count, n: n, k: k), transposesB: transposesB, gap: 0)
                part.a = Array(all.a[range.lowerBound * k..<range.upperBound * k])
                let c = try part.run(set).map(\.bitPattern)
                return (0..<range.count).map { Array(c[$0 * n..<($0 + 1) * n]) }
            }
            let many = try bits(0..<rows)
            #expect(try bits(3..<rows) == Array(many[3...]), "\(set)")
            // For A·B, few rows are summed in the same order as many. For A·Bᵀ they have an order of their own.
            let few = try bits(0..<GEMMScratch.fewRows)
            if !transposesB { #expect(few == Array(many[..<GEMMScratch.fewRows]), "\(set)") }
            for range in [0..<1, 2..<4, 1..<4, 5..<9, 1..<6, 0..<8, 3..<GEMMScratch.fewRows] {
                #expect(try bits(range) == Array(few[range]), "\(set), rows \(range), B\(transposesB ? "ᵀ" : "")")
            }
        }
    }

    // MARK: - Nothing to multiply

    @Test("no rows, no columns and no depth are products like others", arguments: InstructionSet.available, [false, true])
    func emptyProducts(_ set: InstructionSet, _ transposesB: Bool) throws {
        for (m, n, k) in [(0, 5, 7), (3, 0, 7), (0, 0, 0), (3, 5, 0), (40, 300, 0), (0, 5, 0)] {
            let gemm = try GEMM(m: m, n: n, k: k, transposesB: transposesB, instructionSet: set)
            let a = try Tensor<Float>([m, k]) { _ in .nan }
            let b = try Tensor<Float>(transposesB ? [n, k] : [k, n]) { _ in .nan }
            var c = try Tensor<Float>([m, n]) { _ in .nan }
            try gemm.run(a: a, b: b, into: &c)
            #expect(c.shape == [m, n] && c.elements.allSatisfy { $0.bitPattern == 0 }, "\(set)")
            var wrong = try Tensor<Float>(zeros: [m, n + 1])
            expectError(.invalidShape, "c", containing: ["\(m) × \(n)", "\(m) × \(n + 1)"]) {
                try gemm.run(a: a, b: b, into: &wrong)
            }
        }
    }

    @Test("the previous contents of C do not matter", arguments: InstructionSet.available)
    func overwritesC(_ set: InstructionSet) throws {
        // Of two depth blocks, the second adds to C and the first must not.
        let (a, b) = try (Tensor<Float>.normal([6, 300], seed: 1), Tensor<Float>.normal([300, 50], seed: 2))
        let gemm = try GEMM(m: 6, n: 50, k: 300, instructionSet: set)
        var zeros = try Tensor<Float>(zeros: [6, 50])
        var nans = try Tensor<Float>([6, 50]) { _ in .nan }
        try gemm.run(a: a.matrixView(), b: b.matrixView(), c: zeros.mutableMatrixView())
        try gemm.run(a: a.matrixView(), b: b.matrixView(), c: nans.mutableMatrixView())
        #expect(zeros.bits == nans.bits, "\(set)")
    }

    // MARK: - Non-finite input

    @Test("a NaN spoils its row of C, or its column, and nothing else", arguments: InstructionSet.available, [false, true])
    func nonFinite(_ set: InstructionSet, _ transposesB: Bool) throws {
        let size = Size(m: 19, n: 53, k: 258)
        let spoiled = [(0, 0, 0), (18, 52, 257), (7, 47, 256), (8, 48, 255)]
        try expectSpoiled(set, size, transposesB, spoiled)
        try expectSpoiled(set, Size(m: 1, n: 53, k: 258), transposesB, [(0, 0, 0), (0, 52, 257), (0, 7, 254)])
        try expectSpoiled(set, Size(m: 5, n: 53, k: 258), transposesB, [(0, 0, 0), (4, 52, 257), (2, 7, 254)])
        // ∞ times numbers of one sign is ∞ of that sign.
        for (size, row) in [(size, 3), (Size(m: 2, n: 53, k: 258), 1)] {
            var product = try Product(size, transposesB: transposesB, gap: 0)
            product.a[product.indexOfA(row, 100)] = .infinity
            let c = try product.run(set)
            for column in 0..<size.n {
                let factor = product.b[product.indexOfB(100, column)]
                #expect(c[row * size.n + column] == (factor > 0 ? .infinity : -.infinity), "\(set)")
            }
        }
    }

    private func expectSpoiled(
        _ set: InstructionSet, _ size: Size, _ transposesB: Bool, _ places: [(row: Int, column: Int, depth: Int)]
    ) throws {
        let clean = try Product(size, transposesB: transposesB, gap: 0)
        let expected = try clean.run(set)
        for (row, column, depth) in places {
            for isInA in [true, false] {
                var product = clean
                if isInA {
                    product.a[product.indexOfA(row, depth)] = .nan
                } else {
                    product.b[product.indexOfB(depth, column)] = .nan
                }
                let c = try product.run(set)
                let wrong = c.indices.first { index in
                    let isSpoiled = isInA ? index / size.n == row : index % size.n == column
                    return isSpoiled ? !c[index].isNaN : c[index].bitPattern != expected[index].bitPattern
                }
                #expect(wrong == nil, "\(set): NaN in \(isInA ? "A" : "B") at (\(row), \(column), \(depth))")
            }
        }
    }

    // MARK: - Borders

    @Test("nothing outside the matrices is touched")
    func bordersAreKept() async {
        await #expect(processExitsWith: .success) {
            for set in InstructionSet.available {
                for size in [
                    Size(m: 1, n: 1, k: 1), Size(m: 1, n: 53, k: 263), Size(m: 2, n: 9, k: 31), Size(m: 3, n: 33, k: 16),
                    Size(m: 7, n: 5, k: 3), Size(m: 13, n: 61, k: 259), Size(m: 29, n: 61, k: 259),
                ] {
                    for (transposesB, fencesEnd) in [(false, false), (false, true), (true, false), (true, true)] {
                        let product = try Product(size, transposesB: transposesB, gap: 0)
                        let a = FencedMemory(product.a, fencesEnd: fencesEnd)
                        let b = FencedMemory(product.b, fencesEnd: fencesEnd)
                        let c = FencedMemory(Array(repeating: Float.nan, count: size.m * size.n), fencesEnd: fencesEnd)
                        let gemm = try GEMM(m: size.m, n: size.n, k: size.k, transposesB: transposesB, instructionSet: set)
                        try gemm.run(
                            a: MatrixView(a.elements.span, rows: size.m, columns: size.k),
                            b: MatrixView(b.elements.span, rows: product.bRows, columns: product.bColumns),
                            c: MutableMatrixView(c.elements.mutableSpan, rows: size.m, columns: size.n))
                        #expect(c.elements.allSatisfy { !$0.isNaN }, "\(set)")
                    }
                }
            }
        }
    }

    // MARK: - Errors

    @Test("negative extents and products that overflow are refused", arguments: InstructionSet.available)
    func badExtents(_ set: InstructionSet) {
        for extent in [-1, Int.min] {
            expectError(.invalidShape, "m", containing: ["\(extent)"]) {
                _ = try GEMM(m: extent, n: 1, k: 1, instructionSet: set)
            }
            expectError(.invalidShape, "n", containing: ["\(extent)"]) {
                _ = try GEMM(m: 1, n: extent, k: 1, instructionSet: set)
            }
            expectError(.invalidShape, "k", containing: ["\(extent)"]) {
                _ = try GEMM(m: 1, n: 1, k: extent, instructionSet: set)
            }
        }
        for (m, n, k) in [(Int.max, 1, 1), (1, Int.max, 1), (1 << 32, 1 << 32, 1), (1 << 21, 1 << 21, 1 << 21)] {
            expectError(.invalidShape, "m, n, k", containing: ["\(m)"]) {
                _ = try GEMM(m: m, n: n, k: k, instructionSet: set)
            }
        }
    }

    @Test("a matrix that disagrees with the plan is named, and nothing is written", arguments: InstructionSet.available)
    func mismatches(_ set: InstructionSet) throws {
        for transposesB in [false, true] {
            let gemm = try GEMM(m: 4, n: 5, k: 6, transposesB: transposesB, instructionSet: set)
            let shapes = ["a": [4, 6], "b": transposesB ? [5, 6] : [6, 5], "c": [4, 5]]
            for (argument, shape) in shapes {
                for axis in 0..<2 {
                    var wrong = shapes
                    wrong[argument]![axis] += 1
                    let (a, b) = try (Tensor<Float>(zeros: wrong["a"]!), Tensor<Float>(zeros: wrong["b"]!))
                    var c = try Tensor<Float>(wrong["c"]!) { _ in 77 }
                    let expected = "\(shape[0]) × \(shape[1])"
                    let actual = "\(wrong[argument]![0]) × \(wrong[argument]![1])"
                    expectError(.invalidShape, argument, containing: [expected, actual]) {
                        try gemm.run(a: a.matrixView(), b: b.matrixView(), c: c.mutableMatrixView())
                    }
                    #expect(c.elements.allSatisfy { $0 == 77 })
                }
            }
        }
    }

    // MARK: - OpenBLAS

    @Test("OpenBLAS agrees with the oracle as well", .enabled(if: OpenBLAS.isAvailable), arguments: [false, true])
    func openBLAS(_ transposesB: Bool) throws {
        for size in [Size(m: 1, n: 1, k: 1), Size(m: 7, n: 13, k: 5), Size(m: 33, n: 50, k: 70)] {
            for gap in [0, 3] {
                let product = try Product(size, transposesB: transposesB, gap: gap)
                let c = try product.run { a, b, c in try OpenBLAS.multiply(a: a, b: b, c: c, transposesB: transposesB) }
                product.expectMatch(c, "B\(transposesB ? "ᵀ" : ""), gap \(gap)")
            }
        }
        #expect(OpenBLAS.configuration.contains("OpenBLAS"))
    }

    @Test("OpenBLAS multiplies a matrix by a vector", .enabled(if: OpenBLAS.isAvailable), arguments: [1, 7, 70])
    func openBLASVector(_ k: Int) throws {
        let (a, x) = try (Tensor<Float>.normal([13, k], seed: 1), Tensor<Float>.normal([k], seed: 2))
        var y = try Tensor<Float>(zeros: [13])
        var result = y.mutableSpan
        try OpenBLAS.multiplyVector(a: a.matrixView(), x: x.span, y: &result)
        for row in 0..<13 {
            let exact = ReferenceMatrixProduct.element(
                row: row, column: 0, depth: k, a: { a[flat: $0 * k + $1] }, b: { depth, _ in x[flat: depth] })
            let bound = ReferenceMatrixProduct.errorBound(magnitude: exact.magnitude, depth: k)
            #expect(abs(Double(y[flat: row]) - exact.value) <= bound, "row \(row)")
        }
    }

    @Test("OpenBLAS refuses a vector that disagrees with the matrix", .enabled(if: OpenBLAS.isAvailable))
    func openBLASVectorErrors() throws {
        let (a, short, x) = try (
            Tensor<Float>(zeros: [2, 3]), Tensor<Float>(zeros: [2]), Tensor<Float>(zeros: [3])
        )
        expectError(.invalidShape, "x", containing: ["3", "2"]) {
            var y = try Tensor<Float>(zeros: [2])
            var result = y.mutableSpan
            try OpenBLAS.multiplyVector(a: a.matrixView(), x: short.span, y: &result)
        }
        expectError(.invalidShape, "y", containing: ["2", "3"]) {
            var y = try Tensor<Float>(zeros: [3])
            var result = y.mutableSpan
            try OpenBLAS.multiplyVector(a: a.matrixView(), x: x.span, y: &result)
        }
    }

    @Test("OpenBLAS refuses matrices that disagree", .enabled(if: OpenBLAS.isAvailable))
    func openBLASErrors() throws {
        let (a, b) = try (Tensor<Float>(zeros: [2, 3]), Tensor<Float>(zeros: [4, 5]))
        var c = try Tensor<Float>(zeros: [2, 5])
        expectError(.invalidShape, "b", containing: ["3", "4"]) {
            try OpenBLAS.multiply(a: a.matrixView(), b: b.matrixView(), c: c.mutableMatrixView())
        }
        let narrow = try Tensor<Float>(zeros: [3, 4])
        expectError(.invalidShape, "c", containing: ["2 × 4", "2 × 5"]) {
            try OpenBLAS.multiply(a: a.matrixView(), b: narrow.matrixView(), c: c.mutableMatrixView())
        }
    }
}
