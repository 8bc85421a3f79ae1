extension PagedKVCache {
    /// Reads a cache that ``save(to:)`` has written to `path`.
    ///
    /// - Parameters:
    ///   - path: the path of the file.
    ///   - pageCapacity: pages of the new cache, at least as many as the file has; nil means as many as the saved cache had.
    ///     Memory is reserved for this number, not for the size of the file.
    ///   - instructionSet: the level of the kernels, as for a new cache. The cache may have been saved with another one.
    /// - Throws: `.inputOutput` when the file cannot be read, and the errors of `init(_:pageCapacity:instructionSet:)`.
    public convenience init(
        contentsOf path: String, pageCapacity: Int? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try self.init(SafetensorsFile(path: path), pageCapacity: pageCapacity, instructionSet: instructionSet)
    }

    /// Reads a saved cache from an open file.
    ///
    /// All numbers are checked: lengths, tables, and which pages are shared. The contents of pages are not, so a damaged file
    /// can give wrong keys and values, but no crash.
    ///
    /// - Parameters:
    ///   - file: the file with the saved cache. It may have other tensors as well.
    ///   - pageCapacity: pages of the new cache. See `init(contentsOf:pageCapacity:instructionSet:)`.
    ///   - instructionSet: the level of the kernels, as for a new cache.
    /// - Throws: `.malformedFile` when the file has another format or version, or its contents are not a cache; `.notFound` for
    ///   a missing tensor or metadata entry; `.invalidElementType` for a tensor of another type; `.capacityExceeded` when
    ///   `pageCapacity` is smaller than the pages of the file, or the system refuses the address space;
    ///   `.unsupportedInstructionSet`.
    public convenience init(
        _ file: SafetensorsFile, pageCapacity: Int? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let kernels = try InstructionSet.resolve(instructionSet).kernels
        for (key, value) in [(FileName.format, FileName.formatValue), (FileName.version, FileName.versionValue)] {
            let text = try file.text(key)
            try file.requireMetadata(text == value, key, expected: quoted(value), actual: quoted(text))
        }
        let configuration = try KVCacheConfiguration(file, pageCapacity: pageCapacity)
        let saved = try SavedSequences(file, layers: configuration.layers, pageSize: configuration.pageSize)
        let used = saved.referenceCounts.count
        try require(
            used <= configuration.pageCapacity, pageCapacity == nil ? .malformedFile : .capacityExceeded,
            pageCapacity == nil ? "\(file.name), metadata \"pageCapacity\"" : "pageCapacity",
            expected: "at least the \(used) pages of the file", actual: "\(configuration.pageCapacity)")
        try self.init(
            configuration, kernels: kernels,
            pages: PagePool(capacity: configuration.pageCapacity, referenceCounts: saved.referenceCounts),
            table: SequenceTable(entries: saved.entries, generations: saved.generations))
        for section in storage.sections { try read(section, pages: used, from: file) }
    }

    /// Reads the first pages of a section.
    private func read(_ section: KVSection, pages: Int, from file: SafetensorsFile) throws(SparseKernelsError) {
        let name = section.kind.rawValue
        let entry = try file.entry(named: name)
        let (layers, heads) = (configuration.layers, configuration.kvHeads)
        let shape = [layers, heads, pages, section.bytesPerPage]
        try file.requireTensor(
            entry.elementType == .uint8 && entry.shape == shape, name, expected: "U8 \(shape)",
            actual: "\(entry.elementType.rawValue) \(abbreviated(entry.shape))")
        // Without pages, a large number of heads that the file claims costs nothing.
        if pages == 0 { return }
        let byteCount = pages * section.bytesPerPage
        try file.bytes(name).withUnsafeBytes { source in
            for layer in 0..<layers {
                for head in 0..<heads {
                    storage.page(0, of: section, layer: layer, head: head).copyMemory(
                        from: source.baseAddress! + (layer * heads + head) * byteCount, byteCount: byteCount)
                }
            }
        }
    }
}

/// The sequences of a file, checked for consistency.
///
/// Every page from 0 up is in a table, at the same position in each table that has it, and therefore at most once in each. A
/// table is as long as its longest layer needs. Only pages that are full in every layer were discarded. Entries without a
/// sequence are empty.
private struct SavedSequences {
    var entries: [CachedSequence] = []
    let generations: [UInt32]
    private(set) var referenceCounts: [Int32] = []
    /// The position of each page in the tables that have it; −1 while it is in none.
    private var positions: [Int] = []

    /// - Complexity: O(elements of the tensors), whatever their values.
    init(_ file: SafetensorsFile, layers: Int, pageSize: Int) throws(SparseKernelsError) {
        typealias Name = PagedKVCache.FileName
        generations = try file.vector(Name.generations, as: UInt32.self)
        let count = generations.count
        try file.requireTensor(
            count <= Int(Int32.max), Name.generations, expected: "fewer than 2³¹ sequences", actual: "\(count)")
        let lengths = try file.tensor(Name.lengths, as: Int64.self)
        try file.requireTensor(
            lengths.shape == [count, layers], Name.lengths, expected: "\([count, layers])",
            actual: abbreviated(lengths.shape))
        let offsets = try file.vector(Name.tableOffsets, as: Int64.self)
        let tables = try file.vector(Name.tables, as: Int32.self)
        let ascends = zip(offsets, offsets.dropFirst()).allSatisfy { $0 <= $1 }
        try file.requireTensor(
            offsets.count == count + 1 && offsets.first == 0 && offsets.last == Int64(tables.count) && ascends,
            Name.tableOffsets, expected: "\(count + 1) ascending numbers from 0 to \(tables.count)", actual: "others")

        let used = (tables.max().map { Int($0) } ?? -1) + 1
        let listed = tables.reduce(0) { $0 + ($1 == CachedSequence.hole ? 0 : 1) }
        // Otherwise a page is in no table, or a page number is below −1.
        try file.requireTensor(
            used <= listed && tables.allSatisfy { $0 >= CachedSequence.hole }, Name.tables,
            expected: "page numbers from 0 up without gaps, or −1", actual: "others")
        referenceCounts = Array(repeating: 0, count: used)
        positions = Array(repeating: -1, count: used)

        let allLengths = lengths.elements
        entries.reserveCapacity(count)
        for index in 0..<count {
            let own = allLengths[index * layers..<(index + 1) * layers].map { Int($0) }
            let pages = Array(tables[Int(offsets[index])..<Int(offsets[index + 1])])
            let sequence = CachedSequence(pages: pages, lengths: own)
            try check(sequence, at: index, pageSize: pageSize, in: file)
            entries.append(generations[index] % 2 == 1 ? sequence : CachedSequence(pages: [], lengths: []))
        }
        let lost = referenceCounts.firstIndex(of: 0)
        try file.requireTensor(
            lost == nil, Name.tables, expected: "every page in a table", actual: "page \(lost ?? 0) in none")
    }

    /// Checks a sequence and counts its pages.
    private mutating func check(
        _ sequence: CachedSequence, at index: Int, pageSize: Int, in file: SafetensorsFile
    ) throws(SparseKernelsError) {
        typealias Name = PagedKVCache.FileName
        let exists = generations[index] % 2 == 1
        try file.requireTensor(
            sequence.shortest >= 0 && (exists || sequence.longest == 0), Name.lengths,
            expected: exists ? "0 or more" : "0 where there is no sequence",
            actual: "\(abbreviated(sequence.lengths)) of sequence \(index)")
        let needed = sequence.longest / pageSize + (sequence.longest % pageSize == 0 ? 0 : 1)
        try file.requireTensor(
            sequence.pages.count == needed, Name.tableOffsets,
            expected: "\(needed) pages for the \(sequence.longest) tokens of sequence \(index)",
            actual: "\(sequence.pages.count)")
        let full = sequence.shortest / pageSize
        for (position, page) in sequence.pages.enumerated() {
            if page == CachedSequence.hole {
                try file.requireTensor(
                    position < full, Name.tables, expected: "pages at positions from \(full) on in sequence \(index)",
                    actual: "−1 at position \(position)")
                continue
            }
            let known = positions[Int(page)]
            try file.requireTensor(
                known == -1 || known == position, Name.tables,
                expected: "page \(page) at position \(known) of sequence \(index), as in another one",
                actual: "at position \(position)")
            positions[Int(page)] = position
            referenceCounts[Int(page)] += 1
        }
    }
}
