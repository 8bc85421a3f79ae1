// Saves a cache as a safetensors file. Docs/Operators/PagedKVCache.md describes the schema.

extension PagedKVCache {
    /// Names of tensors and metadata in a file. Tensors of pages have the names of `KVSection.Kind`.
    enum FileName {
        static let format = "format"
        static let formatValue = "sparsekernels.pagedKVCache"
        static let version = "version"
        static let versionValue = "2"
        static let generations = "generations"
        static let lengths = "lengths"
        static let tableOffsets = "tableOffsets"
        static let tables = "tables"
    }

    /// Writes the cache to `path` in one step: an existing file is either replaced by the complete new one or left as it is.
    ///
    /// Each used page is written once. Sequences still share pages after `init(contentsOf:)`, and keep their names. Pages are
    /// written whole, as they are in memory: after the last token of a sequence there may be data of an earlier one.
    /// - Parameter path: the path of the file.
    /// - Throws: `.inputOutput`.
    /// - Complexity: O(used pages); nothing of their size is copied in memory.
    public func save(to path: String) throws(SparseKernelsError) { try safetensors().write(to: path) }

    /// The cache as the contents of a file. Pages are read from this cache when the file is written.
    func safetensors() throws(SparseKernelsError) -> SafetensorsWriter {
        var writer = SafetensorsWriter(metadata: configuration.fileMetadata)
        writer.metadata[FileName.format] = FileName.formatValue
        writer.metadata[FileName.version] = FileName.versionValue

        let used = pages.referenceCounts.indices.filter { pages.referenceCounts[$0] > 0 }
        var position = [Int32](repeating: CachedSequence.hole, count: pages.referenceCounts.count)
        for (i, page) in used.enumerated() { position[page] = Int32(i) }
        var (tables, offsets, lengths): ([Int32], [Int64], [Int64]) = ([], [0], [])
        for sequence in table.entries {
            for page in sequence.pages { tables.append(page == CachedSequence.hole ? page : position[Int(page)]) }
            offsets.append(Int64(tables.count))
            // An entry without a sequence has no lengths.
            for layer in 0..<configuration.layers {
                lengths.append(sequence.lengths.isEmpty ? 0 : Int64(sequence.lengths[layer]))
            }
        }
        let count = table.entries.count
        try writer.add(FileName.generations, Tensor([count], table.generations))
        try writer.add(FileName.lengths, Tensor([count, configuration.layers], lengths))
        try writer.add(FileName.tableOffsets, Tensor([count + 1], offsets))
        try writer.add(FileName.tables, Tensor([tables.count], tables))
        for section in storage.sections { try add(section, of: used, to: &writer) }
        return writer
    }

    /// Adds the used pages of a section, `[layers, kvHeads, pages, bytes of a page]`.
    private func add(
        _ section: KVSection, of used: [Int], to writer: inout SafetensorsWriter
    ) throws(SparseKernelsError) {
        // The closure runs while the caller is in `save`, which reads the cache like other readers, and keeps the memory alive.
        nonisolated(unsafe) let storage = storage
        let (layers, heads) = (configuration.layers, configuration.kvHeads)
        let runs = adjacentRuns(used)
        try writer.add(
            section.kind.rawValue, elementType: .uint8, shape: [layers, heads, used.count, section.bytesPerPage]
        ) { sink throws(SparseKernelsError) in
            for layer in 0..<layers {
                for head in 0..<heads {
                    for run in runs {
                        let start = storage.page(run.lowerBound, of: section, layer: layer, head: head)
                        let bytes = UnsafeRawBufferPointer(start: start, count: run.count * section.bytesPerPage)
                        try sink(RawSpan(_unsafeBytes: bytes))
                    }
                }
            }
        }
    }
}

/// Joins ascending numbers into ranges.
private func adjacentRuns(_ numbers: [Int]) -> [Range<Int>] {
    var runs: [Range<Int>] = []
    for number in numbers {
        if let last = runs.last, last.upperBound == number {
            runs[runs.count - 1] = last.lowerBound..<number + 1
        } else {
            runs.append(number..<number + 1)
        }
    }
    return runs
}

extension KVCacheConfiguration {
    private enum Name {
        static let layers = "layers"
        static let kvHeads = "kvHeads"
        static let headDim = "headDim"
        static let valueDim = "valueDim"
        static let pageSize = "pageSize"
        static let pageCapacity = "pageCapacity"
        static let keyFormat = "keyFormat"
        static let valueFormat = "valueFormat"
        static let quantization = "quantization"
        static let keyEstimates = "keyEstimates"
        // These are absent without page metadata.
        static let metadataKind = "metadataKind"
        static let metadataFormat = "metadataFormat"
        static let logicalPageSize = "logicalPageSize"
    }

    fileprivate var fileMetadata: [String: String] {
        var entries = [
            Name.layers: "\(layers)", Name.kvHeads: "\(kvHeads)", Name.headDim: "\(headDim)", Name.valueDim: "\(valueDim)",
            Name.pageSize: "\(pageSize)", Name.pageCapacity: "\(pageCapacity)", Name.keyFormat: keyFormat.rawValue,
            Name.valueFormat: valueFormat.rawValue, Name.quantization: quantization.rawValue,
            Name.keyEstimates: "\(keepsKeyEstimates)",
        ]
        if let metadata {
            entries[Name.metadataKind] = metadata.kind.rawValue
            entries[Name.metadataFormat] = metadata.format.rawValue
            entries[Name.logicalPageSize] = "\(metadata.logicalPageSize)"
        }
        return entries
    }

    /// Reads the entries that `fileMetadata` has written.
    /// - Parameter pageCapacity: replaces the capacity in the file.
    /// - Throws: `.notFound`, `.malformedFile`, and the errors of the other initialiser for `pageCapacity`.
    init(_ file: SafetensorsFile, pageCapacity: Int?) throws(SparseKernelsError) {
        func choice<Value: RawRepresentable<String> & CaseIterable>(
            _ key: String, _ type: Value.Type
        ) throws(SparseKernelsError) -> Value {
            let text = try file.text(key)
            if let value = Value(rawValue: text) { return value }
            let choices = Value.allCases.map(\.rawValue).joined(separator: ", ")
            throw SparseKernelsError(
                .malformedFile, "\(file.name), metadata \(quoted(key))", expected: "one of \(choices)", actual: quoted(text))
        }
        let (layers, kvHeads) = (try file.integer(Name.layers), try file.integer(Name.kvHeads))
        let (headDim, valueDim) = (try file.integer(Name.headDim), try file.integer(Name.valueDim))
        let pageSize = try file.integer(Name.pageSize)
        let savedCapacity = try file.integer(Name.pageCapacity)
        let keyFormat = try choice(Name.keyFormat, KVFormat.self)
        let valueFormat = try choice(Name.valueFormat, KVFormat.self)
        let quantization = try choice(Name.quantization, KVQuantization.self)
        let estimates = try file.text(Name.keyEstimates)
        try file.requireMetadata(
            estimates == "true" || estimates == "false", Name.keyEstimates, expected: "\"true\" or \"false\"",
            actual: quoted(estimates))
        var metadata: PageMetadata?
        if file.metadata[Name.metadataKind] != nil {
            metadata = PageMetadata(
                try choice(Name.metadataKind, PageMetadata.Kind.self), logicalPageSize: try file.integer(Name.logicalPageSize),
                format: try choice(Name.metadataFormat, KVFormat.self))
        }
        func make(_ pageCapacity: Int) throws(SparseKernelsError) -> KVCacheConfiguration {
            try KVCacheConfiguration(
                layers: layers, kvHeads: kvHeads, headDim: headDim, valueDim: valueDim, pageSize: pageSize,
                pageCapacity: pageCapacity, format: keyFormat, valueFormat: valueFormat, quantization: quantization,
                metadata: metadata, keepsKeyEstimates: estimates == "true")
        }
        let saved = try file.validated { () throws(SparseKernelsError) in try make(savedCapacity) }
        if let pageCapacity { self = try make(pageCapacity) } else { self = saved }
    }
}
