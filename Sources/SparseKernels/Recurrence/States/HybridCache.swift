/// The memory of a model that has attention and recurrent layers: keys and values in pages, and states in slots, for the same
/// sequences under the same names.
///
/// ```swift
/// let cache = try HybridCache(
///     attention: KVCacheConfiguration(layers: 2, kvHeads: 4, headDim: 64, pageCapacity: 256),
///     recurrent: [[.convolution(channels: 96, width: 4), RecurrentStateShape(heads: 4, rows: 16, columns: 16)]],
///     stateCapacity: 8)
/// let sequence = try cache.makeSequence()
/// // Attention layers append to cache.attention; recurrent layers run on cache.states. When all have run:
/// try cache.advance(sequence, by: 20)
/// try cache.checkpoint(sequence)
/// let child = try cache.fork(sequence)
/// ```
///
/// Layers of each kind are numbered on their own, from 0. Sequences are made, forked, shortened and freed here, not in one of the two
/// parts: a part that was changed alone makes later calls throw `.unknownSequence`. A recurrence cannot be undone, so a sequence goes back
/// only to checkpoints, to its present length and to 0.
///
/// When a call needs pages or slots that are not left, it throws `.capacityExceeded`, and nothing changes in either part.
///
/// **Threads.** The class is not `Sendable`. It has one writer; any number of threads may read while nobody writes.
public final class HybridCache {
    public typealias SequenceID = PagedKVCache.SequenceID

    /// Keys and values of the attention layers; nil for a model without.
    public let attention: PagedKVCache?
    /// States of the recurrent layers.
    public let states: RecurrentStatePool

    /// An empty cache.
    ///
    /// - Parameters:
    ///   - attention: pages of the attention layers; nil without such layers.
    ///   - recurrent: the states of each recurrent layer.
    ///   - stateCapacity: sequences and checkpoints that there is room for.
    ///   - instructionSet: the level of the kernels of the pages, as for ``PagedKVCache``.
    /// - Throws: the errors of ``PagedKVCache`` and ``RecurrentStatePool``.
    public convenience init(
        attention: KVCacheConfiguration?, recurrent: [[RecurrentStateShape]], stateCapacity: Int,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        var cache: PagedKVCache?
        if let attention { cache = try PagedKVCache(attention, instructionSet: instructionSet) }
        self.init(cache, try RecurrentStatePool(layers: recurrent, capacity: stateCapacity))
    }

    init(_ attention: PagedKVCache?, _ states: RecurrentStatePool) {
        self.attention = attention
        self.states = states
    }

    // MARK: - Memory

    /// Bytes of all pages and slots.
    public var byteCount: Int { (attention?.byteCount ?? 0) + states.byteCount }
    /// Bytes of the used pages and slots, each counted once.
    public var usedByteCount: Int { (attention?.usedByteCount ?? 0) + states.usedByteCount }

    // MARK: - Sequences

    /// All sequences, in no particular order.
    public var sequences: [SequenceID] { states.sequences }

    /// Tokens of a sequence, as far as ``advance(_:by:)`` was told. Attention layers may have more while a step goes through the model.
    /// - Throws: `.unknownSequence`.
    public func length(of sequence: SequenceID) throws(SparseKernelsError) -> Int { try states.length(of: sequence) }

    /// Lengths of the checkpoints of a sequence, ascending.
    /// - Throws: `.unknownSequence`.
    public func checkpoints(of sequence: SequenceID) throws(SparseKernelsError) -> [Int] {
        try states.checkpoints(of: sequence)
    }

    /// Makes a sequence without tokens. It takes a slot, and no page.
    /// - Throws: `.capacityExceeded` without a free slot.
    public func makeSequence() throws(SparseKernelsError) -> SequenceID {
        guard let attention else { return try states.makeSequence() }
        try states.requireFreeSlots(1)
        let name = attention.makeSequence()
        states.insert(name)
        return name
    }

    /// Frees a sequence and its checkpoints. What other sequences share stays with them.
    /// - Throws: `.unknownSequence`.
    public func free(_ sequence: SequenceID) throws(SparseKernelsError) {
        _ = try states.stored(sequence)
        try attention?.free(sequence)
        try states.free(sequence)
    }

    /// Says that all layers have run on some more tokens of a sequence.
    ///
    /// - Parameters:
    ///   - sequence: the sequence.
    ///   - tokens: 0 or more.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a negative number, or where an attention layer has not as many tokens as the
    ///   sequence then has.
    public func advance(_ sequence: SequenceID, by tokens: Int) throws(SparseKernelsError) {
        let (length, overflow) = try states.length(of: sequence).addingReportingOverflow(tokens)
        if tokens >= 0, !overflow { try requireAttention(of: sequence, length: length, "tokens", actual: tokens) }
        try states.advance(sequence, by: tokens)
    }

    /// Copies the states of a sequence, so that it can go back to its present length. Keys and values need no copy.
    ///
    /// - Parameter sequence: the sequence, not in the middle of a step.
    /// - Throws: `.unknownSequence`; `.invalidArgument` where an attention layer has another length; `.capacityExceeded` without a free
    ///   slot. Nothing changes then.
    public func checkpoint(_ sequence: SequenceID) throws(SparseKernelsError) {
        let length = try states.length(of: sequence)
        try requireAttention(of: sequence, length: length, "sequence", actual: length)
        try states.checkpoint(sequence)
    }

    /// Removes a checkpoint.
    /// - Throws: `.unknownSequence`; `.notFound` for a length without a checkpoint.
    public func removeCheckpoint(of sequence: SequenceID, at length: Int) throws(SparseKernelsError) {
        try states.removeCheckpoint(of: sequence, at: length)
    }

    /// Makes a sequence that begins like another one, shares its pages and checkpoints, and has a copy of its states.
    ///
    /// - Parameters:
    ///   - sequence: the parent, which does not change; not in the middle of a step.
    ///   - length: that of a checkpoint, 0, or nil for the present length.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for another length, or a parent in the middle of a step; `.capacityExceeded`
    ///   without a free slot or page. Nothing changes then.
    public func fork(_ sequence: SequenceID, at length: Int? = nil) throws(SparseKernelsError) -> SequenceID {
        guard let attention else { return try states.fork(sequence, at: length) }
        try states.requireReturn(of: sequence, to: length)
        let present = try states.length(of: sequence)
        if length == nil { try requireAttention(of: sequence, length: present, "sequence", actual: present) }
        try states.requireFreeSlots(1)
        let name = try attention.fork(sequence, at: length ?? present)
        try states.insertFork(of: sequence, at: length, as: name)
        return name
    }

    /// Takes a sequence back to a checkpoint, which stays, in all layers. Later checkpoints are removed.
    ///
    /// - Parameters:
    ///   - sequence: the sequence.
    ///   - length: that of a checkpoint, 0, or the present length, which undoes a step that was not finished: tokens that attention
    ///     layers already have are removed. States come back if there is a checkpoint; without one, no recurrent layer may have run.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for another length, naming those that there are; `.capacityExceeded` when a page
    ///   must be copied and none is free. Nothing changes then.
    public func truncate(_ sequence: SequenceID, to length: Int) throws(SparseKernelsError) {
        try states.requireReturn(of: sequence, to: length)
        try attention?.truncate(sequence, to: length)
        try states.truncate(sequence, to: length)
    }

    /// Removes all tokens and checkpoints of a sequence, and makes its states zero.
    /// - Throws: `.unknownSequence`.
    public func reset(_ sequence: SequenceID) throws(SparseKernelsError) {
        _ = try states.stored(sequence)
        try attention?.truncate(sequence, to: 0)
        try states.reset(sequence)
    }

    /// Throws unless every attention layer has this many tokens.
    private func requireAttention(
        of sequence: SequenceID, length: Int, _ name: String, actual: Int
    ) throws(SparseKernelsError) {
        guard let attention else { return }
        for layer in 0..<attention.configuration.layers {
            let own = try attention.length(of: sequence, layer: layer)
            try require(
                own == length, .invalidArgument, name,
                expected: "a length of \(own) tokens, which attention layer \(layer) has",
                actual: "\(actual), which gives \(length)")
        }
    }
}
