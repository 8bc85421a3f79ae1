/// The recurrent states of several sequences and all layers of a model.
///
/// A slot has room for the states of one sequence in every layer. A sequence takes one slot; a *checkpoint*, which is a copy of its
/// states at some length, takes another. A recurrence cannot be undone, so a sequence can go back only to its checkpoints, and to
/// length 0. Sequences that were forked share the checkpoints that they have in common.
///
/// ```swift
/// let pool = try RecurrentStatePool(
///     layers: [[.convolution(channels: 96, width: 4), RecurrentStateShape(heads: 4, rows: 16, columns: 16)]], capacity: 8)
/// let sequence = try pool.makeSequence()
/// // A layer runs on states(layer:index:) and the sequence's slot. When all layers have run:
/// try pool.advance(sequence, by: 20)
/// try pool.checkpoint(sequence)
/// ```
///
/// The pool reserves its address space once; the system provides memory when a slot is first written. A call that needs more slots
/// than are left throws `.capacityExceeded`, and nothing changes. The pool counts tokens as the caller says, with ``advance(_:by:)``: it
/// does not see what operators write.
///
/// **Threads.** The class is not `Sendable`. It has one writer; any number of threads may read while nobody writes.
public final class RecurrentStatePool {
    /// The name of a sequence. In a ``HybridCache`` it is the name that the cache of attention layers knows, too.
    public typealias SequenceID = PagedKVCache.SequenceID

    /// The states of each layer, for instance that of the convolution and that of the recurrence; none for other layers.
    public let layers: [[RecurrentStateShape]]
    /// Sequences and checkpoints that the pool has room for.
    public var capacity: Int { slots.capacity }
    /// Bytes of the states of all layers for one sequence or checkpoint.
    public let bytesPerSlot: Int
    let states: [[RecurrentStates]]
    /// Slots by the number of sequences that have them: one for states, one or more for checkpoints.
    var slots: PagePool
    var sequencesByName: [SequenceID: StoredSequence] = [:]
    /// Makes names, unless they come from elsewhere.
    var names: SequenceTable

    /// A sequence of the pool.
    struct StoredSequence {
        var slot: Int32
        var length = 0
        /// By length, ascending, each in a slot of its own.
        var checkpoints: [(length: Int, slot: Int32)] = []
    }

    /// An empty pool.
    ///
    /// - Parameters:
    ///   - layers: the states of each layer, of which there may be none.
    ///   - capacity: slots for sequences and checkpoints, from 0 to 2³¹ − 1.
    /// - Throws: `.invalidArgument` for another capacity, `.invalidShape` for states with extents that ``RecurrentStates`` does not
    ///   take, or a size that overflows; `.capacityExceeded` when the system refuses the address space.
    public convenience init(layers: [[RecurrentStateShape]], capacity: Int) throws(SparseKernelsError) {
        try self.init(layers: layers, slots: PagePool(capacity: capacity), names: SequenceTable())
    }

    init(
        layers: [[RecurrentStateShape]], slots: PagePool, names: SequenceTable
    ) throws(SparseKernelsError) {
        try require(
            slots.capacity >= 0 && slots.capacity <= Int(Int32.max), .invalidArgument, "capacity",
            expected: "from 0 to \(Int32.max)", actual: "\(slots.capacity)")
        var (states, bytes): ([[RecurrentStates]], Int) = ([], 0)
        for (layer, shapes) in layers.enumerated() {
            var own: [RecurrentStates] = []
            for (index, shape) in shapes.enumerated() {
                do throws(SparseKernelsError) {
                    own.append(try RecurrentStates(slots: slots.capacity, shape: shape))
                } catch {
                    throw SparseKernelsError(
                        error.code, error.argument == "slots" ? "capacity" : "layers[\(layer)][\(index)].\(error.argument)",
                        expected: error.expected, actual: error.actual)
                }
                let (sum, overflow) = bytes.addingReportingOverflow(own[index].bytesPerSlot)
                let (_, isTooLarge) = sum.multipliedReportingOverflow(by: max(1, slots.capacity))
                try require(
                    !overflow && !isTooLarge, .invalidShape, "layers", expected: "states of fewer than 2⁶³ bytes",
                    actual: "more")
                bytes = sum
            }
            states.append(own)
        }
        self.layers = layers
        self.states = states
        self.slots = slots
        self.names = names
        bytesPerSlot = bytes
    }

    // MARK: - Memory

    /// Slots that neither a sequence nor a checkpoint has.
    public var freeSlotCount: Int { slots.freeCount }
    /// Slots of sequences and checkpoints, each counted once.
    public var usedSlotCount: Int { slots.usedCount }
    /// Bytes of all slots.
    public var byteCount: Int { capacity * bytesPerSlot }
    /// Bytes of the used slots, each counted once.
    public var usedByteCount: Int { usedSlotCount * bytesPerSlot }

    // MARK: - For layers

    /// The states that a layer's operator runs on, for all sequences: each is in its ``slot(of:)``.
    ///
    /// - Parameters:
    ///   - layer: the layer.
    ///   - index: which of its states.
    /// - Throws: `.invalidArgument` for a layer or an index that is not there.
    public func states(layer: Int, index: Int = 0) throws(SparseKernelsError) -> RecurrentStates {
        try require(
            states.indices.contains(layer), .invalidArgument, "layer", expected: "one of the \(states.count) layers",
            actual: "\(layer)")
        try require(
            states[layer].indices.contains(index), .invalidArgument, "index",
            expected: "one of the \(states[layer].count) states of layer \(layer)", actual: "\(index)")
        return states[layer][index]
    }

    /// The slot with the states of a sequence, the same in every layer, until the sequence is freed.
    /// - Throws: `.unknownSequence`.
    public func slot(of sequence: SequenceID) throws(SparseKernelsError) -> Int { Int(try stored(sequence).slot) }

    /// Sequences as a packed batch, for operators.
    ///
    /// - Parameters:
    ///   - sequences: different sequences.
    ///   - lengths: new tokens of each, 0 or more; nil means one each.
    /// - Throws: `.unknownSequence`, and the errors of ``PackedSequences``.
    public func batch(
        _ sequences: [SequenceID], lengths: [Int]? = nil
    ) throws(SparseKernelsError) -> PackedSequences {
        var slots: [Int] = []
        for sequence in sequences { slots.append(try slot(of: sequence)) }
        guard let lengths else { return try PackedSequences(stepOf: slots) }
        return try PackedSequences(lengths: lengths, slots: slots)
    }

    // MARK: - Shared

    /// - Throws: `.unknownSequence`.
    func stored(_ sequence: SequenceID) throws(SparseKernelsError) -> StoredSequence {
        if let stored = sequencesByName[sequence] { return stored }
        throw SparseKernelsError(
            .unknownSequence, "sequence", expected: "one that this pool has (\(sequencesByName.count) in all)",
            actual: "sequence \(sequence.index) of generation \(sequence.generation)")
    }

    func makeName() -> SequenceID {
        let index = names.insert(CachedSequence(pages: [], lengths: []))
        return names.name(at: index)
    }

    func requireFreeSlots(_ needed: Int) throws(SparseKernelsError) {
        try require(
            needed <= slots.freeCount, .capacityExceeded, "capacity", expected: "enough for \(needed) more slots",
            actual: "\(capacity), of which \(slots.freeCount) are free")
    }

    /// Takes a slot whose states are zero. One must be free.
    func takeZeroed() -> Int32 {
        let known = slots.referenceCounts.count
        let slot = slots.take()
        // A slot that was never handed out before is zero already.
        if Int(slot) < known { clear(slot) }
        return slot
    }

    func clear(_ slot: Int32) {
        for layer in states {
            for state in layer {
                state.address(of: Int(slot)).initializeMemory(as: UInt8.self, repeating: 0, count: state.bytesPerSlot)
            }
        }
    }

    func copy(_ source: Int32, to target: Int32) {
        for layer in states {
            for state in layer {
                state.address(of: Int(target)).copyMemory(from: state.address(of: Int(source)), byteCount: state.bytesPerSlot)
            }
        }
    }
}
