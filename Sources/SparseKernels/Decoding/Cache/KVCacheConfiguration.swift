internal import KernelInterface

/// The sizes and formats of a key/value cache.
public struct KVCacheConfiguration: Hashable, Sendable {
    public let layers: Int
    public let kvHeads: Int
    /// Channels of keys.
    public let headDim: Int
    /// Channels of values.
    public let valueDim: Int
    /// Tokens per page.
    public let pageSize: Int
    /// Pages in the pool. A page holds its tokens for every layer and head.
    public let pageCapacity: Int
    public let keyFormat: KVFormat
    public let valueFormat: KVFormat
    /// The numbers that the codes of quantised keys, values and estimates stand for.
    public let quantization: KVQuantization
    /// The metadata stored per logical page to rank pages by; nil stores none.
    public let metadata: PageMetadata?
    /// Whether the cache also stores an INT4 copy of the keys, from which scores can be estimated (Twilight).
    public let keepsKeyEstimates: Bool

    /// The page sizes that a cache can have: whole groups of quantised values and whole logical pages of the papers.
    public static let pageSizes = [16, 32, 64, 128]

    /// - Parameters:
    ///   - layers: attention layers that share the page tables.
    ///   - kvHeads: key/value heads of a layer.
    ///   - headDim: channels of a key, 1…256.
    ///   - valueDim: channels of a value, 1…256; `headDim` unless given.
    ///   - pageSize: 16, 32, 64 or 128 tokens.
    ///   - pageCapacity: pages of the pool. Memory is reserved at once; the system provides it when a page is first written.
    ///   - format: of keys, and of values unless `valueFormat` is given.
    ///   - valueFormat: of values.
    ///   - quantization: what the codes of quantised formats stand for; `.zeroPoint` is the released rule of QServe and LServe.
    ///   - metadata: kept per logical page.
    ///   - keepsKeyEstimates: whether an INT4 copy of the keys is kept. INT4 keys are their own estimates and need none.
    /// - Throws: `.invalidShape` for extents out of range or a pool that does not fit the address space, `.invalidArgument` for a
    ///   page size or logical page size that is not supported, `.invalidElementType` for a metadata format that is not.
    public init(
        layers: Int = 1, kvHeads: Int, headDim: Int, valueDim: Int? = nil, pageSize: Int = 64, pageCapacity: Int,
        format: KVFormat = .float16, valueFormat: KVFormat? = nil, quantization: KVQuantization = .minimum,
        metadata: PageMetadata? = nil, keepsKeyEstimates: Bool = false
    ) throws(SparseKernelsError) {
        let valueDim = valueDim ?? headDim
        // Slots are 32-bit numbers.
        for (name, extent, limit) in [
            ("layers", layers, 1 << 16), ("kvHeads", kvHeads, 1 << 16), ("headDim", headDim, AttentionShape.maximumHeadDim),
            ("valueDim", valueDim, AttentionShape.maximumHeadDim), ("pageCapacity", pageCapacity, 1 << 24),
        ] {
            try require(
                extent >= 1 && extent <= limit, .invalidShape, name, expected: "within 1...\(limit)", actual: "\(extent)")
        }
        try require(
            Self.pageSizes.contains(pageSize), .invalidArgument, "pageSize",
            expected: "one of \(Self.pageSizes)", actual: "\(pageSize)")
        try require(
            pageCapacity < 1 << 31 / pageSize, .invalidShape, "pageCapacity", expected: "fewer than 2³¹ tokens in all",
            actual: "\(pageCapacity) pages of \(pageSize)")
        if let metadata {
            let size = metadata.logicalPageSize
            try require(
                size >= 1 && pageSize % size == 0, .invalidArgument, "metadata.logicalPageSize",
                expected: "a divisor of pageSize (\(pageSize))", actual: "\(size)")
            try require(
                [.float32, .float16, .int8].contains(metadata.format), .invalidElementType, "metadata.format",
                expected: "float32, float16 or int8", actual: metadata.format.rawValue)
        }
        self.layers = layers
        self.kvHeads = kvHeads
        self.headDim = headDim
        self.valueDim = valueDim
        self.pageSize = pageSize
        self.pageCapacity = pageCapacity
        keyFormat = format
        self.valueFormat = valueFormat ?? format
        self.quantization = quantization
        self.metadata = metadata
        self.keepsKeyEstimates = keepsKeyEstimates && format != .int4
        let (total, overflow) = bytesPerPage.multipliedReportingOverflow(by: pageCapacity)
        try require(
            !overflow && total < 1 << 46, .invalidShape, "pageCapacity", expected: "a pool below 2⁴⁶ bytes",
            actual: "\(pageCapacity) pages of \(bytesPerPage) bytes")
    }

    public var tokenCapacity: Int { pageCapacity * pageSize }

    /// Bytes of a page over all layers and heads: keys, values, scales, metadata and estimates.
    public var bytesPerPage: Int { layers * kvHeads * KVSection.all(self).reduce(0) { $0 + $1.bytesPerPage } }

    /// Bytes per token, over all layers and heads.
    public var bytesPerToken: Double { Double(bytesPerPage) / Double(pageSize) }

    /// Logical pages per page.
    package var logicalPages: Int { metadata.map { pageSize / $0.logicalPageSize } ?? 0 }

    /// Channels of a row of metadata: the largest values, then the smallest ones; or the means.
    package var metadataChannels: Int { metadata?.kind == .mean ? headDim : 2 * headDim }
}
