// Saves both parts of a hybrid cache as one safetensors file. Docs/Operators/RecurrentStates.md describes the schema.

extension HybridCache {
    private enum FileName {
        static let attention = "hybrid.attention"
    }

    /// Writes all sequences, pages, states and checkpoints to `path` in one step: an existing file is either replaced by the complete
    /// new one or left as it is.
    ///
    /// The file is also one of ``PagedKVCache`` and of ``RecurrentStatePool``, which read their parts.
    /// - Parameter path: the path of the file.
    /// - Throws: `.inputOutput`.
    public func save(to path: String) throws(SparseKernelsError) {
        var writer = try attention?.safetensors() ?? SafetensorsWriter()
        writer.metadata[FileName.attention] = attention == nil ? "false" : "true"
        try states.add(sequences, to: &writer)
        try writer.write(to: path)
    }

    /// Reads a cache that ``save(to:)`` has written. Sequences keep their names.
    ///
    /// - Parameters:
    ///   - path: the path of the file.
    ///   - pageCapacity: pages of the new cache; nil means as many as the saved one had.
    ///   - stateCapacity: slots of the new cache; nil means as many as the saved one had.
    ///   - instructionSet: the level of the kernels of the pages.
    /// - Throws: `.inputOutput` when the file cannot be read; `.malformedFile` when the parts do not have the same sequences; the errors
    ///   of ``PagedKVCache`` and ``RecurrentStatePool`` for their parts.
    public convenience init(
        contentsOf path: String, pageCapacity: Int? = nil, stateCapacity: Int? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let file = try SafetensorsFile(path: path)
        let hasAttention = try file.text(FileName.attention)
        try file.requireMetadata(
            hasAttention == "true" || hasAttention == "false", FileName.attention, expected: "\"true\" or \"false\"",
            actual: quoted(hasAttention))
        let states = try RecurrentStatePool(file, capacity: stateCapacity)
        var attention: PagedKVCache?
        if hasAttention == "true" {
            attention = try PagedKVCache(file, pageCapacity: pageCapacity, instructionSet: instructionSet)
        }
        let names = Set(attention?.sequences ?? states.sequences)
        try file.requireTensor(
            // Names come from one of the parts only.
            names == Set(states.sequences) && (attention == nil || states.names.generations.isEmpty),
            RecurrentStatePool.FileName.names, expected: "the sequences of the attention layers", actual: "others")
        self.init(attention, states)
    }
}
