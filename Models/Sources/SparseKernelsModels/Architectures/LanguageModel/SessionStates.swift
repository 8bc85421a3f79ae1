import NemotronH
import SparseKernels

/// The recurrent states of a session's sequences, beside their pages: one cache for both, and what a session must know of it.
///
/// A sequence takes a slot when it gets its first tokens. A state cannot forget a token: a sequence goes back to its checkpoints, to
/// nothing, or not at all. One whose pass failed half-way is unfinished until it has gone back.
final class SessionStates {
    let hybrid: HybridCache
    private let layers: [Mamba2States]
    /// Sequences without tokens, which have neither slot nor pages.
    fileprivate(set) var empty: Set<SessionSequence> = []
    fileprivate(set) var unfinished: Set<SessionSequence> = []
    private var pass: [(sequence: SessionSequence, name: PagedKVCache.SequenceID, count: Int)] = []
    private var batch: PackedSequences

    /// - Returns: nil for a model without recurrent layers.
    init?(
        _ c: LanguageModelConfiguration, _ attention: KVCacheConfiguration, _ options: SessionOptions
    ) throws(SparseKernelsError) {
        guard let mamba2 = c.mamba2, c.recurrentLayers > 0 else { return nil }
        hybrid = try HybridCache(
            attention: attention, recurrent: Array(repeating: mamba2.stateShapes(), count: c.recurrentLayers),
            stateCapacity: options.sequenceCapacity + options.checkpointCapacity)
        var layers: [Mamba2States] = []
        for layer in 0..<c.recurrentLayers {
            layers.append(
                try Mamba2States(
                    convolution: hybrid.states.states(layer: layer, index: 0),
                    recurrence: hybrid.states.states(layer: layer, index: 1), mamba2))
        }
        self.layers = layers
        batch = try PackedSequences(lengths: [])
    }

    /// Bytes of a sequence in all layers.
    var bytesPerSequence: Int { hybrid.states.bytesPerSlot }

    func currentBatch() -> PackedSequences { batch }

    subscript(layer: Int) -> Mamba2States { layers[layer] }

    /// Throws unless there is a slot for each of some sequences or checkpoints.
    func requireSlots(_ count: Int, _ argument: String = "sequenceCapacity") throws(SparseKernelsError) {
        let (used, all) = (hybrid.states.usedSlotCount, hybrid.states.capacity)
        guard used + count <= all else {
            throw SparseKernelsError(
                .capacityExceeded, argument,
                expected: "enough for \(used + count) sequences with tokens and checkpoints, which have recurrent states",
                actual: "\(all) with the capacity of checkpoints")
        }
    }

    /// Throws unless the last pass of a sequence has come to its end.
    func requireFinished(_ sequence: SessionSequence) throws(SparseKernelsError) {
        guard unfinished.contains(sequence) else { return }
        throw SparseKernelsError(
            .invalidArgument, "sequence",
            expected: "one whose last call did not fail, as recurrent states cannot go back but to a checkpoint or nothing",
            actual: "number \(sequence)")
    }

    func begin(_ segments: [PassSegment], _ names: [PagedKVCache.SequenceID]) throws(SparseKernelsError) {
        batch = try hybrid.states.batch(names, lengths: segments.map(\.count))
        pass = zip(segments, names).map { ($0.sequence, $1, $0.count) }
        unfinished.formUnion(segments.map(\.sequence))
    }

    func end() throws(SparseKernelsError) {
        for (sequence, name, count) in pass {
            try hybrid.advance(name, by: count)
            unfinished.remove(sequence)
        }
        pass = []
    }
}

/// Sequences of models with recurrent layers.
extension PagedSessionCache {
    func makeSequence(_ states: SessionStates) -> SessionSequence {
        let number = takeNumber()
        states.empty.insert(number)
        return number
    }

    func fork(
        _ sequence: SessionSequence, at length: Int?, _ states: SessionStates
    ) throws(SparseKernelsError) -> SessionSequence {
        if length == 0 || states.empty.contains(sequence) {
            let actual = try self.length(of: sequence)
            guard length ?? 0 == 0 || length == actual else { throw .unknownLength(length!, actual) }
            return makeSequence(states)
        }
        let name = try name(of: sequence)
        try states.requireFinished(sequence)
        try states.requireSlots(1)
        return add(try states.hybrid.fork(name, at: length))
    }

    func truncate(
        _ sequence: SessionSequence, to length: Int, _ states: SessionStates
    ) throws(SparseKernelsError) {
        if states.empty.contains(sequence) {
            guard length == 0 else { throw .unknownLength(length, 0) }
            return
        }
        let name = try name(of: sequence)
        if length == 0 {
            try free(sequence)
            states.empty.insert(sequence)
            return
        }
        // Without a checkpoint there, states that have taken tokens in stay as they are.
        if try !states.hybrid.checkpoints(of: name).contains(length) { try states.requireFinished(sequence) }
        try states.hybrid.truncate(name, to: length)
        states.unfinished.remove(sequence)
    }

    func forgetStates(of sequence: SessionSequence, _ states: SessionStates) {
        states.empty.remove(sequence)
        states.unfinished.remove(sequence)
    }

    func prepare(_ counts: [Int], for requests: [SessionSequence]) throws(SparseKernelsError) {
        guard let states else { return }
        var (fresh, names, tokens, freshPages): ([SessionSequence], [PagedKVCache.SequenceID], [Int], Int) = ([], [], [], 0)
        let pageSize = cache.configuration.pageSize
        for (sequence, count) in zip(requests, counts) where count > 0 {
            if states.empty.contains(sequence) {
                fresh.append(sequence)
                freshPages += (count - 1) / pageSize + 1
            } else {
                try states.requireFinished(sequence)
                names.append(try name(of: sequence))
                tokens.append(count)
            }
        }
        try states.requireSlots(fresh.count)
        let pages = try freshPages + cache.pagesNeeded(toAppend: tokens, to: names)
        guard pages <= cache.freePageCount else {
            throw SparseKernelsError(
                .capacityExceeded, "pageCapacity", expected: "\(pages) free pages", actual: "\(cache.freePageCount)")
        }
        for sequence in fresh {
            setName(try states.hybrid.makeSequence(), of: sequence)
            states.empty.remove(sequence)
        }
    }

    func checkpoint(_ sequence: SessionSequence) throws(SparseKernelsError) {
        guard let states, !states.empty.contains(sequence) else {
            _ = try length(of: sequence)
            return
        }
        let name = try name(of: sequence)
        try states.requireFinished(sequence)
        try states.requireSlots(1, "checkpointCapacity")
        try states.hybrid.checkpoint(name)
    }

    func removeCheckpoint(of sequence: SessionSequence, at length: Int) throws(SparseKernelsError) {
        guard let states, !states.empty.contains(sequence) else {
            _ = try self.length(of: sequence)
            return
        }
        try states.hybrid.removeCheckpoint(of: try name(of: sequence), at: length)
    }
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

    fileprivate static func unknownLength(_ length: Int, _ actual: Int) -> SparseKernelsError {
        SparseKernelsError(.invalidArgument, "length", expected: "0 or \(actual)", actual: "\(length)")
    }
}
