internal import KernelInterface

/// Keys and values of one sequence in one layer of a cache, as operands of attention, scoring and selection. Nothing is copied
/// but the page table: kernels read the pages and widen the tokens of one step at a time in their scratch.
///
/// ```swift
/// try cache.append(key: k, value: v, to: sequence, layer: layer)             // a chunk of a prompt
/// let cached = try cache.rows(of: sequence, layer: layer)                    // what it attends: all tokens so far
/// let shape = try AttentionShape(
///     queryLength: 512, keyLength: cached.tokens, queryHeads: 32, kvHeads: 8, headDim: 128)
/// try DenseAttention(shape, mask: .causal).run(query: q.view(), key: cached.key, value: cached.value, output: out)
/// ```
///
/// Queries are aligned with the end of the keys, so a chunk of a prompt sees the pages before it, in every operator that takes
/// views: dense and block-sparse attention and the façades of prefill.
///
/// **Lifetime.** The rows are those at the time of the call. Tokens that are appended later are not among them. They must not
/// be used after the sequence was freed, truncated below their length, written over, or pages of it were discarded.
public struct CachedRows {
    /// Tokens of the rows.
    public let tokens: Int
    private let cache: PagedKVCache
    /// For keys, then for values: the addresses of the rows of every head.
    private let elements: [CachedElement]
    /// The rows of every head, keys first, then the page table.
    private let storage: TensorStorage

    /// The keys, `kvHeads` × `tokens` × `headDim`.
    public var key: TensorView<CachedElement> {
        @_lifetime(borrow self)
        get { view(0, channels: cache.configuration.headDim) }
    }

    /// The values, `kvHeads` × `tokens` × `valueDim`.
    public var value: TensorView<CachedElement> {
        @_lifetime(borrow self)
        get { view(cache.configuration.kvHeads, channels: cache.configuration.valueDim) }
    }

    @_lifetime(borrow self)
    private func view(_ first: Int, channels: Int) -> TensorView<CachedElement> {
        let heads = cache.configuration.kvHeads
        return TensorView(
            checked: elements.span.extracting(first..<first + heads),
            .cachedRows(heads: heads, tokens: tokens, channels: channels))
    }

    fileprivate init(_ cache: PagedKVCache, pages: ArraySlice<Int32>, layer: Int, length: Int, gap: Range<Int>) {
        self.cache = cache
        tokens = length - gap.count
        let heads = cache.configuration.kvHeads
        let rowBytes = MemoryLayout<PagedRows>.stride * 2 * heads
        storage = TensorStorage(byteCount: rowBytes + max(1, pages.count) * 4)
        let rows = storage.pointer.assumingMemoryBound(to: PagedRows.self)
        let table = (storage.pointer + rowBytes).assumingMemoryBound(to: Int32.self)
        for (position, page) in pages.enumerated() { table[position] = page }
        for head in 0..<heads {
            let operands = [
                cache.storage.keyOperand(layer: layer, head: head), cache.storage.valueOperand(layer: layer, head: head),
            ]
            for (kind, operand) in operands.enumerated() {
                (rows + kind * heads + head).initialize(
                    to: PagedRows(
                        tokens: operand, pages: table, pageSize: cache.configuration.pageSize, gapStart: gap.lowerBound,
                        gap: gap.count))
            }
        }
        elements = (0..<2 * heads).map { CachedElement(rows: rows + $0) }
    }
}

/// The element type of the views of `CachedRows`. It has no values of its own: rows are converted when a kernel reads them.
///
/// Views of it are keys and values of attention, scorings and selections. A call that would need elements in memory, such as
/// appending to a cache, refuses them.
public struct CachedElement: AttentionElement {
    public static let elementType = ElementType.other("cached token")
    public static let zero = CachedElement(0)
    /// The address of the rows of a head; 0 in an element that no cache made.
    private let address: UInt

    var rows: UnsafePointer<PagedRows> {
        guard let rows = UnsafePointer<PagedRows>(bitPattern: address) else {
            preconditionFailure("cached elements come from CachedRows only")
        }
        return rows
    }

    init(rows: UnsafePointer<PagedRows>) { address = UInt(bitPattern: rows) }

    /// An element that stands for no row. Operators trap on it.
    public init(_ value: Float) { address = 0 }
    /// Not a number, because cached elements have no values in memory.
    public var floatValue: Float { .nan }
}

extension PagedKVCache {
    /// The keys and values of a sequence in a layer, for attention, scoring and selection in the cache.
    ///
    /// - Parameters:
    ///   - sequence: the sequence.
    ///   - layer: the layer.
    ///   - gap: tokens to leave out, such as discarded ones. Later tokens move up, so that queries keep their distance from them.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a layer that the cache does not have, a gap outside of the sequence,
    ///   and discarded tokens outside of the gap.
    /// - Complexity: O(pages).
    public func rows(
        of sequence: SequenceID, layer: Int = 0, omitting gap: Range<Int> = 0..<0
    ) throws(SparseKernelsError) -> CachedRows {
        let length = try length(of: sequence, layer: layer)
        try require(
            gap.isEmpty || gap.lowerBound >= 0 && gap.upperBound <= length, .invalidArgument, "gap",
            expected: "within the \(length) tokens of the layer", actual: "\(gap)")
        let index = try table.index(of: sequence)
        try requireTokens(0..<(gap.isEmpty ? length : gap.lowerBound), of: index, argument: "sequence")
        if !gap.isEmpty { try requireTokens(gap.upperBound..<length, of: index, argument: "sequence") }
        let pages = table.entries[index].pages[..<pageCount(length)]
        return CachedRows(self, pages: pages, layer: layer, length: length, gap: gap.isEmpty ? length..<length : gap)
    }
}

extension PagedKVCache {
    /// The keys and values of a range of whole pages of a sequence, none of them discarded.
    func rows(of sequence: SequenceID, layer: Int, pagesOf tokens: Range<Int>) throws(SparseKernelsError) -> CachedRows {
        let index = try table.index(of: sequence)
        try requireTokens(tokens, of: index, argument: "sequence")
        let pages = table.entries[index].pages[tokens.lowerBound / configuration.pageSize..<pageCount(tokens.upperBound)]
        return CachedRows(self, pages: pages, layer: layer, length: tokens.count, gap: tokens.count..<tokens.count)
    }
}

extension TensorView {
    /// Throws `.invalidElementType` for cached rows, where an operator needs elements in memory.
    package func requireMemory(named name: @autoclosure () -> String) throws(SparseKernelsError) {
        try require(
            Element.self != CachedElement.self, .invalidElementType, name(), expected: "elements in memory",
            actual: "cached rows")
    }
}
