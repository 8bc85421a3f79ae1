/// A read-only view of a picture in planes, or of a part of one, in the caller's memory. The elements of a row are adjacent.
///
/// ```swift
/// let tile = try picture.pictureView().cropped(row: 378, column: 0, to: GridSize(side: 378))
/// ```
public struct PictureView<Element: TensorElement>: ~Escapable {
    public let channels: Int
    /// The extent of every plane.
    public let size: GridSize
    /// The distance between rows, in elements.
    public let rowStride: Int
    /// The distance between planes, in elements.
    public let planeStride: Int
    private let span: Span<Element>

    /// Makes a view of `channels` planes.
    /// - Parameters:
    ///   - span: memory that begins with element (0, 0) of the first plane.
    ///   - rowStride: nil for adjacent rows.
    ///   - planeStride: nil for adjacent planes.
    /// - Throws: `.invalidShape` for a negative number of channels, a size below 1 × 1, or too little memory; `.invalidStride` for
    ///   rows or planes that overlap.
    @_lifetime(copy span)
    public init(
        _ span: Span<Element>, channels: Int, size: GridSize, rowStride: Int? = nil, planeStride: Int? = nil,
        named name: String = "picture"
    ) throws(SparseKernelsError) {
        try size.validate("\(name).size")
        try require(channels >= 0, .invalidShape, "\(name).channels", expected: "at least 0", actual: "\(channels)")
        let rowStride = rowStride ?? size.columns
        try require(
            size.rows == 1 || rowStride >= size.columns, .invalidStride, "\(name).rowStride",
            expected: "at least the \(size.columns) columns of a row", actual: "\(rowStride)")
        let (rowsEnd, rowsOverflow) = (size.rows - 1).multipliedReportingOverflow(by: size.rows == 1 ? 0 : rowStride)
        let (planeEnd, planeOverflow) = rowsEnd.addingReportingOverflow(size.columns)
        let planeStride =
            planeStride ?? (size.rows == 1 ? size.columns : size.rows.multipliedReportingOverflow(by: rowStride).partialValue)
        try require(
            channels <= 1 || planeStride >= planeEnd, .invalidStride, "\(name).planeStride",
            expected: "at least the \(planeEnd) elements of a plane", actual: "\(planeStride)")
        let (distance, distanceOverflow) = max(0, channels - 1).multipliedReportingOverflow(by: channels <= 1 ? 0 : planeStride)
        let (needed, neededOverflow) = distance.addingReportingOverflow(channels == 0 ? 0 : planeEnd)
        let overflows = rowsOverflow || planeOverflow || distanceOverflow || neededOverflow
        try require(
            !overflows && needed <= span.count, .invalidShape, name,
            expected: overflows ? "a size that fits 63 bits" : "\(needed) elements or more of memory",
            actual: overflows ? "\(channels) planes of \(size)" : "\(span.count)")
        self.channels = channels
        self.size = size
        self.rowStride = rowStride
        self.planeStride = planeStride
        self.span = span
    }

    @_lifetime(copy uncheckedSpan)
    private init(uncheckedSpan: Span<Element>, channels: Int, size: GridSize, rowStride: Int, planeStride: Int) {
        self.channels = channels
        self.size = size
        self.rowStride = rowStride
        self.planeStride = planeStride
        span = uncheckedSpan
    }

    /// The part of the picture that begins at a place. Nothing is copied.
    /// - Throws: `.invalidShape` for a part below 1 × 1 or not inside the picture.
    @_lifetime(copy self)
    public func cropped(row: Int, column: Int, to part: GridSize) throws(SparseKernelsError) -> PictureView {
        try part.validate("part")
        try require(
            row >= 0 && column >= 0 && row <= size.rows - part.rows && column <= size.columns - part.columns, .invalidShape,
            "part", expected: "inside a picture of \(size)", actual: "\(part) from (\(row), \(column)) on")
        let start = channels == 0 ? 0 : row * rowStride + column
        return PictureView(
            uncheckedSpan: span.extracting(start...), channels: channels, size: part, rowStride: rowStride,
            planeStride: planeStride)
    }

    /// The element in a plane, for a view that has any.
    public subscript(channel: Int, row: Int, column: Int) -> Element {
        precondition(
            channel >= 0 && channel < channels && row >= 0 && row < size.rows && column >= 0 && column < size.columns,
            "index (\(channel), \(row), \(column)) outside \(channels) planes of \(size)")
        return span[channel * planeStride + row * rowStride + column]
    }

    /// The address of the first element, for a call that borrows the view. The view has channels.
    var address: UnsafePointer<Element> { span.withUnsafeBufferPointer { $0.baseAddress! } }
}

extension Tensor {
    /// A tensor `[channels, rows, columns]`, or `[rows, columns]` for one channel, as a picture.
    /// - Throws: `.invalidShape` for another rank, or no rows or columns.
    @_lifetime(borrow self)
    public func pictureView(named name: String = "picture") throws(SparseKernelsError) -> PictureView<Element> {
        let rank = shape.count
        try require(
            rank == 2 || rank == 3, .invalidShape, name, expected: "[channels, rows, columns]", actual: "\(shape)")
        return try PictureView(
            span, channels: rank == 3 ? shape[0] : 1, size: GridSize(rows: shape[rank - 2], columns: shape[rank - 1]),
            named: name)
    }
}
