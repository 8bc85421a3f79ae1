extension Tensor {
    /// All axes but the last as rows of a matrix, such as the tokens of frames.
    /// - Throws: `.invalidShape` for rank 0.
    @_lifetime(borrow self)
    package func rowsView(named name: String) throws(SparseKernelsError) -> MatrixView<Element> {
        let rows = try rowCount(name)
        return try MatrixView(span, rows: rows, columns: shape[shape.count - 1], named: name)
    }

    /// All axes but the last as rows of a matrix to write.
    /// - Throws: `.invalidShape` for rank 0.
    @_lifetime(&self)
    package mutating func mutableRowsView(named name: String) throws(SparseKernelsError) -> MutableMatrixView<Element> {
        let (rows, columns) = (try rowCount(name), shape[shape.count - 1])
        return try MutableMatrixView(mutableSpan, rows: rows, columns: columns, named: name)
    }

    private func rowCount(_ name: String) throws(SparseKernelsError) -> Int {
        try require(shape.count >= 1, .invalidShape, name, expected: "at least one axis", actual: "\(shape)")
        var rows = 1
        for axis in 0..<shape.count - 1 { rows *= shape[axis] }
        return rows
    }
}
