/// An owned, 64-byte aligned tensor with value semantics, whose elements are adjacent, last axis fastest.
///
/// It is a convenience. Operators use views, which a tensor returns without copying, and which any other memory can have too.
public struct Tensor<Element: TensorElement>: Sendable {
    /// Extents, outermost first.
    public let shape: [Int]
    private(set) var storage: TensorStorage

    /// A tensor of zeros.
    /// - Throws: `.invalidShape` for a negative extent or a size that overflows.
    public init(zeros shape: [Int]) throws(SparseKernelsError) {
        let count = try checkedElementCount(shape, elementBytes: MemoryLayout<Element>.stride)
        self.shape = shape
        storage = TensorStorage(byteCount: count * MemoryLayout<Element>.stride)
        storage.pointer.initializeMemory(as: Element.self, repeating: .zero, count: count)
    }

    /// A tensor of the given elements, last axis fastest.
    /// - Throws: `.invalidShape` when the number of elements is not the product of the extents.
    public init(_ shape: [Int], _ elements: [Element]) throws(SparseKernelsError) {
        let count = try checkedElementCount(shape, elementBytes: MemoryLayout<Element>.stride)
        try require(
            count == elements.count, .invalidShape, "elements", expected: "\(count) elements for \(shape)",
            actual: "\(elements.count)")
        self.shape = shape
        storage = TensorStorage(byteCount: count * MemoryLayout<Element>.stride)
        elements.withUnsafeBytes { source in
            if let base = source.baseAddress { storage.pointer.copyMemory(from: base, byteCount: source.count) }
        }
    }

    /// A tensor whose element at flat position `i` is `generate(i)`.
    public init(_ shape: [Int], generate: (Int) -> Element) throws(SparseKernelsError) {
        try self.init(zeros: shape)
        let base = storage.pointer.assumingMemoryBound(to: Element.self)
        for i in 0..<count { base[i] = generate(i) }
    }

    /// Number of elements.
    public var count: Int {
        // A reduction would allocate in debug builds, and operators ask while they run.
        var product = 1
        for axis in 0..<shape.count { product *= shape[axis] }
        return product
    }

    /// All elements, in memory order.
    public var span: Span<Element> {
        @_lifetime(borrow self)
        get {
            let span = Span<Element>(
                _unsafeStart: storage.pointer.assumingMemoryBound(to: Element.self), count: count)
            return _overrideLifetime(span, borrowing: self)
        }
    }

    /// All elements, in memory order, for writing. Copies the storage first when another tensor shares it.
    public var mutableSpan: MutableSpan<Element> {
        @_lifetime(&self)
        mutating get {
            makeUnique()
            let span = MutableSpan<Element>(
                _unsafeStart: storage.pointer.assumingMemoryBound(to: Element.self), count: count)
            return _overrideLifetime(span, mutating: &self)
        }
    }

    /// A copy of the elements as an array, in memory order.
    public var elements: [Element] {
        let base = storage.pointer.assumingMemoryBound(to: Element.self)
        return Array(UnsafeBufferPointer(start: base, count: count))
    }

    /// The element at a flat position in memory order.
    public subscript(flat index: Int) -> Element {
        get {
            precondition(index >= 0 && index < count, "index \(index) outside a tensor of \(count) elements")
            return storage.pointer.assumingMemoryBound(to: Element.self)[index]
        }
        set {
            precondition(index >= 0 && index < count, "index \(index) outside a tensor of \(count) elements")
            makeUnique()
            storage.pointer.assumingMemoryBound(to: Element.self)[index] = newValue
        }
    }

    /// The address of the elements, for a call that returns before the tensor is used again.
    package mutating func uniqueAddress() -> UnsafeMutablePointer<Element> {
        makeUnique()
        return storage.pointer.assumingMemoryBound(to: Element.self)
    }

    private mutating func makeUnique() {
        if !isKnownUniquelyReferenced(&storage) { storage = TensorStorage(copying: storage) }
    }
}

extension Tensor {
    /// The tensor as an attention operand. Rank 3, with the axes in the order of `layout`; rank 2 is one head.
    /// - Throws: `.invalidShape` for another rank or no heads.
    @_lifetime(borrow self)
    public func view(layout: TensorLayout = .hnd, named name: String = "tensor") throws(SparseKernelsError)
        -> TensorView<Element>
    {
        try TensorView(span, geometry: TensorGeometry(shape: shape, layout: layout, named: name), named: name)
    }

    /// The heads of a matrix `[tokens, heads · headDim]`, as linear layers take and give it.
    /// - Throws: `.invalidShape` for another rank, or columns that are not whole heads.
    @_lifetime(borrow self)
    public func view(headDim: Int, named name: String = "tensor") throws(SparseKernelsError) -> TensorView<Element> {
        try TensorView(span, geometry: TensorGeometry(matrix: shape, headDim: headDim, named: name), named: name)
    }

    /// The heads of a matrix `[tokens, heads · headDim]` to write.
    /// - Throws: `.invalidShape` for another rank, or columns that are not whole heads.
    @_lifetime(&self)
    public mutating func mutableView(
        headDim: Int, named name: String = "tensor"
    ) throws(SparseKernelsError) -> MutableTensorView<Element> {
        let geometry = try TensorGeometry(matrix: shape, headDim: headDim, named: name)
        return try MutableTensorView(mutableSpan, geometry: geometry, named: name)
    }

    /// The tensor as an attention operand to write. Rank 3, with the axes in the order of `layout`; rank 2 is one head.
    /// - Throws: `.invalidShape` for another rank or no heads.
    @_lifetime(&self)
    public mutating func mutableView(layout: TensorLayout = .hnd, named name: String = "tensor")
        throws(SparseKernelsError) -> MutableTensorView<Element>
    {
        let geometry = try TensorGeometry(shape: shape, layout: layout, named: name)
        return try MutableTensorView(mutableSpan, geometry: geometry, named: name)
    }
}

extension Tensor {
    /// A copy of an operand, `[heads, paddedTokens, channels]`, in which tokens of zeros follow its own.
    /// - Throws: `.invalidShape` for a size that overflows, `.invalidElementType` for cached rows.
    package init(zeroPadding view: TensorView<Element>, toTokens paddedTokens: Int) throws(SparseKernelsError) {
        precondition(paddedTokens >= view.tokens, "\(view.tokens) tokens do not fit in \(paddedTokens)")
        try view.requireMemory(named: "view")
        try self.init(zeros: [view.heads, paddedTokens, view.channels])
        let target = storage.pointer.assumingMemoryBound(to: Element.self)
        view.span.withUnsafeBufferPointer { source in
            // The view's geometry was checked against its memory, and a tensor of these extents has room for every row.
            guard let source = source.baseAddress else { return }
            for head in 0..<view.heads {
                for token in 0..<view.tokens {
                    (target + (head * paddedTokens + token) * view.channels).update(
                        from: source + view.geometry.offset(head: head, token: token), count: view.channels)
                }
            }
        }
    }
}

extension Tensor: Equatable where Element: Equatable {
    public static func == (a: Tensor, b: Tensor) -> Bool { a.shape == b.shape && a.elements == b.elements }
}

extension Tensor where Element: AttentionElement {
    /// The same values in another element type, rounded to nearest even.
    public func converted<Other: AttentionElement>(to type: Other.Type = Other.self) -> Tensor<Other> {
        // The shape was checked when `self` was made, and memory for it exists, so its size cannot overflow.
        try! Tensor<Other>(shape) { Other(self[flat: $0].floatValue) }
    }
}

/// Aligned bytes with an owner. They are immutable while shared; `Tensor` writes only after checking that it is the only owner.
final class TensorStorage: @unchecked Sendable {
    let pointer: UnsafeMutableRawPointer
    let byteCount: Int

    init(byteCount: Int) {
        self.byteCount = byteCount
        pointer = .allocate(byteCount: max(byteCount, 1), alignment: 64)
    }

    convenience init(copying other: TensorStorage) {
        self.init(byteCount: other.byteCount)
        pointer.copyMemory(from: other.pointer, byteCount: byteCount)
    }

    deinit { pointer.deallocate() }
}

/// The product of the extents. Throws when the product or its size in bytes does not fit an `Int`.
func checkedElementCount(_ shape: [Int], elementBytes: Int) throws(SparseKernelsError) -> Int {
    var count = 1
    for extent in shape {
        try require(extent >= 0, .invalidShape, "shape", expected: "extents of 0 or more", actual: "\(shape)")
        let (product, overflow) = count.multipliedReportingOverflow(by: extent)
        try require(!overflow, .invalidShape, "shape", expected: "a size that fits 63 bits", actual: "\(shape)")
        count = product
    }
    let (_, overflow) = count.multipliedReportingOverflow(by: elementBytes)
    try require(!overflow, .invalidShape, "shape", expected: "a size in bytes that fits 63 bits", actual: "\(shape)")
    return count
}
