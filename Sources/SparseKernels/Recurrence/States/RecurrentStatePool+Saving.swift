// Saves states as a safetensors file. Docs/Operators/RecurrentStates.md describes the schema.

extension RecurrentStatePool {
    /// Names of tensors and metadata in a file. They do not meet those of a `PagedKVCache`, which may be in the same file.
    enum FileName {
        static let version = "recurrent.version"
        static let versionValue = "1"
        static let layers = "recurrent.layers"
        static let capacity = "recurrent.capacity"
        static let generations = "recurrent.generations"
        static let names = "recurrent.names"
        static let lengths = "recurrent.lengths"
        static let slots = "recurrent.slots"
        static let checkpointOffsets = "recurrent.checkpointOffsets"
        static let checkpoints = "recurrent.checkpoints"

        static func states(_ layer: Int, _ index: Int) -> String { "recurrent.states.\(layer).\(index)" }
    }

    /// Writes all sequences and checkpoints to `path` in one step: an existing file is either replaced by the complete new one or left
    /// as it is.
    ///
    /// Each used slot is written once. Sequences keep their names, and the checkpoints that they share.
    /// - Parameter path: the path of the file.
    /// - Throws: `.inputOutput`.
    /// - Complexity: O(used slots); nothing of their size is copied in memory.
    public func save(to path: String) throws(SparseKernelsError) {
        var writer = SafetensorsWriter()
        try add(sequences, to: &writer)
        try writer.write(to: path)
    }

    /// Writes one sequence and its checkpoints to `path`, as ``save(to:)`` does. ``restore(contentsOf:)`` reads it into any pool of the
    /// same layers.
    /// - Throws: `.unknownSequence`, `.inputOutput`.
    public func save(_ sequence: SequenceID, to path: String) throws(SparseKernelsError) {
        _ = try stored(sequence)
        var writer = SafetensorsWriter()
        try add([sequence], to: &writer)
        try writer.write(to: path)
    }

    /// Adds sequences to a file. Slots are read from this pool when the file is written.
    func add(_ sequences: [SequenceID], to writer: inout SafetensorsWriter) throws(SparseKernelsError) {
        writer.metadata[FileName.version] = FileName.versionValue
        writer.metadata[FileName.capacity] = "\(capacity)"
        writer.metadata[FileName.layers] = layers.map { $0.map(\.text).joined(separator: ",") + ";" }.joined()
        // The same pool gives the same bytes.
        let sequences = sequences.sorted { ($0.index, $0.generation) < ($1.index, $1.generation) }
        var used: [Int] = []
        var position: [Int32: Int64] = [:]
        func place(_ slot: Int32) -> Int64 {
            if let known = position[slot] { return known }
            position[slot] = Int64(used.count)
            used.append(Int(slot))
            return Int64(used.count - 1)
        }
        var (identities, lengths, places): ([UInt32], [Int64], [Int64]) = ([], [], [])
        var (offsets, checkpoints): ([Int64], [Int64]) = ([0], [])
        for name in sequences {
            let stored = try stored(name)
            identities += [UInt32(bitPattern: name.index), name.generation]
            lengths.append(Int64(stored.length))
            places.append(place(stored.slot))
            for checkpoint in stored.checkpoints { checkpoints += [Int64(checkpoint.length), place(checkpoint.slot)] }
            offsets.append(Int64(checkpoints.count / 2))
        }
        // Sequences that are not in the file were freed, as far as the file goes.
        let saved = Set(sequences.map(\.index))
        let generations = names.generations.enumerated().map { index, generation in
            saved.contains(Int32(index)) ? generation : generation &+ generation % 2
        }
        try writer.add(FileName.generations, Tensor([generations.count], generations))
        try writer.add(FileName.names, Tensor([sequences.count, 2], identities))
        try writer.add(FileName.lengths, Tensor([sequences.count], lengths))
        try writer.add(FileName.slots, Tensor([sequences.count], places))
        try writer.add(FileName.checkpointOffsets, Tensor([sequences.count + 1], offsets))
        try writer.add(FileName.checkpoints, Tensor([checkpoints.count / 2, 2], checkpoints))
        for (layer, own) in states.enumerated() {
            for (index, state) in own.enumerated() {
                // The closure runs while the caller is in `save`, which reads the pool like other readers, and keeps the memory alive.
                nonisolated(unsafe) let state = state
                let slots = used
                try writer.add(
                    FileName.states(layer, index), elementType: state.format == .float32 ? .float32 : .bfloat16,
                    shape: [slots.count, state.heads, state.rows, state.columns]
                ) { sink throws(SparseKernelsError) in
                    for slot in slots {
                        let bytes = UnsafeRawBufferPointer(start: state.address(of: slot), count: state.bytesPerSlot)
                        try sink(RawSpan(_unsafeBytes: bytes))
                    }
                }
            }
        }
    }
}
