internal import KernelInterface

/// Keys and values of many sequences in one pool of pages, for decoding.
///
/// A page holds `pageSize` tokens of all layers and KV heads. A sequence has a page table, shared by its layers, and a length
/// per layer: token i is in page `table[i / pageSize]`. Sequences that begin alike share pages: `fork` copies the table only,
/// and a sequence that writes to a shared page first gets a copy of it. Pages come from a pool that is reserved once. When a
/// call needs more pages than are left, it throws `.capacityExceeded` and nothing changes.
///
///     let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 8, headDim: 128, pageCapacity: 1024))
///     let sequence = cache.makeSequence()
///     try cache.append(key: keys.view(), value: values.view(), to: sequence)   // [kvHeads, tokens, headDim]
///     let child = try cache.fork(sequence)
///
/// **Invariant.** The metadata of a page describe the tokens of every sequence that has the page: each write recomputes the
/// logical pages that it touches, and sequences whose metadata would differ do not share the page.
///
/// **Non-finite elements.** Floating-point keys and values pass through, as in IEEE arithmetic. Elements of `.int8` and `.int4`
/// caches, and keys with metadata or estimates, have scales or bounds in half precision and must be finite and of magnitude up
/// to 65504, because one infinity would spoil a whole row or page. Others are an error before anything is written.
///
/// **Threads.** The class is not `Sendable`. It has one writer; any number of threads may read while nobody writes.
///
/// - Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (arXiv
///   2309.06180), section 4; `kv_indptr`/`kv_indices` of FlashInfer, with holes.
public final class PagedKVCache {
    public let configuration: KVCacheConfiguration
    package let storage: KVStorage
    let kernels: any KernelTable.Type
    var pages: PagePool
    var table: SequenceTable

    /// An empty cache.
    ///
    /// - Parameters:
    ///   - configuration: the heads, widths, formats and number of pages.
    ///   - instructionSet: the level of the kernels; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.unsupportedInstructionSet`; `.capacityExceeded` when the system refuses the address space of the pool. The
    ///   system provides memory when pages are first written.
    public convenience init(
        _ configuration: KVCacheConfiguration, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let kernels = try InstructionSet.resolve(instructionSet).kernels
        try self.init(
            configuration, kernels: kernels, pages: PagePool(capacity: configuration.pageCapacity), table: SequenceTable())
    }

    init(
        _ configuration: KVCacheConfiguration, kernels: any KernelTable.Type, pages: PagePool, table: SequenceTable
    ) throws(SparseKernelsError) {
        self.configuration = configuration
        self.kernels = kernels
        self.pages = pages
        self.table = table
        storage = try KVStorage(configuration, kernels: kernels)
    }

    // MARK: - Memory

    /// Pages in no page table.
    public var freePageCount: Int { pages.freeCount }
    /// Pages in one or more page tables, each counted once.
    public var usedPageCount: Int { pages.usedCount }
    /// Bytes of the pool: keys, values, scales, metadata and estimates of all pages.
    public var byteCount: Int { configuration.pageCapacity * configuration.bytesPerPage }
    /// Bytes of the used pages, each counted once.
    public var usedByteCount: Int { usedPageCount * configuration.bytesPerPage }

    // MARK: - Looking at sequences

    /// All sequences, in no particular order.
    public var sequences: [SequenceID] { table.names }

    /// The number of tokens that a sequence has in a layer.
    ///
    /// - Parameters:
    ///   - sequence: the sequence.
    ///   - layer: the layer. Layers have lengths of their own, which differ while a step goes through the model.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a layer that the cache does not have.
    public func length(of sequence: SequenceID, layer: Int = 0) throws(SparseKernelsError) -> Int {
        let index = try table.index(of: sequence)
        try requireLayer(layer)
        return table.entries[index].lengths[layer]
    }

    /// The page table of a sequence: token i of every layer is in page `pageTable[i / pageSize]`. Entries of discarded pages
    /// are −1. There are as many entries as the longest layer needs.
    /// - Throws: `.unknownSequence`.
    public func pageTable(of sequence: SequenceID) throws(SparseKernelsError) -> [Int32] {
        table.entries[try table.index(of: sequence)].pages
    }

    /// Calls `body` with the page table, without a copy. The pointer is valid until the closure returns.
    package func withPageTable<Result>(
        of sequence: SequenceID, _ body: (UnsafeBufferPointer<Int32>) throws(SparseKernelsError) -> Result
    ) throws(SparseKernelsError) -> Result {
        let pages = table.entries[try table.index(of: sequence)].pages
        // The array is alive until the end of this function, and `body` may use it no longer.
        let buffer = pages.span.withUnsafeBufferPointer { $0 }
        return try withExtendedLifetime(pages) { () throws(SparseKernelsError) in try body(buffer) }
    }

    package func referenceCount(ofPage page: Int32) -> Int {
        Int(page) < pages.referenceCounts.count ? Int(pages.referenceCounts[Int(page)]) : 0
    }

    // MARK: - Shared

    func requireLayer(_ layer: Int) throws(SparseKernelsError) {
        try require(
            layer >= 0 && layer < configuration.layers, .invalidArgument, "layer",
            expected: "from 0 to \(configuration.layers - 1)",
            actual: "\(layer)")
    }

    func requireFreePages(_ needed: Int) throws(SparseKernelsError) {
        try require(
            needed <= pages.freeCount, .capacityExceeded, "pageCapacity",
            expected: "enough for \(needed) more pages", actual: "\(pages.capacity), of which \(pages.freeCount) are free")
    }

    /// The number of pages for some number of tokens.
    func pageCount(_ tokens: Int) -> Int {
        // A rounding sum could overflow.
        tokens / configuration.pageSize + (tokens % configuration.pageSize == 0 ? 0 : 1)
    }

    /// Replaces a shared page by a copy, so that the sequence may change it. A page must be free.
    func separatePage(at position: Int, of index: Int) {
        let shared = table.entries[index].pages[position]
        let own = pages.take()
        storage.copyPage(from: Int(shared), to: Int(own))
        pages.release(shared)
        table.entries[index].pages[position] = own
    }
}
