/// A read-only view of a row-major matrix in the caller's memory, with adjacent columns. It may have no rows or columns.
public struct MatrixView<Element: TensorElement>: ~Escapable {
    public let rows: Int
    public let columns: Int
    /// The distance between rows, in elements.
    public let rowStride: Int
    let span: Span<Element>

    /// Makes a view of rows that are `rowStride` elements apart, or `columns` unless given.
    /// - Throws: `.invalidShape` for a negative extent or too little memory, `.invalidStride` for rows that overlap.
    @_lifetime(copy span)
    public init(
        _ span: Span<Element>, rows: Int, columns: Int, rowStride: Int? = nil, named name: String = "matrix"
    ) throws(SparseKernelsError) {
        let stride = rowStride ?? columns
        try checkMatrix(name, rows: rows, columns: columns, rowStride: stride, count: span.count)
        self.rows = rows
        self.columns = columns
        self.rowStride = stride
        self.span = span
    }

    public subscript(row: Int, column: Int) -> Element {
        precondition(
            row >= 0 && row < rows && column >= 0 && column < columns,
            "index (\(row), \(column)) outside \(rows) × \(columns)")
        return span[row * rowStride + column]
    }

    /// The view of some columns, such as a part of what a layer has computed for several.
    @_lifetime(copy self)
    public func columns(_ range: Range<Int>) -> MatrixView {
        precondition(range.lowerBound >= 0 && range.upperBound <= columns, "columns \(range) outside \(columns)")
        let count = rows == 0 ? 0 : (rows - 1) * rowStride + range.count
        let start = rows == 0 ? 0 : range.lowerBound
        return MatrixView(
            uncheckedSpan: span.extracting(start..<start + count), rows: rows, columns: range.count, rowStride: rowStride)
    }

    /// The view of some rows, such as those of one sequence of a batch.
    @_lifetime(copy self)
    public func rows(_ range: Range<Int>) -> MatrixView {
        precondition(range.lowerBound >= 0 && range.upperBound <= rows, "rows \(range) outside \(rows)")
        let count = range.isEmpty ? 0 : (range.count - 1) * rowStride + columns
        let start = range.isEmpty ? 0 : range.lowerBound * rowStride
        return MatrixView(
            uncheckedSpan: span.extracting(start..<start + count), rows: range.count, columns: columns, rowStride: rowStride)
    }

    /// The view of every `step`-th row, from the first on.
    @_lifetime(copy self)
    public func rows(every step: Int) -> MatrixView {
        precondition(step >= 1, "every row number \(step)")
        let count = rows == 0 ? 0 : (rows - 1) / step + 1
        // Two rows lie in memory, so that their distance is a number.
        let stride = count <= 1 ? rowStride : rowStride * step
        let elements = count == 0 ? 0 : (count - 1) * stride + columns
        return MatrixView(uncheckedSpan: span.extracting(0..<elements), rows: count, columns: columns, rowStride: stride)
    }

    @_lifetime(copy uncheckedSpan)
    fileprivate init(uncheckedSpan: Span<Element>, rows: Int, columns: Int, rowStride: Int) {
        self.rows = rows
        self.columns = columns
        self.rowStride = rowStride
        span = uncheckedSpan
    }
}

/// A writable view of a row-major matrix in the caller's memory, with adjacent columns. It may have no rows or columns.
public struct MutableMatrixView<Element: TensorElement>: ~Copyable, ~Escapable {
    public let rows: Int
    public let columns: Int
    /// The distance between rows, in elements.
    public let rowStride: Int
    var span: MutableSpan<Element>

    /// Makes a view of rows that are `rowStride` elements apart, or `columns` unless given.
    /// - Throws: `.invalidShape` for a negative extent or too little memory, `.invalidStride` for rows that overlap.
    @_lifetime(copy span)
    public init(
        _ span: consuming MutableSpan<Element>, rows: Int, columns: Int, rowStride: Int? = nil,
        named name: String = "matrix"
    ) throws(SparseKernelsError) {
        let stride = rowStride ?? columns
        try checkMatrix(name, rows: rows, columns: columns, rowStride: stride, count: span.count)
        self.rows = rows
        self.columns = columns
        self.rowStride = stride
        self.span = span
    }
}

extension MutableMatrixView {
    /// A view of some rows, for as long as this one is not used.
    @_lifetime(&self)
    public mutating func rows(_ range: Range<Int>) -> MutableMatrixView {
        precondition(range.lowerBound >= 0 && range.upperBound <= rows, "rows \(range) outside \(rows)")
        let count = range.isEmpty ? 0 : (range.count - 1) * rowStride + columns
        let start = range.isEmpty ? 0 : range.lowerBound * rowStride
        return MutableMatrixView(
            uncheckedSpan: span._mutatingExtracting(start..<start + count), rows: range.count, columns: columns,
            rowStride: rowStride)
    }

    /// A view of some rows to read.
    @_lifetime(borrow self)
    package func readableRows(_ range: Range<Int>) -> MatrixView<Element> {
        precondition(range.lowerBound >= 0 && range.upperBound <= rows, "rows \(range) outside \(rows)")
        let count = range.isEmpty ? 0 : (range.count - 1) * rowStride + columns
        let start = range.isEmpty ? 0 : range.lowerBound * rowStride
        return MatrixView(
            uncheckedSpan: span.span.extracting(start..<start + count), rows: range.count, columns: columns,
            rowStride: rowStride)
    }

    /// A view of some columns, for as long as this one is not used.
    @_lifetime(&self)
    public mutating func columns(_ range: Range<Int>) -> MutableMatrixView {
        precondition(range.lowerBound >= 0 && range.upperBound <= columns, "columns \(range) outside \(columns)")
        let count = rows == 0 ? 0 : (rows - 1) * rowStride + range.count
        let start = rows == 0 ? 0 : range.lowerBound
        return MutableMatrixView(
            uncheckedSpan: span._mutatingExtracting(start..<start + count), rows: rows, columns: range.count,
            rowStride: rowStride)
    }

    @_lifetime(copy uncheckedSpan)
    private init(uncheckedSpan: consuming MutableSpan<Element>, rows: Int, columns: Int, rowStride: Int) {
        self.rows = rows
        self.columns = columns
        self.rowStride = rowStride
        span = uncheckedSpan
    }
}

extension MatrixView {
    /// Throws `.invalidShape` for a matrix without elements.
    func requireElements(named name: String) throws(SparseKernelsError) {
        for (axis, extent) in [("rows", rows), ("columns", columns)] {
            try require(extent >= 1, .invalidShape, "\(name).\(axis)", expected: "at least 1", actual: "\(extent)")
        }
    }
}

extension Tensor {
    /// A tensor of rank 2 as a matrix.
    /// - Throws: `.invalidShape` for another rank.
    @_lifetime(borrow self)
    public func matrixView(named name: String = "matrix") throws(SparseKernelsError) -> MatrixView<Element> {
        try requireRank2(name)
        return try MatrixView(span, rows: shape[0], columns: shape[1], named: name)
    }

    /// A tensor of rank 2 as a matrix to write.
    /// - Throws: `.invalidShape` for another rank.
    @_lifetime(&self)
    public mutating func mutableMatrixView(named name: String = "matrix") throws(SparseKernelsError)
        -> MutableMatrixView<Element>
    {
        try requireRank2(name)
        let (rows, columns) = (shape[0], shape[1])
        return try MutableMatrixView(mutableSpan, rows: rows, columns: columns, named: name)
    }

    private func requireRank2(_ name: String) throws(SparseKernelsError) {
        try require(shape.count == 2, .invalidShape, name, expected: "rank 2, [rows, columns]", actual: "\(shape)")
    }
}

private func checkMatrix(
    _ name: String, rows: Int, columns: Int, rowStride: Int, count: Int
) throws(SparseKernelsError) {
    try require(rows >= 0, .invalidShape, "\(name).rows", expected: "at least 0", actual: "\(rows)")
    try require(columns >= 0, .invalidShape, "\(name).columns", expected: "at least 0", actual: "\(columns)")
    try require(
        rows <= 1 || rowStride >= columns, .invalidStride, "\(name).rowStride",
        expected: "at least the \(columns) columns of a row", actual: "\(rowStride)")
    let (distance, overflow) = max(0, rows - 1).multipliedReportingOverflow(by: rows <= 1 ? 0 : rowStride)
    let (needed, overflowed) = distance.addingReportingOverflow(rows == 0 ? 0 : columns)
    try require(
        !overflow && !overflowed && needed <= count, .invalidShape, name,
        expected: overflow || overflowed ? "a size that fits 63 bits" : "\(needed) elements or more of memory",
        actual: overflow || overflowed ? "\(rows) rows of stride \(rowStride)" : "\(count)")
}
