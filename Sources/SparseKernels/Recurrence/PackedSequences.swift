/// The sequences of a packed batch: the tokens of each lie one after the other, and continue the state in a slot of their own.
///
/// ```swift
/// let batch = try PackedSequences(lengths: [512, 37], slots: [4, 0])   // rows 0..<512 and 512..<549
/// ```
///
/// Nothing flows from one sequence to the next. A sequence starts from what its slot holds, which is zero after
/// ``RecurrentStates/reset(_:)``. One without tokens leaves its state as it is.
public struct PackedSequences: Hashable, Sendable {
    /// Tokens of each sequence, 0 or more.
    public let lengths: [Int]
    /// The slot of each sequence; no two have the same.
    public let slots: [Int]
    /// Tokens of all sequences.
    public let tokenCount: Int
    /// Tokens of the longest sequence. Kept, because a loop over an array allocates in debug builds.
    let longest: Int
    /// Where each sequence starts, and the end: one more than there are sequences.
    let starts: [Int]

    /// - Parameters:
    ///   - lengths: tokens of each sequence, 0 or more.
    ///   - slots: the slot of each sequence; nil means 0, 1, 2, ….
    /// - Throws: `.invalidShape` for another number of slots than of lengths; `.invalidArgument` for a negative length or slot, a sum
    ///   that overflows, or two sequences with one slot.
    public init(lengths: [Int], slots: [Int]? = nil) throws(SparseKernelsError) {
        let slots = slots ?? Array(lengths.indices)
        try require(
            slots.count == lengths.count, .invalidShape, "slots", expected: "\(lengths.count), one per sequence",
            actual: "\(slots.count)")
        var starts = [0]
        for (index, length) in lengths.enumerated() {
            let (end, overflow) = starts[index].addingReportingOverflow(length)
            try require(
                length >= 0 && !overflow, .invalidArgument, "lengths[\(index)]", expected: "0 or more, in a sum below 2⁶³",
                actual: "\(length)")
            starts.append(end)
        }
        var used: Set<Int> = []
        for (index, slot) in slots.enumerated() {
            try require(
                slot >= 0 && used.insert(slot).inserted, .invalidArgument, "slots[\(index)]",
                expected: "0 or more, and of no other sequence", actual: "\(slot)")
        }
        (self.lengths, self.slots, self.starts) = (lengths, slots, starts)
        tokenCount = starts[lengths.count]
        longest = lengths.max() ?? 0
    }

    /// One token of each of some sequences: a step of decoding.
    /// - Throws: `.invalidArgument` for a negative slot or two that are the same.
    public init(stepOf slots: [Int]) throws(SparseKernelsError) {
        try self.init(lengths: Array(repeating: 1, count: slots.count), slots: slots)
    }

    /// Throws unless every slot is there, and the rows are those of an operand.
    func requireFit(tokens: Int, named name: String, in states: RecurrentStates) throws(SparseKernelsError) {
        try require(
            tokens == tokenCount, .invalidShape, name, expected: "\(tokenCount) tokens, the sum of the lengths",
            actual: "\(tokens)")
        try requireSlots(in: states)
    }

    /// Throws `.invalidArgument` unless every slot is there.
    package func requireSlots(in states: RecurrentStates) throws(SparseKernelsError) {
        for index in 0..<slots.count { try states.requireSlot(slots[index], "slots[\(index)]") }
    }
}
