import SparseKernels
import TestSupport
import Testing

@Suite("Views of some heads")
struct HeadViewTests {
    @Test("heads of a matrix are its columns, and heads of heads are fewer of them")
    func columns() throws {
        let matrix = try Tensor<Float>([3, 8]) { Float($0) }
        let all = try matrix.view(headDim: 2)
        #expect(all.heads == 4 && all.tokens == 3 && all.channels == 2)
        let some = all.heads(1..<3)
        #expect(some.heads == 2 && some[0, 0, 0] == 2 && some[1, 2, 1] == 21)
        let one = some.heads(1..<2).tokens(1..<3)
        #expect(one.heads == 1 && one.tokens == 2 && one[0, 0, 0] == 12 && one[0, 1, 1] == 21)
        let planes = try Tensor<Float>([4, 3, 2]) { Float($0) }
        let whole = try planes.view()
        let last = whole.heads(3..<4)
        #expect(last[0, 0, 0] == 18 && last[0, 2, 1] == 23)
        let empty = try Tensor<Float>(zeros: [0, 8])
        let none = try empty.view(headDim: 4)
        #expect(none.heads(1..<2).tokens == 0)
    }

    @Test("what is written to some heads leaves the others alone")
    func writing() throws {
        var matrix = try Tensor<Float>([3, 8]) { Float($0 % 5) }
        let before = matrix
        let rotary = try RotaryEmbedding(headDim: 2, theta: 100)
        let table = try rotary.table(positions: [7, 8, 9])
        try table.rotate(matrix.mutableView(headDim: 2).heads(1..<3))
        var middle = try Tensor<Float>([3, 2, 2]) { before[$0 / 4, 2 + $0 % 4] }
        try table.rotate(&middle, layout: .nhd)
        for token in 0..<3 {
            for column in 0..<8 {
                let expected = (2..<6).contains(column) ? middle[flat: token * 4 + column - 2] : before[token, column]
                #expect(matrix[token, column] == expected, "\(token), \(column)")
            }
        }
    }

    @Test("rows of heads are read and written in place, of all tokens or of some")
    func rows() throws {
        let source = try Tensor<Float>([3, 8]) { Float($0) }
        let view = try source.view(headDim: 2)
        let row = view.row(head: 2, token: 1)
        #expect(row.count == 2 && row[0] == 12 && row[1] == 13)
        // Views without elements may have no memory.
        let none = try Tensor<Float>(zeros: [2, 3, 0])
        let empty = try none.view()
        #expect(empty.row(head: 1, token: 2).count == 0)

        var matrix = source
        try write(-1, toRow: 1, ofHead: 3, of: matrix.mutableView(headDim: 2).tokens(1..<3))
        #expect(matrix.elements == (0..<22).map { Float($0) } + [-1, -1])
        var target = none
        try write(-1, toRow: 0, ofHead: 1, of: target.mutableView().tokens(2..<3))
        #expect(target == none)
    }

    private func write(_ value: Float, toRow token: Int, ofHead head: Int, of view: consuming MutableTensorView<Float>) {
        var row = view.mutableRow(head: head, token: token)
        for channel in 0..<row.count { row[channel] = value }
    }

    @Test("rows outside of a view, and of cached rows, are a trap")
    func rowTraps() async {
        await #expect(processExitsWith: .failure) {
            let tensor = try Tensor<Float>(zeros: [3, 8])
            let view = try tensor.view(headDim: 2)
            _ = view.row(head: 1, token: 3).count
        }
        await #expect(processExitsWith: .failure) {
            var tensor = try Tensor<Float>(zeros: [3, 8])
            var view = try tensor.mutableView(headDim: 2)
            _ = view.mutableRow(head: 4, token: 0).count
        }
        await #expect(processExitsWith: .failure) {
            var tensor = try Tensor<Float>(zeros: [3, 8])
            _ = try tensor.mutableView(headDim: 2).tokens(1..<4).tokens
        }
        await #expect(processExitsWith: .failure) {
            let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 1, headDim: 8, pageCapacity: 1))
            let sequence = cache.makeSequence()
            let rows = try Tensor<Float>(zeros: [1, 3, 8])
            try cache.append(key: rows, value: rows, to: sequence)
            let cached = try cache.rows(of: sequence)
            _ = cached.key.row(head: 0, token: 0).count
        }
    }

    @Test("cached rows of some heads are attended as those of all")
    func cachedRows() throws {
        let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 3, headDim: 8, pageCapacity: 4, format: .int8))
        let sequence = cache.makeSequence()
        let rows = try Tensor<Float>([3, 70, 8]) { Float($0 * 29 % 37) / 16 - 1 }
        try cache.append(key: rows, value: rows, to: sequence)
        let query = try Tensor<Float>([3, 2, 8]) { Float($0 * 7 % 11) / 4 - 1 }
        let cached = try cache.rows(of: sequence)
        func attend(_ heads: Range<Int>) throws -> Tensor<Float> {
            let all = try query.view()
            let shape = try AttentionShape(
                queryLength: 2, keyLength: 70, queryHeads: heads.count, kvHeads: heads.count, headDim: 8)
            var output = try Tensor<Float>(zeros: [heads.count, 2, 8])
            try DenseAttention(shape, mask: .causal).run(
                query: all.heads(heads), key: cached.key.heads(heads), value: cached.value.heads(heads),
                output: output.mutableView())
            return output
        }
        #expect(try attend(1..<3).elements == Array(attend(0..<3).elements[16...]))
    }

    @Test("matrices that are not whole heads are refused")
    func errors() throws {
        for (shape, headDim) in [([3, 8], 3), ([3, 8], 0), ([3, 8], 16), ([8], 2), ([2, 3, 8], 4)] {
            var tensor = try Tensor<Float>(zeros: shape)
            expectError(.invalidShape, "x", containing: "\(shape)") { _ = try tensor.view(headDim: headDim, named: "x").heads }
            expectError(.invalidShape, "x", containing: "\(shape)") {
                _ = try tensor.mutableView(headDim: headDim, named: "x").heads
            }
        }
    }

    @Test("heads outside of a view are a trap")
    func traps() async {
        await #expect(processExitsWith: .failure) {
            let tensor = try Tensor<Float>(zeros: [3, 8])
            let view = try tensor.view(headDim: 2)
            _ = view.heads(3..<5).tokens
        }
        await #expect(processExitsWith: .failure) {
            let tensor = try Tensor<Float>(zeros: [3, 8])
            let view = try tensor.view(headDim: 2)
            _ = view.heads(2..<2).tokens
        }
    }
}
