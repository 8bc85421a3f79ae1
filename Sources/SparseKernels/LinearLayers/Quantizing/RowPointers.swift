// Addresses of memory, for bodies that run on a pool. Operators keep views and tensors alive until the pool is done.

extension Tensor {
    /// The address of the first element, or of no element of an empty tensor. Valid while the tensor is alive.
    package var address: UnsafePointer<Element> { UnsafePointer(storage.pointer.assumingMemoryBound(to: Element.self)) }

    /// The address for writing. Valid until the tensor is copied.
    mutating func mutableAddress() -> UnsafeMutablePointer<Element> {
        var span = mutableSpan
        return span.withUnsafeMutableBufferPointer { $0.baseAddress! }
    }
}

extension MatrixView<Float> {
    /// The reason why a row of weights has no scale: an element that is not finite, or else magnitudes beyond `limit`.
    func unquantizable(row: Int, limit: String) -> SparseKernelsError {
        for column in 0..<columns where !self[row, column].isFinite {
            return SparseKernelsError(
                .invalidArgument, "weight", expected: "finite", actual: "\(self[row, column]) in row \(row), column \(column)")
        }
        return SparseKernelsError(
            .invalidArgument, "weight", expected: limit, actual: "magnitudes in row \(row) whose scale overflows")
    }
}

/// Addresses of the rows of a view, for bodies that run on a pool. Valid while the view is.
struct MatrixRows: @unchecked Sendable {
    let base: UnsafePointer<Float>
    let rows: Int
    let columns: Int
    private let stride: Int

    init(_ view: borrowing MatrixView<Float>) {
        base = view.span.withUnsafeBufferPointer { $0.baseAddress! }
        rows = view.rows
        columns = view.columns
        stride = view.rowStride
    }

    @inline(__always)
    subscript(row: Int) -> UnsafePointer<Float> { base + row * stride }
}

/// Addresses of the scales of all groups, for loops over rows. Valid while the tensors are.
struct GridRows: @unchecked Sendable {
    private let kind: WeightFormat.Code
    private let groups: Int
    private let scales: UnsafePointer<Float>
    private let offsets: UnsafePointer<Float>?
    private let channelScales: UnsafePointer<Float>?

    init(kind: WeightFormat.Code, scales: Tensor<Float>, offsets: Tensor<Float>?, channelScales: Tensor<Float>?) {
        self.kind = kind
        groups = scales.shape[1]
        self.scales = scales.address
        self.offsets = offsets?.address
        self.channelScales = channelScales?.address
    }

    @inline(__always)
    func group(_ group: Int, row: Int) -> GroupGrid {
        let index = row * groups + group
        return GroupGrid(
            kind: kind, scale: scales[index], offset: offsets?[index] ?? 0, channelScale: channelScales?[row] ?? 1)
    }
}
