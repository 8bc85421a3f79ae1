extension RecurrentStatePool {
    /// Reads a pool that ``save(to:)`` has written to `path`.
    ///
    /// - Parameters:
    ///   - path: the path of the file.
    ///   - capacity: slots of the new pool, at least as many as the file has; nil means as many as the saved pool had.
    /// - Throws: `.inputOutput` when the file cannot be read, and the errors of `init(_:capacity:)`.
    public convenience init(contentsOf path: String, capacity: Int? = nil) throws(SparseKernelsError) {
        try self.init(SafetensorsFile(path: path), capacity: capacity)
    }

    /// Reads a saved pool from an open file.
    ///
    /// All numbers are checked: lengths, slots, and which of them are shared. Elements of states may be anything.
    ///
    /// - Parameters:
    ///   - file: the file with the saved pool. It may have other tensors as well.
    ///   - capacity: slots of the new pool. Memory is reserved for this number, not for the size of the file.
    /// - Throws: `.malformedFile` when the file has another version, or its contents are not a pool; `.notFound` for a missing tensor or
    ///   metadata entry; `.invalidElementType` for a tensor of another type; `.capacityExceeded` when `capacity` is smaller than the
    ///   slots of the file, or the system refuses the address space.
    public convenience init(_ file: SafetensorsFile, capacity: Int? = nil) throws(SparseKernelsError) {
        let saved = try SavedStates(file)
        let slots = capacity ?? saved.capacity
        try require(
            saved.referenceCounts.count <= slots, capacity == nil ? .malformedFile : .capacityExceeded,
            capacity == nil ? "\(file.name), metadata \(quoted(FileName.capacity))" : "capacity",
            expected: "at least the \(saved.referenceCounts.count) slots of the file", actual: "\(slots)")
        let table = SequenceTable(
            entries: saved.generations.map { _ in CachedSequence(pages: [], lengths: []) }, generations: saved.generations)
        do throws(SparseKernelsError) {
            try self.init(
                layers: saved.layers, slots: PagePool(capacity: slots, referenceCounts: saved.referenceCounts), names: table)
        } catch {
            // Extents are the file's; the capacity and what the system refuses may be the caller's.
            if error.code == .capacityExceeded || error.argument == "capacity" { throw error }
            throw SparseKernelsError(
                .malformedFile, "\(file.name), \(error.argument)", expected: error.expected, actual: error.actual)
        }
        sequencesByName = Dictionary(uniqueKeysWithValues: zip(saved.names, saved.sequences))
        try readStates(from: file, count: saved.referenceCounts.count) { Int32($0) }
    }

    /// Adds the one sequence of a file, which ``save(_:to:)`` has written, with its checkpoints and under a new name.
    ///
    /// - Parameter path: the path of the file. Its layers are those of this pool.
    /// - Returns: the name of the sequence in this pool.
    /// - Throws: `.inputOutput`; `.malformedFile`, `.notFound` and `.invalidElementType` for a file that is damaged, has other layers or
    ///   not one sequence; `.capacityExceeded` without enough free slots. Nothing changes then.
    public func restore(contentsOf path: String) throws(SparseKernelsError) -> SequenceID {
        let file = try SafetensorsFile(path: path)
        let saved = try SavedStates(file)
        try file.requireMetadata(
            saved.layers == layers, FileName.layers, expected: "the \(layers.count) layers of the pool", actual: "others")
        try file.requireTensor(
            saved.sequences.count == 1, FileName.names, expected: "one sequence", actual: "\(saved.sequences.count)")
        let count = saved.referenceCounts.count
        try requireStates(in: file, count: count)
        try requireFreeSlots(count)
        let taken = (0..<count).map { _ in slots.take() }
        try readStates(from: file, count: count) { taken[$0] }
        var sequence = saved.sequences[0]
        sequence.slot = taken[Int(sequence.slot)]
        sequence.checkpoints = sequence.checkpoints.map { ($0.length, taken[Int($0.slot)]) }
        let name = makeName()
        sequencesByName[name] = sequence
        return name
    }

    /// Throws unless the file has the states of `count` slots in every layer.
    private func requireStates(in file: SafetensorsFile, count: Int) throws(SparseKernelsError) {
        for (layer, own) in states.enumerated() {
            for (index, state) in own.enumerated() {
                let name = FileName.states(layer, index)
                let entry = try file.entry(named: name)
                let type = state.format == .float32 ? ElementType.float32 : .bfloat16
                let shape = [count, state.heads, state.rows, state.columns]
                try file.requireTensor(
                    entry.elementType == type && entry.shape == shape, name, expected: "\(type.rawValue) \(shape)",
                    actual: "\(entry.elementType.rawValue) \(abbreviated(entry.shape))")
            }
        }
    }

    /// Reads the states of the slots of a file to slots of the pool.
    private func readStates(
        from file: SafetensorsFile, count: Int, into slot: (Int) -> Int32
    ) throws(SparseKernelsError) {
        try requireStates(in: file, count: count)
        if count == 0 { return }
        for (layer, own) in states.enumerated() {
            for (index, state) in own.enumerated() where state.bytesPerSlot > 0 {
                try file.bytes(FileName.states(layer, index)).withUnsafeBytes { source in
                    for place in 0..<count {
                        state.address(of: Int(slot(place))).copyMemory(
                            from: source.baseAddress! + place * state.bytesPerSlot, byteCount: state.bytesPerSlot)
                    }
                }
            }
        }
    }
}

/// The sequences of a file, checked for consistency.
///
/// Every slot from 0 up belongs to one sequence, or is a checkpoint of one length for one or more sequences. Checkpoints of a sequence
/// ascend up to its length.
private struct SavedStates {
    let layers: [[RecurrentStateShape]]
    let capacity: Int
    /// Empty, or the generation of every index: odd for those that have a name.
    let generations: [UInt32]
    private(set) var names: [RecurrentStatePool.SequenceID] = []
    private(set) var sequences: [RecurrentStatePool.StoredSequence] = []
    private(set) var referenceCounts: [Int32] = []

    /// - Complexity: O(elements of the tensors), whatever their values.
    init(_ file: SafetensorsFile) throws(SparseKernelsError) {
        typealias Name = RecurrentStatePool.FileName
        let version = try file.text(Name.version)
        try file.requireMetadata(
            version == Name.versionValue, Name.version, expected: quoted(Name.versionValue), actual: quoted(version))
        layers = try Self.layers(file)
        capacity = try file.integer(Name.capacity)
        try file.requireMetadata(
            capacity >= 0 && capacity <= Int(Int32.max), Name.capacity, expected: "from 0 to \(Int32.max)",
            actual: "\(capacity)")
        generations = try file.vector(Name.generations, as: UInt32.self)
        let identities = try file.tensor(Name.names, as: UInt32.self)
        let lengths = try file.vector(Name.lengths, as: Int64.self)
        let count = lengths.count
        try file.requireTensor(
            identities.shape == [count, 2] && count <= Int(Int32.max), Name.names, expected: "\([count, 2])",
            actual: abbreviated(identities.shape))
        let places = try file.vector(Name.slots, as: Int64.self)
        try file.requireTensor(places.count == count, Name.slots, expected: "\([count])", actual: "\([places.count])")
        let offsets = try file.vector(Name.checkpointOffsets, as: Int64.self)
        let checkpoints = try file.tensor(Name.checkpoints, as: Int64.self)
        try file.requireTensor(
            checkpoints.shape.count == 2 && checkpoints.shape[1] == 2, Name.checkpoints, expected: "[checkpoints, 2]",
            actual: abbreviated(checkpoints.shape))
        let total = checkpoints.shape[0]
        let ascends = zip(offsets, offsets.dropFirst()).allSatisfy { $0 <= $1 }
        try file.requireTensor(
            offsets.count == count + 1 && offsets.first == 0 && offsets.last == Int64(total) && ascends,
            Name.checkpointOffsets, expected: "\(count + 1) ascending numbers from 0 to \(total)", actual: "others")

        // The length of the checkpoint in a slot; −1 for the present states of a sequence.
        var lengthsOfSlots: [Int64: Int64] = [:]
        var counts: [Int64: Int32] = [:]
        let pairs = checkpoints.elements
        for index in 0..<count {
            let (length, place) = (lengths[index], places[index])
            try file.requireTensor(
                length >= 0 && place >= 0 && place <= Int64(Int32.max) && lengthsOfSlots.updateValue(-1, forKey: place) == nil,
                Name.slots, expected: "slots of one sequence, and lengths of 0 or more",
                actual: "slot \(place) and length \(length) of sequence \(index)")
            counts[place] = 1
            var own: [(length: Int, slot: Int32)] = []
            for checkpoint in Int(offsets[index])..<Int(offsets[index + 1]) {
                let (at, slot) = (pairs[2 * checkpoint], pairs[2 * checkpoint + 1])
                let known = lengthsOfSlots[slot]
                try file.requireTensor(
                    at >= 0 && at <= length && at > Int64(own.last?.length ?? -1) && slot >= 0 && slot <= Int64(Int32.max)
                        && (known == nil || known == at),
                    Name.checkpoints, expected: "ascending lengths up to \(length), in slots of one length",
                    actual: "length \(at) in slot \(slot) of sequence \(index)")
                lengthsOfSlots[slot] = at
                counts[slot, default: 0] += 1
                own.append((Int(at), Int32(slot)))
            }
            sequences.append(.init(slot: Int32(place), length: Int(length), checkpoints: own))
            let name = RecurrentStatePool.SequenceID(
                index: Int32(bitPattern: identities[index, 0]), generation: identities[index, 1])
            names.append(name)
        }
        // Without gaps, the largest slot is one less than there are.
        try file.requireTensor(
            (counts.keys.max() ?? -1) + 1 == Int64(counts.count), Name.slots, expected: "slots from 0 up without gaps",
            actual: "others")
        referenceCounts = (0..<counts.count).map { counts[Int64($0)]! }
        try requireNames(file)
    }

    /// Names differ, and are those that the generations allow.
    private func requireNames(_ file: SafetensorsFile) throws(SparseKernelsError) {
        let areNames = names.allSatisfy { $0.index >= 0 && $0.generation % 2 == 1 }
        try file.requireTensor(
            areNames && Set(names).count == names.count, RecurrentStatePool.FileName.names,
            expected: "names of different sequences", actual: "others")
        if generations.isEmpty { return }
        let odd = generations.reduce(0) { $0 + Int($1 % 2) }
        let areKnown =
            odd == names.count
            && names.allSatisfy {
                generations.indices.contains(Int($0.index)) && generations[Int($0.index)] == $0.generation
            }
        try file.requireTensor(
            areKnown, RecurrentStatePool.FileName.generations, expected: "the generations of the names", actual: "others")
    }

    private static func layers(_ file: SafetensorsFile) throws(SparseKernelsError) -> [[RecurrentStateShape]] {
        let text = try file.text(RecurrentStatePool.FileName.layers)
        var layers: [[RecurrentStateShape]] = []
        try file.requireMetadata(
            text.isEmpty || text.hasSuffix(";"), RecurrentStatePool.FileName.layers, expected: "layers that end with \";\"",
            actual: quoted(text))
        for layer in text.split(separator: ";", omittingEmptySubsequences: false).dropLast() {
            var shapes: [RecurrentStateShape] = []
            for part in layer.split(separator: ",", omittingEmptySubsequences: false) where !layer.isEmpty {
                let shape = RecurrentStateShape(part)
                try file.requireMetadata(
                    shape != nil, RecurrentStatePool.FileName.layers, expected: "heads, rows, columns and format of each state",
                    actual: quoted(String(part)))
                shapes.append(shape!)
            }
            layers.append(shapes)
        }
        return layers
    }
}
