/// Memory that messages are sent from and received into.
///
/// A buffer is an object because a message may be under way after the call that started it has returned: a ``Communicator`` keeps the
/// buffers of unfinished transfers alive. While a transfer is unfinished, its bytes must not be written, and those of a message
/// that is received must not be read.
///
/// ```swift
/// let buffer = try MessageBuffer(of: Float.self, count: 4096)
/// buffer.mutableElements(Float.self)[0] = 1
/// let keys = try buffer.view(Float.self, geometry: geometry, named: "key")
/// ```
///
/// The memory is aligned to 64 bytes and zero at first.
///
/// **Threads.** A buffer belongs to one rank. Ranks that are threads of one process read from the buffers of others only while those
/// wait for, or have not finished, the transfer of the bytes; that is why the class is sendable.
public final class MessageBuffer: @unchecked Sendable {
    public let byteCount: Int
    /// The first byte. Valid as long as the buffer.
    public let address: UnsafeMutableRawPointer

    /// - Parameter byteCount: 0 or more.
    /// - Throws: `.invalidShape` for a negative size or one of 2⁴⁶ bytes or more.
    public init(byteCount: Int) throws(SparseKernelsError) {
        guard byteCount >= 0, byteCount < 1 << 46 else {
            throw SparseKernelsError(
                .invalidShape, "byteCount", expected: "within 0..<2⁴⁶", actual: "\(byteCount)")
        }
        self.byteCount = byteCount
        let padded = (max(1, byteCount) + 63) / 64 * 64
        address = UnsafeMutableRawPointer.allocate(byteCount: padded, alignment: 64)
        address.initializeMemory(as: UInt8.self, repeating: 0, count: padded)
    }

    /// A buffer for some elements.
    /// - Throws: `.invalidShape` for a negative number or 2⁴⁶ bytes or more.
    public convenience init<Element: BitwiseCopyable>(of type: Element.Type, count: Int) throws(SparseKernelsError) {
        let (bytes, overflow) = count.multipliedReportingOverflow(by: MemoryLayout<Element>.stride)
        try self.init(byteCount: overflow ? .max : bytes)
    }

    deinit { address.deallocate() }

    /// All bytes.
    public var allBytes: Range<Int> { 0..<byteCount }

    /// Elements from a byte on, in place. Traps when they leave the buffer.
    @_lifetime(borrow self)
    public func elements<Element: BitwiseCopyable>(
        _ type: Element.Type, atByte offset: Int = 0, count: Int? = nil
    ) -> Span<Element> {
        let count = require(type, offset, count)
        let start = (address + offset).assumingMemoryBound(to: Element.self)
        return _overrideLifetime(UnsafeBufferPointer(start: start, count: count).span, borrowing: self)
    }

    /// Elements from a byte on, to be written in place. Traps when they leave the buffer. Two spans over the same bytes must not be used
    /// at the same time.
    @_lifetime(borrow self)
    public func mutableElements<Element: BitwiseCopyable>(
        _ type: Element.Type, atByte offset: Int = 0, count: Int? = nil
    ) -> MutableSpan<Element> {
        let count = require(type, offset, count)
        let start = (address + offset).assumingMemoryBound(to: Element.self)
        return _overrideLifetime(UnsafeMutableBufferPointer(start: start, count: count).mutableSpan, borrowing: self)
    }

    /// An operand of attention in place.
    /// - Throws: `.invalidShape` when the geometry needs more elements than there are from the byte on.
    @_lifetime(borrow self)
    public func view<Element: TensorElement>(
        _ type: Element.Type, atByte offset: Int = 0, geometry: TensorGeometry, named name: String
    ) throws(SparseKernelsError) -> TensorView<Element> {
        let view = try TensorView(elements(type, atByte: offset), geometry: geometry, named: name)
        return _overrideLifetime(view, borrowing: self)
    }

    /// An output of attention in place.
    /// - Throws: `.invalidShape` when the geometry needs more elements than there are from the byte on, `.invalidStride` when rows
    ///   share elements.
    @_lifetime(borrow self)
    public func mutableView<Element: TensorElement>(
        _ type: Element.Type, atByte offset: Int = 0, geometry: TensorGeometry, named name: String
    ) throws(SparseKernelsError) -> MutableTensorView<Element> {
        let view = try MutableTensorView(mutableElements(type, atByte: offset), geometry: geometry, named: name)
        return _overrideLifetime(view, borrowing: self)
    }

    /// The number of elements from a byte on, or the given one if it fits.
    private func require<Element>(_ type: Element.Type, _ offset: Int, _ count: Int?) -> Int {
        precondition(
            offset >= 0 && offset <= byteCount && offset % MemoryLayout<Element>.alignment == 0,
            "byte \(offset) is outside a buffer of \(byteCount) bytes, or not aligned for \(type)")
        let all = (byteCount - offset) / MemoryLayout<Element>.stride
        let count = count ?? all
        precondition(count >= 0 && count <= all, "\(count) elements from byte \(offset) leave a buffer of \(byteCount) bytes")
        return count
    }
}
