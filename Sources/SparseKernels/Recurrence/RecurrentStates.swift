internal import KernelInterface

/// The states of one recurrent layer for several sequences: a matrix per head in each of a number of slots.
///
/// Every recurrence of this library keeps its memory in this form, so that one pool holds all of them:
///
/// | layer | heads | rows | columns |
/// |---|---|---|---|
/// | linear attention, Mamba-2, delta rule | heads of values | channels of a key (state size) | channels of a value |
/// | Mamba-1 scan | 1 | state size | channels |
/// | causal convolution | 1 | width − 1, oldest first | channels |
///
/// ```swift
/// let states = try RecurrentStates(slots: 4, heads: 32, rows: 128, columns: 64)
/// try states.reset(2)
/// ```
///
/// Memory is `[slots, heads, rows, columns]`, last axis fastest, aligned to 64 bytes, and zero at first. The system provides it when
/// a slot is first written.
///
/// **Threads.** The class is not `Sendable`. It has one writer; any number of threads may read while nobody writes. An operator that
/// runs on it is a writer.
public final class RecurrentStates {
    /// The storage of a state. Arithmetic is always in single precision.
    public enum Format: String, Hashable, Sendable, CaseIterable {
        case float32
        /// Half of the bytes. Each update rounds the state to 8 bits, so that errors add up over the tokens that it remembers.
        case bfloat16

        /// Bytes of an element.
        public var byteCount: Int { self == .float32 ? 4 : 2 }
    }

    public let slots: Int
    public let heads: Int
    public let rows: Int
    public let columns: Int
    public let format: Format
    /// Bytes of all heads of a slot.
    public let bytesPerSlot: Int
    /// Bytes of all slots.
    public var byteCount: Int { slots * bytesPerSlot }

    let pointer: UnsafeMutableRawPointer

    /// States that are zero.
    ///
    /// - Parameters:
    ///   - slots: sequences that can have a state at a time, 0 or more.
    ///   - heads: matrices of a slot, at least 1.
    ///   - rows: of a matrix, 0 or more: a convolution of width 1 remembers nothing.
    ///   - columns: of a matrix, at least 1.
    ///   - format: the storage of the elements.
    /// - Throws: `.invalidShape` for extents out of these ranges or a size that overflows; `.capacityExceeded` when the system
    ///   refuses the memory.
    public init(
        slots: Int, heads: Int, rows: Int, columns: Int, format: Format = .float32
    ) throws(SparseKernelsError) {
        for (name, extent, least) in [("slots", slots, 0), ("heads", heads, 1), ("rows", rows, 0), ("columns", columns, 1)] {
            try require(extent >= least, .invalidShape, name, expected: "at least \(least)", actual: "\(extent)")
        }
        let elements = try checkedElementCount([max(1, slots), heads, rows, columns], elementBytes: format.byteCount)
        let bytes = slots == 0 ? 0 : elements * format.byteCount
        guard let pointer = LazyMemory.allocate(byteCount: bytes) else {
            throw SparseKernelsError(
                .capacityExceeded, "slots", expected: "as many as the system has memory for",
                actual: "\(slots), which are \(bytes) bytes")
        }
        (self.slots, self.heads, self.rows, self.columns) = (slots, heads, rows, columns)
        self.format = format
        bytesPerSlot = heads * rows * columns * format.byteCount
        self.pointer = pointer
    }

    deinit { LazyMemory.deallocate(pointer, byteCount: byteCount) }

    // MARK: - Slots

    /// Makes the state of a slot zero.
    /// - Throws: `.invalidArgument` for a slot that is not there.
    public func reset(_ slot: Int) throws(SparseKernelsError) {
        try requireSlot(slot, "slot")
        address(of: slot).initializeMemory(as: UInt8.self, repeating: 0, count: bytesPerSlot)
    }

    /// Replaces the state of a slot by that of another.
    /// - Throws: `.invalidArgument` for a slot that is not there.
    public func copy(from source: Int, to target: Int) throws(SparseKernelsError) {
        try requireSlot(source, "source")
        try requireSlot(target, "target")
        if source != target { address(of: target).copyMemory(from: address(of: source), byteCount: bytesPerSlot) }
    }

    /// The state of a slot, `[heads, rows, columns]`.
    /// - Throws: `.invalidArgument` for a slot that is not there.
    public func state(of slot: Int) throws(SparseKernelsError) -> Tensor<Float> {
        try requireSlot(slot, "slot")
        let source = address(of: slot)
        return try Tensor([heads, rows, columns]) { index in
            switch format {
            case .float32: source.assumingMemoryBound(to: Float.self)[index]
            case .bfloat16: source.assumingMemoryBound(to: BFloat16.self)[index].floatValue
            }
        }
    }

    /// Replaces the state of a slot.
    ///
    /// - Parameters:
    ///   - state: `[heads, rows, columns]`. Elements are rounded to the format; those that are not finite stay so.
    ///   - slot: the slot.
    /// - Throws: `.invalidArgument` for a slot that is not there, `.invalidShape` for a tensor of another shape; nothing is written
    ///   then.
    public func setState(_ state: Tensor<Float>, of slot: Int) throws(SparseKernelsError) {
        try requireSlot(slot, "slot")
        try require(
            state.shape == [heads, rows, columns], .invalidShape, "state", expected: "\([heads, rows, columns])",
            actual: "\(state.shape)")
        let target = address(of: slot)
        for index in 0..<heads * rows * columns {
            switch format {
            case .float32: target.assumingMemoryBound(to: Float.self)[index] = state[flat: index]
            case .bfloat16: target.assumingMemoryBound(to: BFloat16.self)[index] = BFloat16(state[flat: index])
            }
        }
    }

    // MARK: - For operators

    var storageType: StorageType { format == .float32 ? .float32 : .bfloat16 }

    func address(of slot: Int) -> UnsafeMutableRawPointer { pointer + slot * bytesPerSlot }

    /// The name is made for an error only: making one for every slot of a batch would allocate.
    func requireSlot(_ slot: Int, _ name: @autoclosure () -> String) throws(SparseKernelsError) {
        try require(
            slot >= 0 && slot < slots, .invalidArgument, name(), expected: slots == 0 ? "no slot" : "from 0 to \(slots - 1)",
            actual: "\(slot)")
    }

    /// Throws `.invalidShape` unless the matrices of a slot have these extents.
    func requireShape(heads: Int, rows: Int, columns: Int, named name: String) throws(SparseKernelsError) {
        try require(
            self.heads == heads && self.rows == rows && self.columns == columns, .invalidShape, name,
            expected: "\(heads) × \(rows) × \(columns) in a slot",
            actual: "\(self.heads) × \(self.rows) × \(self.columns)")
    }

    /// The same, whatever the format is.
    package func requireShape(_ shape: RecurrentStateShape, named name: String) throws(SparseKernelsError) {
        try requireShape(heads: shape.heads, rows: shape.rows, columns: shape.columns, named: name)
    }
}
