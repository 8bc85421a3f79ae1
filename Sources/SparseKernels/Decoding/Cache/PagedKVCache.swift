internal import KernelInterface

/// Keys and values of many sequences in one pool of pages, for decoding.
///
/// A page holds `pageSize` tokens of all layers and KV heads. A sequence is a page table, shared by its layers, and a length per
/// layer: token i lies in page `table[i / pageSize]`. Sequences that begin alike share pages: `fork` copies the table only, and
/// whoever writes to a shared page first gets a copy of it. Pages come from a pool that is allocated once; when it has too few
/// left, the call throws `.capacityExceeded` and nothing has changed.
///
///     let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 8, headDim: 128, pageCapacity: 1024))
///     let sequence = cache.makeSequence()
///     try cache.append(key: keys.view(), value: values.view(), to: sequence)   // [kvHeads, tokens, headDim]
///     let child = try cache.fork(sequence)
///
/// **Invariant.** The metadata of a page describe the tokens that a sequence has there, for every sequence that has the page:
/// each write recomputes the logical pages it touches, and sequences whose metadata would differ do not share the page.
///
/// **Non-finite elements.** Keys and values in floating point pass as IEEE arithmetic has it. What is kept with scales or bounds in
/// half precision, which is `.int8` and `.int4`, and keys with metadata or estimates, must be finite and of magnitude up to 65504:
/// one infinity would spoil the codes of a whole row, or the bounds of a whole page. Others are an error before anything is
/// written.
///
/// **Threads.** Not `Sendable`: one writer. Any number of threads may read while nobody writes.
///
/// - Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (arXiv 2309.06180),
///   section 4; `kv_indptr`/`kv_indices` of FlashInfer, with holes.
public final class PagedKVCache {
    public let configuration: KVCacheConfiguration
    package let storage: KVStorage
    let kernels: any KernelTable.Type
    var pages: PagePool
    var table: SequenceTable

    /// An empty cache.
    ///
    /// - Parameters:
    ///   - configuration: heads, widths, formats and the number of pages.
    ///   - instructionSet: the level of the kernels that convert and summarise; nil: the best, or what `SPARSEKERNELS_ISA` names.
    /// - Throws: `.unsupportedInstructionSet`; `.capacityExceeded` when the system refuses the address space of the pool. Its memory
    ///   is provided when pages are first written.
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

    /// Pages that no sequence has.
    public var freePageCount: Int { pages.freeCount }
    /// Pages that one or more sequences have, each counted once.
    public var usedPageCount: Int { pages.usedCount }
    /// Bytes of the pool: keys, values, scales, metadata and estimates of all pages.
    public var byteCount: Int { configuration.pageCapacity * configuration.bytesPerPage }
    /// Bytes of the used pages, each counted once.
    public var usedByteCount: Int { usedPageCount * configuration.bytesPerPage }

    // MARK: - Looking at sequences

    /// All sequences, in no particular order.
    public var sequences: [SequenceID] { table.names }

    /// Tokens that a sequence has in a layer.
    ///
    /// - Parameters:
    ///   - sequence: whose.
    ///   - layer: layers have lengths of their own, which differ while a step goes through the model.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a layer that the cache does not have.
    public func length(of sequence: SequenceID, layer: Int = 0) throws(SparseKernelsError) -> Int {
        let index = try table.index(of: sequence)
        try requireLayer(layer)
        return table.entries[index].lengths[layer]
    }

    /// The pages of a sequence: token i of every layer lies in page `pageTable[i / pageSize]`. −1 stands for pages that were
    /// discarded. There are as many entries as the longest layer needs.
    /// - Throws: `.unknownSequence`.
    public func pageTable(of sequence: SequenceID) throws(SparseKernelsError) -> [Int32] {
        table.entries[try table.index(of: sequence)].pages
    }

    /// As `pageTable(of:)`, without a copy. The pointer is good until the closure returns.
    package func withPageTable<Result>(
        of sequence: SequenceID, _ body: (UnsafeBufferPointer<Int32>) throws(SparseKernelsError) -> Result
    ) throws(SparseKernelsError) -> Result {
        let pages = table.entries[try table.index(of: sequence)].pages
        // The array is alive until the end of this function, which is all that `body` may count on.
        let buffer = pages.span.withUnsafeBufferPointer { $0 }
        return try withExtendedLifetime(pages) { () throws(SparseKernelsError) in try body(buffer) }
    }

    /// How many page tables hold a page.
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

    /// Pages that hold so many tokens.
    func pageCount(_ tokens: Int) -> Int {
        // Written without a sum, which could overflow.
        tokens / configuration.pageSize + (tokens % configuration.pageSize == 0 ? 0 : 1)
    }

    /// Puts a copy in place of a shared page, so that the sequence may change it. A page must be free.
    func separatePage(at position: Int, of index: Int) {
        let shared = table.entries[index].pages[position]
        let own = pages.take()
        storage.copyPage(from: Int(shared), to: Int(own))
        pages.release(shared)
        table.entries[index].pages[position] = own
    }
}
