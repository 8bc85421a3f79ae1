import SparseKernels
import Testing

/// A cache and a plain model of it: a list of tokens per sequence and layer, as numbers that determine their elements.
final class PagedKVCacheModel {
    struct Sequence: Equatable {
        /// The tokens of each layer.
        var tokens: [[Int]]
        /// The positions in the page table whose pages were discarded.
        var holes: Set<Int> = []

        var longest: Int { tokens.map(\.count).max() ?? 0 }
        var shortest: Int { tokens.map(\.count).min() ?? 0 }
    }

    private struct Rows: Equatable {
        var keys: [Float]
        var values: [Float]
    }

    typealias ID = PagedKVCache.SequenceID

    private(set) var cache: PagedKVCache
    var sequences: [(id: ID, model: Sequence)] = []
    private var nextToken = 0
    /// A cache of one token, which shows how a token reads back.
    private let probe: PagedKVCache
    private var stored: [Int: Rows] = [:]
    /// A cache in which metadata are computed again.
    private let shadow: PagedKVCache

    var configuration: KVCacheConfiguration { cache.configuration }
    var pageSize: Int { configuration.pageSize }

    init(_ configuration: KVCacheConfiguration) throws {
        cache = try PagedKVCache(configuration)
        let small = try KVCacheConfiguration(
            layers: configuration.layers, kvHeads: configuration.kvHeads, headDim: configuration.headDim,
            valueDim: configuration.valueDim, pageSize: configuration.pageSize, pageCapacity: 1,
            format: configuration.keyFormat, valueFormat: configuration.valueFormat, metadata: configuration.metadata,
            keepsKeyEstimates: configuration.keepsKeyEstimates)
        probe = try PagedKVCache(small)
        shadow = try PagedKVCache(small)
    }

    /// Replaces the cache by one with the same sequences.
    func replaceCache(_ other: PagedKVCache) { cache = other }

    // MARK: - Tokens

    func newTokens(_ count: Int) -> [Int] {
        defer { nextToken += count }
        return Array(nextToken..<nextToken + count)
    }

    /// Multiples of 1/16 below 8 in magnitude, which every floating-point format represents exactly.
    private func element(_ token: Int, _ head: Int, _ channel: Int, _ salt: UInt64) -> Float {
        var random = SplitMix64(seed: UInt64(token) << 24 | UInt64(head) << 16 | UInt64(channel) << 1 | salt)
        return Float(Int(random.next() >> 56) - 128) / 16
    }

    private func operand(_ tokens: [Int], _ channels: Int, _ salt: UInt64) throws -> Tensor<Float> {
        let count = tokens.count
        return try Tensor([configuration.kvHeads, count, channels]) {
            self.element(tokens[$0 / channels % count], $0 / channels / count, $0 % channels, salt)
        }
    }

    func keys(_ tokens: [Int]) throws -> Tensor<Float> { try operand(tokens, configuration.headDim, 0) }
    func values(_ tokens: [Int]) throws -> Tensor<Float> { try operand(tokens, configuration.valueDim, 1) }

    /// The rows that the cache must return for tokens, `[kvHeads, tokens, channels]`.
    private func expected(_ tokens: [Int]) throws -> Rows {
        for token in tokens where stored[token] == nil {
            let sequence = probe.makeSequence()
            let (keys, values) = (try keys([token]), try values([token]))
            try probe.append(key: keys.view(), value: values.view(), to: sequence, on: .serial)
            let read = Rows(keys: try probe.keys(of: sequence).elements, values: try probe.values(of: sequence).elements)
            try probe.free(sequence)
            if !configuration.keyFormat.isQuantized { #expect(read.keys == keys.elements) }
            if !configuration.valueFormat.isQuantized { #expect(read.values == values.elements) }
            stored[token] = read
        }
        var rows = Rows(keys: [], values: [])
        for head in 0..<configuration.kvHeads {
            for token in tokens {
                let (keys, values) = (configuration.headDim, configuration.valueDim)
                rows.keys += stored[token]!.keys[head * keys..<(head + 1) * keys]
                rows.values += stored[token]!.values[head * values..<(head + 1) * values]
            }
        }
        return rows
    }

    // MARK: - Operations on both

    func make() -> Int {
        sequences.append((cache.makeSequence(), Sequence(tokens: Array(repeating: [], count: configuration.layers))))
        return sequences.count - 1
    }

    /// The model changes after the cache, so that it is unchanged when the cache throws.
    func append(_ count: Int, to index: Int, layer: Int, on pool: WorkerPool = .serial) throws {
        let tokens = newTokens(count)
        let (keys, values) = (try keys(tokens), try values(tokens))
        try cache.append(key: keys.view(), value: values.view(), to: sequences[index].id, layer: layer, on: pool)
        sequences[index].model.tokens[layer] += tokens
    }

    /// Appends one token to several sequences in one call.
    func appendEach(to indices: [Int], layer: Int, on pool: WorkerPool = .serial) throws {
        let tokens = newTokens(indices.count)
        let (keys, values) = (try keys(tokens), try values(tokens))
        try cache.append(
            key: keys.view(), value: values.view(), toEach: indices.map { sequences[$0].id }, layer: layer, on: pool)
        for (index, token) in zip(indices, tokens) { sequences[index].model.tokens[layer].append(token) }
    }

    /// Appends to all layers.
    func append(_ count: Int, to index: Int, on pool: WorkerPool = .serial) throws {
        for layer in 0..<configuration.layers { try append(count, to: index, layer: layer, on: pool) }
    }

    func overwrite(_ range: Range<Int>, of index: Int, layer: Int, on pool: WorkerPool = .serial) throws {
        let tokens = newTokens(range.count)
        let (keys, values) = (try keys(tokens), try values(tokens))
        try cache.overwrite(
            key: keys.view(), value: values.view(), in: sequences[index].id, from: range.lowerBound, layer: layer, on: pool)
        sequences[index].model.tokens[layer].replaceSubrange(range, with: tokens)
    }

    @discardableResult
    func fork(_ index: Int, at length: Int? = nil) throws -> Int {
        let child = try cache.fork(sequences[index].id, at: length)
        var model = sequences[index].model
        cut(&model, to: length ?? model.longest)
        sequences.append((child, model))
        return sequences.count - 1
    }

    func truncate(_ index: Int, to length: Int) throws {
        try cache.truncate(sequences[index].id, to: length)
        cut(&sequences[index].model, to: length)
    }

    func discard(_ range: Range<Int>, of index: Int) throws {
        try cache.discard(sequences[index].id, tokens: range)
        for position in 0..<sequences[index].model.shortest / pageSize {
            let page = position * pageSize..<(position + 1) * pageSize
            if range.lowerBound <= page.lowerBound && page.upperBound <= range.upperBound {
                sequences[index].model.holes.insert(position)
            }
        }
    }

    func free(_ index: Int) throws {
        try cache.free(sequences[index].id)
        sequences.remove(at: index)
    }

    private func cut(_ model: inout Sequence, to length: Int) {
        for layer in model.tokens.indices { model.tokens[layer] = Array(model.tokens[layer].prefix(length)) }
        let pages = (length + pageSize - 1) / pageSize
        model.holes = model.holes.filter { $0 < pages }
    }

    // MARK: - Comparing

    /// Checks lengths, tables, contents, reference counts, free pages and metadata.
    func check(_ label: String, contents: Bool = true, sourceLocation: SourceLocation = #_sourceLocation) throws {
        var holders: [Int32: Int] = [:]
        for (id, model) in sequences {
            let pages = try cache.pageTable(of: id)
            #expect(pages.count == (model.longest + pageSize - 1) / pageSize, "\(label)", sourceLocation: sourceLocation)
            #expect(
                Set(pages.indices.filter { pages[$0] == -1 }) == model.holes, "\(label)", sourceLocation: sourceLocation)
            for page in pages where page != -1 { holders[page, default: 0] += 1 }
            for (layer, tokens) in model.tokens.enumerated() {
                let length = try cache.length(of: id, layer: layer)
                #expect(length == tokens.count, "\(label)", sourceLocation: sourceLocation)
                if contents { try checkContents(of: id, model, layer: layer, label, sourceLocation) }
                if contents { try checkMetadata(pages, layer: layer, length: tokens.count, label, sourceLocation) }
            }
        }
        let counts = holders.keys.map { cache.referenceCount(ofPage: $0) }
        #expect(counts == holders.keys.map { holders[$0]! }, "\(label)", sourceLocation: sourceLocation)
        #expect(cache.usedPageCount == holders.count, "\(label)", sourceLocation: sourceLocation)
        #expect(cache.freePageCount == configuration.pageCapacity - holders.count, "\(label)", sourceLocation: sourceLocation)
        #expect(cache.usedByteCount == holders.count * configuration.bytesPerPage, "\(label)", sourceLocation: sourceLocation)
        #expect(Set(cache.sequences) == Set(sequences.map(\.id)), "\(label)", sourceLocation: sourceLocation)
    }

    /// Checks the runs of tokens between holes.
    private func checkContents(
        of id: ID, _ model: Sequence, layer: Int, _ label: String, _ sourceLocation: SourceLocation
    ) throws {
        let tokens = model.tokens[layer]
        var start = 0
        for end in model.holes.sorted().map({ $0 * pageSize }) + [tokens.count] {
            if start < end && end <= tokens.count {
                let rows = try expected(Array(tokens[start..<end]))
                let keys = try cache.keys(of: id, layer: layer, tokens: start..<end).elements
                let values = try cache.values(of: id, layer: layer, tokens: start..<end).elements
                #expect(keys == rows.keys, "\(label)", sourceLocation: sourceLocation)
                #expect(values == rows.values, "\(label)", sourceLocation: sourceLocation)
            }
            start = end + pageSize
        }
    }

    /// Compares the bytes of the metadata with those of the same page in another cache, which computes all of them at once.
    private func checkMetadata(
        _ pages: [Int32], layer: Int, length: Int, _ label: String, _ sourceLocation: SourceLocation
    ) throws {
        guard let metadata = configuration.metadata else { return }
        for (position, page) in pages.enumerated() where page != -1 && position * pageSize < length {
            let filled = min(pageSize, length - position * pageSize)
            for head in 0..<configuration.kvHeads {
                for section in cache.storage.sections {
                    shadow.storage.page(0, of: section, layer: layer, head: head).copyMemory(
                        from: cache.storage.page(Int(page), of: section, layer: layer, head: head),
                        byteCount: section.bytesPerPage)
                }
                WorkerPool.serial.withWorkspace(byteCount: KVStorage.scratchByteCount(configuration)) { scratch in
                    shadow.storage.summarise(
                        layer: layer, head: head, page: 0, tokens: 0..<filled, filled: filled, scratch: scratch)
                }
                let logicalPages = (filled + metadata.logicalPageSize - 1) / metadata.logicalPageSize
                let kinds: [KVSection.Kind] = [.metadata, .metadataScales, .metadataOffsets]
                for section in cache.storage.sections where kinds.contains(section.kind) {
                    let byteCount = section.bytesPerPage / configuration.logicalPages * logicalPages
                    let own = bytes(cache.storage.page(Int(page), of: section, layer: layer, head: head), byteCount)
                    let recomputed = bytes(shadow.storage.page(0, of: section, layer: layer, head: head), byteCount)
                    #expect(own == recomputed, "\(label): \(section.kind), page \(page)", sourceLocation: sourceLocation)
                }
            }
        }
    }

    private func bytes(_ pointer: UnsafeMutableRawPointer, _ count: Int) -> [UInt8] {
        Array(UnsafeRawBufferPointer(start: pointer, count: count))
    }

    /// All that a throwing call must leave unchanged: tables, lengths, counts and the bytes of the used pages.
    struct Snapshot: Equatable {
        let tables: [[Int32]]
        let lengths: [[Int]]
        let counts: [Int]
        let freePages: Int
        let bytes: [[UInt8]]
    }

    func snapshot() throws -> Snapshot {
        let tables = try sequences.map { try cache.pageTable(of: $0.id) }
        let used = Set(tables.joined()).subtracting([-1]).sorted()
        var pageBytes: [[UInt8]] = []
        for section in cache.storage.sections {
            for layer in 0..<configuration.layers {
                for head in 0..<configuration.kvHeads {
                    for page in used {
                        pageBytes.append(
                            bytes(
                                cache.storage.page(Int(page), of: section, layer: layer, head: head), section.bytesPerPage))
                    }
                }
            }
        }
        return Snapshot(
            tables: tables,
            lengths: try sequences.map { sequence in
                try (0..<configuration.layers).map { try cache.length(of: sequence.id, layer: $0) }
            },
            counts: used.map { cache.referenceCount(ofPage: $0) }, freePages: cache.freePageCount, bytes: pageBytes)
    }

    /// Expects an error of a code and no change.
    func expectUnchanged(
        _ code: SparseKernelsError.Code, _ argument: String, sourceLocation: SourceLocation = #_sourceLocation,
        _ body: () throws -> Void
    ) throws {
        let (before, model) = (try snapshot(), sequences.map(\.model))
        do {
            try body()
            Issue.record("no error", sourceLocation: sourceLocation)
        } catch let error as SparseKernelsError {
            #expect(error.code == code && error.argument == argument, "\(error)", sourceLocation: sourceLocation)
        }
        #expect(try snapshot() == before, sourceLocation: sourceLocation)
        #expect(sequences.map(\.model) == model, sourceLocation: sourceLocation)
    }
}

/// A named configuration of small numbers, most of them odd.
struct SmallCache: CustomTestStringConvertible, Sendable {
    let testDescription: String
    let format: KVFormat
    var valueFormat: KVFormat?
    var metadata: PageMetadata?
    var estimates = false

    func configuration(layers: Int = 2, pageSize: Int = 16, pageCapacity: Int = 12) throws -> KVCacheConfiguration {
        try KVCacheConfiguration(
            layers: layers, kvHeads: 2, headDim: 9, valueDim: 5, pageSize: pageSize, pageCapacity: pageCapacity,
            format: format, valueFormat: valueFormat, metadata: metadata, keepsKeyEstimates: estimates)
    }

    static let all = [
        SmallCache(
            testDescription: "float32, bounds", format: .float32, metadata: PageMetadata(logicalPageSize: 4, format: .float32)),
        SmallCache(testDescription: "float16, means", format: .float16, metadata: PageMetadata(.mean, logicalPageSize: 8)),
        SmallCache(testDescription: "bfloat16 alone", format: .bfloat16),
        SmallCache(
            testDescription: "int8 and float16, bounds in int8", format: .int8, valueFormat: .float16,
            metadata: PageMetadata(logicalPageSize: 2, format: .int8)),
        SmallCache(
            testDescription: "int4, bounds, estimates", format: .int4, metadata: PageMetadata(),
            estimates: true),
    ]
}
