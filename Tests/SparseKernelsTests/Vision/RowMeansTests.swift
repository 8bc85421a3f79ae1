import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Means of listed rows")
struct RowMeansTests {
    /// Lists of 0…9 rows, some of them named twice.
    static func lists(_ count: Int, of rows: Int, seed: UInt64) -> [[Int32]] {
        var random = SplitMix64(seed: seed)
        return (0..<count).map { list in
            (0..<list % 10).map { _ in Int32(random.next() % UInt64(rows)) }
        }
    }

    static func check<X: AttentionElement, Y: AttentionElement>(
        _ xType: X.Type, _ yType: Y.Type, channels: Int, _ set: InstructionSet
    ) throws {
        let (x, lists) = (try Tensor<X>.normal([13, channels], seed: 1), lists(25, of: 13, seed: 2))
        let means = try RowMeans(of: 13, lists: lists, instructionSet: set)
        var y = try Tensor<Y>([25, channels]) { _ in Y(7) }
        try means.run(x, into: &y, on: .serial)
        for (index, list) in lists.enumerated() {
            for channel in 0..<channels {
                let expected = ReferenceTokenCells.mean(list.map { Double(x[Int($0), channel].floatValue) })
                let actual = Double(y[index, channel].floatValue)
                let bound =
                    expected.bound + RowNormTests.rounding(Y.self) * abs(expected.value) + 0x1p-24
                    * (Y.self == Float.self ? 0 : 1)
                if !(abs(actual - expected.value) <= bound) {
                    Issue.record("\(set), \(X.self) to \(Y.self), \(channels): \(actual) for \(expected) in list \(index)")
                    return
                }
                // One row is a copy, and none are zeros.
                if list.count == 1, X.self == Y.self {
                    #expect(y[index, channel].floatValue == x[Int(list[0]), channel].floatValue)
                }
                if list.isEmpty { #expect(actual == 0) }
            }
        }
        for threads in [2, 7] {
            var again = try Tensor<Y>(zeros: [25, channels])
            try means.run(x, into: &again, on: WorkerPool(threads: threads))
            #expect(again.bits == y.bits)
        }
    }

    @Test("agree with the oracle", arguments: InstructionSet.available, [1, 3, 7, 16, 17, 63, 64, 65, 200])
    func agree(_ set: InstructionSet, _ channels: Int) throws {
        try Self.check(Float.self, Float.self, channels: channels, set)
        try Self.check(Float16.self, Float16.self, channels: channels, set)
        try Self.check(BFloat16.self, Float.self, channels: channels, set)
        try Self.check(Float.self, BFloat16.self, channels: channels, set)
    }

    @Test("targets and columns are followed, and everything else stays", arguments: InstructionSet.available)
    func targets(_ set: InstructionSet) throws {
        let x = try Tensor<Float>.normal([6, 20], seed: 3)
        let means = try RowMeans(
            of: 6, offsets: [0, 2, 3], rows: [0, 5, 3], targets: [4, 1], targetRows: 6, instructionSet: set)
        var y = try Tensor<Float>([6, 50]) { _ in 7 }
        var view = try y.mutableMatrixView()
        try means.run(x.matrixView(), into: view.columns(10..<30))
        for row in 0..<6 {
            for column in 0..<50 {
                let expected: Float =
                    switch (row, column) {
                    case (4, 10..<30): (x[0, column - 10] + x[5, column - 10]) / 2
                    case (1, 10..<30): x[3, column - 10]
                    default: 7
                    }
                #expect(y[row, column] == expected, "\(set), \(row), \(column)")
            }
        }
    }

    @Test("NaN and infinities stay in their channel and lists", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        var x = try Tensor<Float>.normal([4, 70], seed: 4)
        let means = try RowMeans(of: 4, lists: [[0, 1], [2, 3], [1, 2]], instructionSet: set)
        let clean = try means(x)
        x[0, 5] = .nan
        x[3, 66] = -.infinity
        let y = try means(x)
        for row in 0..<3 {
            for channel in 0..<70 {
                switch (row, channel) {
                case (0, 5): #expect(y[row, channel].isNaN)
                case (1, 66): #expect(y[row, channel] == -.infinity)
                default: #expect(y[row, channel].bitPattern == clean[row, channel].bitPattern)
                }
            }
        }
    }

    @Test("nothing to do is nothing written")
    func empty() throws {
        let none = try RowMeans(of: 3, lists: [])
        #expect(try none(Tensor<Float>(zeros: [3, 5])).shape == [0, 5])
        let means = try RowMeans(of: 0, lists: [[], []])
        #expect(try means(Tensor<Float>(zeros: [0, 5])).elements == [Float](repeating: 0, count: 10))
        #expect(try RowMeans(of: 2, lists: [[0]])(Tensor<Float>(zeros: [2, 0])).shape == [1, 0])
    }

    @Test("errors name the list, the row and the limits")
    func errors() throws {
        expectError(.invalidArgument, "rows[2]", containing: "0 to 3", "4") { _ = try RowMeans(of: 4, lists: [[0, 1], [4]]) }
        expectError(.invalidArgument, "rows[0]", containing: "-1") { _ = try RowMeans(of: 4, lists: [[-1]]) }
        expectError(.invalidArgument, "offsets", containing: "2 rows", "3") {
            _ = try RowMeans(of: 4, offsets: [0, 3], rows: [0, 1])
        }
        expectError(.invalidArgument, "offsets") { _ = try RowMeans(of: 4, offsets: [], rows: []) }
        expectError(.invalidArgument, "offsets[2]", containing: "at least 2", "1") {
            _ = try RowMeans(of: 4, offsets: [0, 2, 1, 3], rows: [0, 1, 2])
        }
        for targets: [Int32] in [[0, 0], [0, 5], [-1, 0]] {
            expectError(.invalidArgument, targets[0] == 0 ? "targets[1]" : "targets[0]", containing: "0 to 2") {
                _ = try RowMeans(of: 4, offsets: [0, 1, 2], rows: [0, 1], targets: targets, targetRows: 3)
            }
        }
        expectError(.invalidArgument, "targets", containing: "2, one per list", "1") {
            _ = try RowMeans(of: 4, offsets: [0, 1, 2], rows: [0, 1], targets: [0], targetRows: 3)
        }
        expectError(.invalidArgument, "targetRows", containing: "at least 2", "1") {
            _ = try RowMeans(of: 4, offsets: [0, 1, 2], rows: [0, 1], targetRows: 1)
        }
        let means = try RowMeans(of: 4, lists: [[0, 1]])
        expectError(.invalidShape, "x", containing: "4 rows", "5") { _ = try means(Tensor<Float>(zeros: [5, 2])) }
        var y = try Tensor<Float>([2, 2]) { _ in 7 }
        expectError(.invalidShape, "y", containing: "1 × 2", "2 × 2") { try means.run(Tensor<Float>(zeros: [4, 2]), into: &y) }
        #expect(y.elements == [7, 7, 7, 7])
    }
}
