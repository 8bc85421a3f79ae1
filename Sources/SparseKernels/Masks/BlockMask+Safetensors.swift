extension BlockMask {
    /// Names of tensors and metadata in a file. Docs/Operators/BlockMask.md has the schema.
    private enum Name {
        static let format = "format"
        static let formatValue = "sparsekernels.blockMask"
        static let version = "version"
        static let versionValue = "1"
        static let heads = "heads"
        static let causal = "causal"
        static let rowOffsets = "rowOffsets"
        static let columnIndices = "columnIndices"
        // The names of one axis, which follow `query` or `key`.
        static let length = "Length"
        static let blockSize = "BlockSize"
        static let sizes = "Sizes"
    }

    // MARK: - Writing

    /// Writes the mask to `path` in one step: an existing file is either replaced by the complete new one or left as it is.
    /// - Throws: `.inputOutput`.
    public func write(to path: String) throws(SparseKernelsError) { try safetensors().write(to: path) }

    /// The mask as the contents of a safetensors file, to which other tensors and metadata may be added.
    /// - Throws: the errors of the writer, none of which occur in practice.
    public func safetensors() throws(SparseKernelsError) -> SafetensorsWriter {
        var writer = SafetensorsWriter(metadata: [
            Name.format: Name.formatValue, Name.version: Name.versionValue, Name.heads: "\(heads)",
            Name.causal: "\(grid.isCausal)",
        ])
        for (axis, partition) in [("query", grid.query), ("key", grid.key)] {
            if let blockSize = partition.blockSize {
                writer.metadata[axis + Name.length] = "\(partition.length)"
                writer.metadata[axis + Name.blockSize] = "\(blockSize)"
            } else {
                try writer.add(axis + Name.sizes, Tensor([partition.count], partition.sizes.map { Int64($0) }))
            }
        }
        try writer.add(Name.rowOffsets, Tensor([rowOffsets.count], rowOffsets.map { Int64($0) }))
        try writer.add(Name.columnIndices, Tensor([columnIndices.count], columnIndices))
        return writer
    }

    // MARK: - Reading

    /// Reads a mask that ``write(to:)`` has written to `path`.
    /// - Throws: `.inputOutput` when the file cannot be read, and the errors of `init(_:)`.
    public init(path: String) throws(SparseKernelsError) { try self.init(SafetensorsFile(path: path)) }

    /// Reads the mask of a file, which may have other tensors as well.
    /// - Throws: `.malformedFile` when the file has another format or version, or its contents are not a mask; `.notFound` for
    ///   a missing tensor or metadata entry; `.invalidElementType` for a tensor of another type.
    /// - Complexity: O(rows + kept blocks), which is proportional to the tensors, whatever the metadata say.
    public init(_ file: SafetensorsFile) throws(SparseKernelsError) {
        for (key, value) in [(Name.format, Name.formatValue), (Name.version, Name.versionValue)] {
            let text = try file.text(key)
            try file.requireMetadata(text == value, key, expected: quoted(value), actual: quoted(text))
        }
        let heads = try file.integer(Name.heads)
        let causal = try file.text(Name.causal)
        try file.requireMetadata(
            causal == "true" || causal == "false", Name.causal, expected: "\"true\" or \"false\"", actual: quoted(causal))
        let query = try Self.partition("query", in: file)
        let key = try Self.partition("key", in: file)
        let rowOffsets = try file.vector(Name.rowOffsets, as: Int64.self).map { Int($0) }
        let columnIndices = try file.vector(Name.columnIndices, as: Int32.self)
        self = try file.validated { () throws(SparseKernelsError) in
            let grid = try BlockGrid(query: query, key: key, isCausal: causal == "true")
            return try BlockMask(grid: grid, heads: heads, rowOffsets: rowOffsets, columnIndices: columnIndices)
        }
    }

    private static func partition(_ axis: String, in file: SafetensorsFile) throws(SparseKernelsError) -> BlockPartition {
        if file[axis + Name.sizes] != nil {
            for name in [axis + Name.length, axis + Name.blockSize] {
                try file.requireMetadata(
                    file.metadata[name] == nil, name, expected: "absent beside the tensor \(axis + Name.sizes)",
                    actual: quoted(file.metadata[name] ?? ""))
            }
            let sizes = try file.vector(axis + Name.sizes, as: Int64.self).map { Int($0) }
            return try file.validated { () throws(SparseKernelsError) in try BlockPartition(sizes: sizes) }
        }
        let length = try file.integer(axis + Name.length)
        let blockSize = try file.integer(axis + Name.blockSize)
        return try file.validated { () throws(SparseKernelsError) in
            try BlockPartition(length: length, blockSize: blockSize)
        }
    }
}
