import SparseKernels
import TestSupport
import Testing

/// Tensors and views refuse shapes that do not fit in their memory, and the sums that decide this do not overflow.
@Suite("Tensor and view errors")
struct TensorErrorsTests {
    // MARK: - Tensors

    @Test("a tensor refuses negative and overflowing extents and a wrong number of elements")
    func tensorShapes() throws {
        expectError(.invalidShape, "shape", containing: ["-1"]) { _ = try Tensor<Float>(zeros: [2, -1]) }
        expectError(.invalidShape, "shape", containing: ["\(Int.max)"]) { _ = try Tensor<Float>(zeros: [Int.max, 2]) }
        // The number of elements fits in an integer, but the number of bytes does not.
        expectError(.invalidShape, "shape", containing: ["bytes"]) { _ = try Tensor<Float>(zeros: [Int.max / 2]) }
        expectError(.invalidShape, "elements", containing: ["6", "5"]) {
            _ = try Tensor<Float>([2, 3], [1, 2, 3, 4, 5])
        }
        expectError(.invalidShape, "shape") { _ = try Tensor<Int8>([-2, -3]) { _ in 0 } }
        // A negative extent is refused, even beside a zero.
        expectError(.invalidShape, "shape") { _ = try Tensor<Int8>(zeros: [0, -3]) }
        #expect(try Tensor<Float>(zeros: [0, 5]).count == 0)
        #expect(try Tensor<Float>(zeros: []).count == 1)
    }

    @Test("only tensors of rank 2 and 3 are attention operands, and only rank 2 is a matrix")
    func tensorRanks() throws {
        for shape in [[], [4], [1, 2, 3, 4]] {
            var tensor = try Tensor<Float>(zeros: shape)
            expectError(.invalidShape, "query", containing: ["rank \(shape.count)"]) {
                _ = try tensor.view(named: "query")
            }
            expectError(.invalidShape, "tensor") { _ = try tensor.mutableView() }
            expectError(.invalidShape, "a", containing: ["\(shape)"]) { _ = try tensor.matrixView(named: "a") }
            expectError(.invalidShape, "matrix") { _ = try tensor.mutableMatrixView() }
        }
        // Operands of empty sequences have no tokens.
        for shape in [[2, 0, 3], [2, 3, 0]] {
            var empty = try Tensor<Float>(zeros: shape)
            #expect(try empty.view().tokens == shape[1] && empty.view().channels == shape[2])
            #expect(try empty.mutableView().heads == 2)
        }
        let none = try Tensor<Float>(zeros: [0, 2, 3])
        expectError(.invalidShape, "tensor.heads", containing: ["0"]) { _ = try none.view() }
        for shape in [[0, 3], [3, 0], [0, 0]] {
            var empty = try Tensor<Float>(zeros: shape)
            #expect(try empty.matrixView().rows == shape[0] && empty.matrixView().columns == shape[1])
            #expect(try empty.mutableMatrixView().rows == shape[0])
        }
        let one = try Tensor<Float>(zeros: [5, 3])
        #expect(try one.view().heads == 1)
    }

    @Test("a tensor has value semantics")
    func valueSemantics() throws {
        let original = try Tensor<Float>([2, 2], [1, 2, 3, 4])
        var copy = original
        copy[flat: 0] = 9
        #expect(original.elements == [1, 2, 3, 4] && copy.elements == [9, 2, 3, 4])
        var other = original
        var span = other.mutableSpan
        span[3] = 7
        #expect(original.elements == [1, 2, 3, 4] && other.elements == [1, 2, 3, 7])
    }

    @Test("elements are read and set by their indices, of any rank", arguments: [[], [5], [3, 4], [2, 3, 4], [2, 1, 3, 2]])
    func elementsByIndices(_ shape: [Int]) throws {
        let original = try Tensor<Float>(shape) { Float($0) }
        var tensor = original
        var position = 0
        // Indices count up with the last axis fastest, as in memory.
        func visit(_ indices: [Int]) {
            guard indices.count == shape.count else {
                for index in 0..<shape[indices.count] { visit(indices + [index]) }
                return
            }
            switch indices.count {
            case 0: tensor[] = -tensor[]
            case 1: tensor[indices[0]] = -tensor[indices[0]]
            case 2: tensor[indices[0], indices[1]] *= -1
            case 3: tensor[indices[0], indices[1], indices[2]] = -original[flat: position]
            default: tensor[indices[0], indices[1], indices[2], indices[3]] = -original[flat: position]
            }
            #expect(tensor[flat: position] == -Float(position))
            position += 1
        }
        visit([])
        #expect(position == original.count && original.elements == (0..<original.count).map { Float($0) })
    }

    @Test("a closure updates every element once, and a copy keeps what it had")
    func updating() throws {
        struct Stop: Error, Equatable {}
        let original = try Tensor<Int32>([2, 3]) { Int32($0) }
        var tensor = original
        tensor.update { position, element in element += Int32(10 * position) }
        #expect(tensor.elements == [0, 11, 22, 33, 44, 55] && original.elements == [0, 1, 2, 3, 4, 5])
        #expect(throws: Stop()) {
            try tensor.update { position, element throws(Stop) in
                if position == 2 { throw Stop() }
                element = -1
            }
        }
        #expect(tensor.elements == [-1, -1, 22, 33, 44, 55])
        var empty = try Tensor<Float>(zeros: [0, 3])
        empty.update { _, _ in Issue.record("an empty tensor has no elements") }
    }

    @Test("an index outside its axis traps, also where the flat position is inside; so does another number of indices")
    func elementIndicesOutside() async {
        await #expect(processExitsWith: .failure) {
            var tensor = try Tensor<Float>(zeros: [2, 3])
            tensor[0, 3] = 1
        }
        await #expect(processExitsWith: .failure) {
            var tensor = try Tensor<Float>(zeros: [2, 3])
            tensor[1, -1] = 1
        }
        await #expect(processExitsWith: .failure) { _ = try Tensor<Float>(zeros: [2, 3])[2, 0] }
        await #expect(processExitsWith: .failure) { _ = try Tensor<Float>(zeros: [2, 3])[5] }
        await #expect(processExitsWith: .failure) { _ = try Tensor<Float>(zeros: [2, 3])[0, 0, 0] }
        await #expect(processExitsWith: .failure) { _ = try Tensor<Float>(zeros: [2, 3])[] }
    }

    @Test("reading outside a tensor or a view traps")
    func indicesOutside() async {
        await #expect(processExitsWith: .failure) { _ = try Tensor<Float>(zeros: [2, 3])[flat: 6] }
        await #expect(processExitsWith: .failure) {
            let tensor = try Tensor<Float>(zeros: [2, 3, 4])
            _ = try tensor.view()[0, 3, 0]
        }
        await #expect(processExitsWith: .failure) {
            let tensor = try Tensor<Float>(zeros: [2, 3])
            _ = try tensor.matrixView()[0, 3]
        }
    }

    // MARK: - Views

    static func geometry(
        _ heads: Int, _ tokens: Int, _ channels: Int, strides: (Int, Int)
    ) throws -> TensorGeometry {
        try TensorGeometry(
            heads: heads, tokens: tokens, channels: channels, headStride: strides.0, tokenStride: strides.1, named: "key")
    }

    @Test("a geometry refuses negative extents and no heads", arguments: [0, -3, Int.min])
    func geometryExtents(_ extent: Int) {
        let text = "\(extent)"
        expectError(.invalidShape, "key.heads", containing: [text]) {
            _ = try Self.geometry(extent, 3, 4, strides: (12, 4))
        }
        if extent == 0 { return }
        expectError(.invalidShape, "key.tokens", containing: [text]) {
            _ = try Self.geometry(2, extent, 4, strides: (12, 4))
        }
        expectError(.invalidShape, "key.channels", containing: [text]) {
            _ = try Self.geometry(2, 3, extent, strides: (12, 4))
        }
        for layout in TensorLayout.allCases {
            expectError(.invalidShape, "tensor.tokens", containing: [text]) {
                _ = try TensorGeometry(heads: 2, tokens: extent, channels: 4, layout: layout)
            }
        }
    }

    @Test("strides below a row's channels are refused", arguments: [3, 0, -4, Int.min])
    func smallStrides(_ stride: Int) throws {
        expectError(.invalidStride, "key.tokenStride", containing: ["4", "\(stride)"]) {
            _ = try Self.geometry(2, 3, 4, strides: (12, stride))
        }
        expectError(.invalidStride, "key.headStride", containing: ["4", "\(stride)"]) {
            _ = try Self.geometry(2, 3, 4, strides: (stride, 4))
        }
        // The stride of an axis of extent 1 is never used.
        #expect(try Self.geometry(1, 3, 4, strides: (stride, 4)).tokens == 3)
        #expect(try Self.geometry(2, 1, 4, strides: (4, stride)).heads == 2)
    }

    @Test("sizes that do not fit 63 bits are refused")
    func overflow() {
        let huge = Int.max
        expectError(.invalidShape, "key", containing: ["63 bits"]) { _ = try Self.geometry(3, 2, 4, strides: (huge, 4)) }
        expectError(.invalidShape, "key", containing: ["63 bits"]) { _ = try Self.geometry(2, 3, 4, strides: (12, huge)) }
        expectError(.invalidShape, "key", containing: ["63 bits"]) {
            _ = try Self.geometry(huge, 3, 4, strides: (12, 4))
        }
        expectError(.invalidShape, "key", containing: ["63 bits"]) {
            _ = try Self.geometry(2, 2, 4, strides: (huge / 2 + 1, huge / 2 + 1))
        }
        for layout in TensorLayout.allCases {
            expectError(.invalidShape, "tensor") {
                _ = try TensorGeometry(heads: huge, tokens: huge, channels: 2, layout: layout)
            }
            expectError(.invalidShape, "tensor") {
                _ = try TensorGeometry(heads: 1 << 21, tokens: 1 << 21, channels: 1 << 21, layout: layout)
            }
        }
    }

    @Test("a view that needs more memory than there is is refused, to the element")
    func memory() throws {
        let geometry = try Self.geometry(2, 3, 4, strides: (20, 5))
        let needed = 20 + 2 * 5 + 4
        for count in [0, needed - 1] {
            var elements = Array(repeating: Float(0), count: count)
            expectError(.invalidShape, "tensor", containing: ["\(needed)", "\(count)"]) {
                _ = try TensorView(elements.span, geometry: geometry)
            }
            expectError(.invalidShape, "tensor", containing: ["\(needed)", "\(count)"]) {
                _ = try MutableTensorView(elements.mutableSpan, geometry: geometry)
            }
        }
        let elements = Array(repeating: Float(0), count: needed)
        let view = try TensorView(elements.span, geometry: geometry)
        #expect(view[1, 2, 3] == 0)
    }

    @Test("a view to write refuses rows that share elements; a view to read allows them")
    func overlap() throws {
        var elements = Array(repeating: Float(0), count: 100)
        // Heads are 8 apart and tokens 4 apart, so that token 2 of head 0 is token 0 of head 1.
        let overlapping = try Self.geometry(2, 3, 4, strides: (8, 4))
        expectError(.invalidStride, "output.headStride, output.tokenStride", containing: ["8", "4"]) {
            _ = try MutableTensorView(elements.mutableSpan, geometry: overlapping, named: "output")
        }
        let same = try Self.geometry(2, 3, 4, strides: (4, 4))
        expectError(.invalidStride, "tensor.headStride, tensor.tokenStride") {
            _ = try MutableTensorView(elements.mutableSpan, geometry: same)
        }
        #expect(try TensorView(elements.span, geometry: overlapping).heads == 2)
        // Rows of one head fit between those of the other, either way round.
        for strides in [(12, 4), (4, 8), (30, 5), (5, 13)] {
            let geometry = try Self.geometry(2, 3, 4, strides: strides)
            let heads = try MutableTensorView(elements.mutableSpan, geometry: geometry).heads
            #expect(heads == 2)
        }
    }

    // MARK: - Matrices

    @Test("matrix views refuse bad extents, strides and memory")
    func matrices() throws {
        var elements = Array(repeating: Float(0), count: 23)
        for (rows, columns, argument) in [(-1, 3, "matrix.rows"), (3, -1, "matrix.columns"), (.min, 0, "matrix.rows")] {
            expectError(.invalidShape, argument) { _ = try MatrixView(elements.span, rows: rows, columns: columns) }
            expectError(.invalidShape, argument) {
                _ = try MutableMatrixView(elements.mutableSpan, rows: rows, columns: columns)
            }
        }
        expectError(.invalidStride, "matrix.rowStride", containing: ["4", "3"]) {
            _ = try MatrixView(elements.span, rows: 2, columns: 4, rowStride: 3)
        }
        expectError(.invalidStride, "matrix.rowStride", containing: ["-5"]) {
            _ = try MutableMatrixView(elements.mutableSpan, rows: 2, columns: 4, rowStride: -5)
        }
        // Three rows of stride 10 end after 2·10 + 4 = 24 elements.
        expectError(.invalidShape, "matrix", containing: ["24", "23"]) {
            _ = try MatrixView(elements.span, rows: 3, columns: 4, rowStride: 10)
        }
        expectError(.invalidShape, "matrix", containing: ["63 bits"]) {
            _ = try MatrixView(elements.span, rows: 3, columns: 4, rowStride: Int.max)
        }
        #expect(try MatrixView(elements.span, rows: 3, columns: 3, rowStride: 10)[2, 2] == 0)
        #expect(try MatrixView(elements.span, rows: 1, columns: 23, rowStride: 0).columns == 23)
    }
}
