/// The sizes of a recurrence whose state is a matrix per head: linear attention, state-space duality, the delta rule.
///
/// Value head *h* reads key head *h* / (`valueHeads` / `keyHeads`), and has a state of `keyDim` × `valueDim`:
///
/// ```swift
/// let shape = try RecurrenceShape(keyHeads: 16, valueHeads: 32, keyDim: 128, valueDim: 128)
/// let states = try RecurrentStates(slots: 8, shape: shape)
/// ```
public struct RecurrenceShape: Hashable, Sendable {
    /// Heads of queries and keys.
    public let keyHeads: Int
    /// Heads of values, outputs and states, a multiple of `keyHeads`.
    public let valueHeads: Int
    /// Channels of queries and keys, which are rows of a state, 1…256.
    public let keyDim: Int
    /// Channels of values and outputs, which are columns of a state, 1…256.
    public let valueDim: Int

    /// Heads of values that share a head of keys.
    public var valueHeadsPerKeyHead: Int { valueHeads / keyHeads }

    /// The largest number of channels per head, for which kernel scratch is sized.
    public static let maximumDim = 256

    /// Checks the sizes.
    /// - Throws: `.invalidShape` when an extent is below 1, a head is wider than `maximumDim`, `valueHeads` is not a multiple of
    ///   `keyHeads`, or there are 2³¹ value heads or more.
    public init(keyHeads: Int, valueHeads: Int, keyDim: Int, valueDim: Int) throws(SparseKernelsError) {
        for (name, extent) in [
            ("keyHeads", keyHeads), ("valueHeads", valueHeads), ("keyDim", keyDim), ("valueDim", valueDim),
        ] {
            try require(extent >= 1, .invalidShape, name, expected: "at least 1", actual: "\(extent)")
        }
        for (name, extent) in [("keyDim", keyDim), ("valueDim", valueDim)] {
            try require(
                extent <= Self.maximumDim, .invalidShape, name, expected: "at most \(Self.maximumDim)", actual: "\(extent)")
        }
        try require(
            valueHeads % keyHeads == 0, .invalidShape, "valueHeads", expected: "a multiple of keyHeads (\(keyHeads))",
            actual: "\(valueHeads)")
        try require(valueHeads < 1 << 31, .invalidShape, "valueHeads", expected: "below 2³¹", actual: "\(valueHeads)")
        self.keyHeads = keyHeads
        self.valueHeads = valueHeads
        self.keyDim = keyDim
        self.valueDim = valueDim
    }
}

extension RecurrentStates {
    /// States that are zero, of the matrices of a recurrence.
    /// - Throws: `.invalidShape` for a negative number of slots or a size that overflows; `.capacityExceeded` when the system
    ///   refuses the memory.
    public convenience init(
        slots: Int, shape: RecurrenceShape, format: Format = .float32
    ) throws(SparseKernelsError) {
        try self.init(
            slots: slots, heads: shape.valueHeads, rows: shape.keyDim, columns: shape.valueDim, format: format)
    }
}
