import NemotronH
import SparseKernels

/// The states of the recurrent layers of a session's sequences, a slot of each layer per sequence that has tokens.
///
/// A state cannot forget a token, so sequences with states can be cut to nothing or left as they are.
final class SessionStates {
    private let layers: [Mamba2States]
    private var freeSlots: [Int]
    private var sequences: [SessionSequence: Entry] = [:]
    private var batch: PackedSequences

    private struct Entry {
        let slot: Int
        /// Tokens that the state has taken in.
        var length = 0
    }

    /// - Returns: nil for a model without recurrent layers.
    init?(_ c: LanguageModelConfiguration, slots: Int) throws(SparseKernelsError) {
        guard let mamba2 = c.mamba2, c.recurrentLayers > 0 else { return nil }
        var layers: [Mamba2States] = []
        for _ in 0..<c.recurrentLayers { layers.append(try Mamba2States(slots: slots, mamba2)) }
        self.layers = layers
        freeSlots = Array((0..<slots).reversed())
        batch = try PackedSequences(lengths: [])
    }

    /// Bytes of a sequence in all layers.
    var bytesPerSequence: Int { layers.reduce(0) { $0 + $1.bytesPerSlot } }
    /// Bytes in use.
    var usedByteCount: Int { sequences.count * bytesPerSequence }

    // MARK: - Sequences

    /// Throws `.invalidArgument` for a length that the states of a sequence cannot have.
    func requireCut(_ sequence: SessionSequence, to length: Int?) throws(SparseKernelsError) {
        let actual = sequences[sequence]?.length ?? 0
        guard let length, length != 0, length != actual else { return }
        throw SparseKernelsError(
            .invalidArgument, "length", expected: "\(actual), or 0: recurrent states cannot go back", actual: "\(length)")
    }

    /// Gives another sequence the states of one.
    /// - Throws: `.capacityExceeded` when no slot is free.
    func fork(_ parent: SessionSequence, as child: SessionSequence) throws(SparseKernelsError) {
        guard let entry = sequences[parent] else { return }
        let slot = try takeSlot()
        for layer in layers { try layer.copy(from: entry.slot, to: slot) }
        sequences[child] = Entry(slot: slot, length: entry.length)
    }

    /// Forgets the states of a sequence.
    func free(_ sequence: SessionSequence) {
        guard let entry = sequences.removeValue(forKey: sequence) else { return }
        freeSlots.append(entry.slot)
    }

    private func takeSlot() throws(SparseKernelsError) -> Int {
        guard let slot = freeSlots.popLast() else {
            throw SparseKernelsError(
                .capacityExceeded, "sequenceCapacity",
                expected: "as many as there are sequences with tokens, which have recurrent states",
                actual: "\(sequences.count)")
        }
        return slot
    }

    // MARK: - Passes

    /// Gives sequences that are about to get tokens their slots.
    ///
    /// - Parameter lengths: those of the sequences in the rest of the cache.
    /// - Throws: `.capacityExceeded` when slots are missing; `.invalidArgument` for a sequence whose states have seen tokens that the
    ///   rest of the cache has not, because a call failed. Nothing is changed then.
    func prepare(_ requests: [SessionSequence], lengths: [Int]) throws(SparseKernelsError) {
        for (sequence, length) in zip(requests, lengths) {
            let actual = sequences[sequence]?.length ?? 0
            guard actual == length else {
                throw SparseKernelsError(
                    .invalidArgument, "sequence",
                    expected: "one without a call that failed, as recurrent states cannot go back",
                    actual: "one of \(length) tokens, with states of \(actual)")
            }
        }
        let fresh = requests.filter { sequences[$0] == nil }
        guard fresh.count <= freeSlots.count else {
            throw SparseKernelsError(
                .capacityExceeded, "sequenceCapacity",
                expected: "at least \(sequences.count + fresh.count), as recurrent states need",
                actual: "\(sequences.count + freeSlots.count)")
        }
        for sequence in fresh {
            let slot = try takeSlot()
            for layer in layers { try layer.reset(slot) }
            sequences[sequence] = Entry(slot: slot)
        }
    }

    func begin(_ segments: [PassSegment]) throws(SparseKernelsError) {
        batch = try PackedSequences(
            lengths: segments.map(\.count), slots: segments.map { sequences[$0.sequence]!.slot })
        for segment in segments { sequences[segment.sequence]!.length = segment.before + segment.count }
    }

    /// The sequences of the pass.
    func currentBatch() -> PackedSequences { batch }

    subscript(layer: Int) -> Mamba2States { layers[layer] }
}

extension SessionCache {
    func batch() throws(SparseKernelsError) -> PackedSequences {
        guard let states else { throw .withoutStates }
        return states.currentBatch()
    }

    func states(layer: Int) throws(SparseKernelsError) -> Mamba2States {
        guard let states else { throw .withoutStates }
        return states[layer]
    }
}

extension SparseKernelsError {
    static var withoutStates: SparseKernelsError {
        SparseKernelsError(.invalidArgument, "model", expected: "one without recurrent layers", actual: "a hybrid one")
    }
}
