// Sequences: making, freeing, forking, and going back to checkpoints.

extension RecurrentStatePool {
    /// All sequences, in no particular order.
    public var sequences: [SequenceID] { Array(sequencesByName.keys) }

    /// Tokens of a sequence, as far as ``advance(_:by:)`` was told.
    /// - Throws: `.unknownSequence`.
    public func length(of sequence: SequenceID) throws(SparseKernelsError) -> Int { try stored(sequence).length }

    /// Lengths of the checkpoints of a sequence, ascending.
    /// - Throws: `.unknownSequence`.
    public func checkpoints(of sequence: SequenceID) throws(SparseKernelsError) -> [Int] {
        try stored(sequence).checkpoints.map(\.length)
    }

    /// Makes a sequence of length 0, whose states are zero.
    /// - Throws: `.capacityExceeded`.
    public func makeSequence() throws(SparseKernelsError) -> SequenceID {
        try requireFreeSlots(1)
        let name = makeName()
        insert(name)
        return name
    }

    /// Adds a sequence of length 0 under a name from elsewhere. A slot must be free.
    func insert(_ name: SequenceID) { sequencesByName[name] = StoredSequence(slot: takeZeroed()) }

    /// Frees a sequence and its checkpoints. Checkpoints that other sequences share stay with them.
    ///
    /// - Parameter sequence: the sequence, which the pool does not know afterwards.
    /// - Throws: `.unknownSequence`.
    public func free(_ sequence: SequenceID) throws(SparseKernelsError) {
        let old = try stored(sequence)
        slots.release(old.slot)
        for checkpoint in old.checkpoints { slots.release(checkpoint.slot) }
        sequencesByName[sequence] = nil
        if let index = try? names.index(of: sequence) { names.remove(at: index) }
    }

    /// Says that all layers have run on some more tokens of a sequence.
    ///
    /// - Parameters:
    ///   - sequence: the sequence.
    ///   - tokens: 0 or more.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a negative number or a length that overflows.
    public func advance(_ sequence: SequenceID, by tokens: Int) throws(SparseKernelsError) {
        let length = try stored(sequence).length
        let (sum, overflow) = length.addingReportingOverflow(tokens)
        try require(
            tokens >= 0 && !overflow, .invalidArgument, "tokens", expected: "0 or more, in a sum below 2⁶³",
            actual: "\(tokens)")
        sequencesByName[sequence]!.length = sum
    }

    /// Copies the states of a sequence, so that it can go back to its present length. A checkpoint of that length is replaced.
    ///
    /// - Parameter sequence: the sequence.
    /// - Throws: `.unknownSequence`; `.capacityExceeded` without a free slot, where nothing changes.
    /// - Complexity: O(bytes of a slot).
    public func checkpoint(_ sequence: SequenceID) throws(SparseKernelsError) {
        var stored = try stored(sequence)
        let index = stored.checkpoints.firstIndex { $0.length == stored.length }
        if let index, !slots.isShared(stored.checkpoints[index].slot) {
            copy(stored.slot, to: stored.checkpoints[index].slot)
            return
        }
        try requireFreeSlots(1)
        let slot = slots.take()
        copy(stored.slot, to: slot)
        if let index {
            slots.release(stored.checkpoints[index].slot)
            stored.checkpoints[index].slot = slot
        } else {
            // After one at a smaller length, because a sequence that goes back loses the later ones.
            stored.checkpoints.append((stored.length, slot))
        }
        sequencesByName[sequence] = stored
    }

    /// Removes a checkpoint and returns its slot, unless a sequence that was forked still has it.
    ///
    /// - Parameters:
    ///   - sequence: the sequence.
    ///   - length: the length of the checkpoint.
    /// - Throws: `.unknownSequence`; `.notFound` for a length without a checkpoint.
    public func removeCheckpoint(of sequence: SequenceID, at length: Int) throws(SparseKernelsError) {
        var stored = try stored(sequence)
        guard let index = stored.checkpoints.firstIndex(where: { $0.length == length }) else {
            throw SparseKernelsError(
                .notFound, "length", expected: "one of the checkpoints \(abbreviated(stored.checkpoints.map(\.length)))",
                actual: "\(length)")
        }
        slots.release(stored.checkpoints.remove(at: index).slot)
        sequencesByName[sequence] = stored
    }

    /// Makes a sequence with the states of another one. It shares the checkpoints up to its length.
    ///
    /// - Parameters:
    ///   - sequence: the parent, which does not change.
    ///   - length: that of a checkpoint, 0 for a sequence without tokens, or nil for the present length.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for another length; `.capacityExceeded` without a free slot. Nothing changes
    ///   then.
    /// - Complexity: O(bytes of a slot).
    public func fork(_ sequence: SequenceID, at length: Int? = nil) throws(SparseKernelsError) -> SequenceID {
        try requireReturn(of: sequence, to: length)
        try requireFreeSlots(1)
        let name = makeName()
        try insertFork(of: sequence, at: length, as: name)
        return name
    }

    /// The same under a name from elsewhere, when the length is legal and a slot is free.
    func insertFork(of sequence: SequenceID, at length: Int?, as name: SequenceID) throws(SparseKernelsError) {
        let parent = try stored(sequence)
        let source = length.map { sourceSlot(of: parent, at: $0) } ?? parent.slot
        let length = length ?? parent.length
        let slot = source == nil ? takeZeroed() : slots.take()
        if let source { copy(source, to: slot) }
        let kept = parent.checkpoints.filter { $0.length <= length }
        for checkpoint in kept { slots.retain(checkpoint.slot) }
        sequencesByName[name] = StoredSequence(slot: slot, length: length, checkpoints: kept)
    }

    /// Takes a sequence back to a checkpoint, which stays. Later checkpoints are removed.
    ///
    /// - Parameters:
    ///   - sequence: the sequence.
    ///   - length: that of a checkpoint, 0 for states of zeros, or the present length. There, without a checkpoint, nothing happens; with
    ///     one, what operators have written since is undone.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for another length, naming those that there are; nothing changes then.
    /// - Complexity: O(bytes of a slot).
    public func truncate(_ sequence: SequenceID, to length: Int) throws(SparseKernelsError) {
        try requireReturn(of: sequence, to: length)
        var stored = try stored(sequence)
        if let source = sourceSlot(of: stored, at: length) {
            if source != stored.slot { copy(source, to: stored.slot) }
        } else {
            clear(stored.slot)
        }
        for checkpoint in stored.checkpoints where checkpoint.length > length { slots.release(checkpoint.slot) }
        stored.checkpoints.removeAll { $0.length > length }
        stored.length = length
        sequencesByName[sequence] = stored
    }

    /// Makes the states of a sequence zero and its length 0, and removes all of its checkpoints.
    /// - Throws: `.unknownSequence`.
    public func reset(_ sequence: SequenceID) throws(SparseKernelsError) {
        var stored = try stored(sequence)
        for checkpoint in stored.checkpoints { slots.release(checkpoint.slot) }
        clear(stored.slot)
        (stored.length, stored.checkpoints) = (0, [])
        sequencesByName[sequence] = stored
    }

    // MARK: - Going back

    /// The slot with the states at a length; nil where they are zero.
    private func sourceSlot(of sequence: StoredSequence, at length: Int) -> Int32? {
        if let checkpoint = sequence.checkpoints.first(where: { $0.length == length }) { return checkpoint.slot }
        return length == 0 ? nil : sequence.slot
    }

    /// Throws unless a sequence has states for a length.
    func requireReturn(of sequence: SequenceID, to length: Int?) throws(SparseKernelsError) {
        let stored = try stored(sequence)
        guard let length else { return }
        let lengths = stored.checkpoints.map(\.length)
        try require(
            length == stored.length || length == 0 || lengths.contains(length), .invalidArgument, "length",
            expected: "0, the present \(stored.length), or a checkpoint, which are \(abbreviated(lengths))",
            actual: "\(length)")
    }
}
