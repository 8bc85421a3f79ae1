internal import KernelInterface

/// Scores pages of one layer for the query heads of one key/value head.
///
/// Metadata are key rows of 2·headDim channels, kmax followed by kmin. The query is (max(q, 0), min(q, 0)), so that one product
/// is Σ max(q_c·kmax_c, q_c·kmin_c), because kmax_c ≥ kmin_c. The kernel for tokens can therefore score pages.
struct PageScorer {
    let kernels: any KernelTable.Type
    let storage: KVStorage
    let layer: Int
    let query: AttentionOperand
    let kvHeads: Int
    /// Query heads per key/value head.
    let group: Int
    let headDim: Int
    let isMean: Bool
    let logicalPageSize: Int
    let logicalPerPage: Int

    /// Channels per metadata row.
    let channels: Int
    /// Pages per task: about 512 logical pages, whose scores for a group of 8 heads are 16 KiB. With 128 channels these are 2¹⁷
    /// multiply-adds per query head, about 10 µs.
    let chunkPages: Int
    private let scratch: Layout

    /// The offsets of the parts of a task's scratch, in bytes.
    private struct Layout {
        let rows: Int
        let slots: Int
        let scores: Int
        let keys: Int
        let kernel: Int
        let byteCount: Int

        init(group: Int, channels: Int, chunk: Int) {
            var end = 0
            rows = Self.take(4 * group * channels, &end)
            slots = Self.take(4 * chunk, &end)
            scores = Self.take(4 * group * chunk + 4 * ScoreOrder.Keys.scalarCount, &end)
            keys = Self.take(4 * chunk + 4 * ScoreOrder.Keys.scalarCount, &end)
            kernel = Self.take(TokenScratch(headDim: channels, valueDim: 1, rows: group).byteCount, &end)
            byteCount = end
        }

        private static func take(_ bytes: Int, _ end: inout Int) -> Int {
            defer { end += (bytes + 63) / 64 * 64 }
            return end
        }
    }

    init(_ selector: PageSelector, query: AttentionOperand, cache: PagedKVCache, layer: Int) {
        let configuration = selector.configuration
        kernels = cache.kernels
        storage = cache.storage
        self.layer = layer
        self.query = query
        kvHeads = configuration.kvHeads
        group = selector.queryHeads / configuration.kvHeads
        headDim = configuration.headDim
        isMean = selector.metadata.kind == .mean
        logicalPageSize = selector.metadata.logicalPageSize
        logicalPerPage = configuration.logicalPages
        channels = configuration.metadataChannels
        chunkPages = max(1, 512 / logicalPerPage)
        scratch = Layout(group: group, channels: channels, chunk: chunkPages * logicalPerPage)
    }

    /// Bytes of scratch for `score`.
    var scratchByteCount: Int { scratch.byteCount }

    /// Multiply-adds to score some pages for one key/value head.
    func work(pages: Int) -> Int { pages * logicalPerPage * group * channels }

    /// Computes the keys (`ScoreOrder`) of some pages for one query token.
    ///
    /// - Parameters:
    ///   - head: the key/value head.
    ///   - pages: all pages of the sequence.
    ///   - range: the pages to score, at most `chunkPages`.
    ///   - length: tokens of the sequence. Only the last page may have fewer logical pages than others.
    ///   - token: the token of `query`.
    ///   - lists: 1 for the maximum over the group, or the number of query heads, for one list each.
    ///   - keys: `lists` × `keyStride`, by page of the sequence.
    ///   - keyStride: the distance between lists.
    ///   - logical: receives the scores, `group` × `logicalStride`, by logical page of the sequence, unless nil.
    ///   - logicalStride: the distance between query heads.
    ///   - memory: `scratchByteCount` bytes.
    func score(
        head: Int, pages: UnsafePointer<ScoredPages.Page>, range: Range<Int>, length: Int, token: Int, lists: Int,
        keys: UnsafeMutablePointer<Int32>, keyStride: Int, logical: UnsafeMutablePointer<Float>? = nil, logicalStride: Int = 0,
        scratch memory: UnsafeMutableRawPointer
    ) {
        let chunk = chunkPages * logicalPerPage
        let rows = (memory + scratch.rows).bindMemory(to: Float.self, capacity: group * channels)
        let slots = (memory + scratch.slots).bindMemory(to: Int32.self, capacity: chunk)
        let scores = (memory + scratch.scores).bindMemory(to: Float.self, capacity: group * chunk)
        stageQueries(head: head, token: token, rows)
        var count = 0
        for page in range {
            for part in 0..<logicalPages(at: pages[page].position, length: length) {
                slots[count] = pages[page].index &* Int32(truncatingIfNeeded: logicalPerPage) &+ Int32(truncatingIfNeeded: part)
                count &+= 1
            }
        }
        var arguments = ScoreTokensArguments(
            key: storage.metadataOperand(layer: layer, head: head)!, slots: slots, count: count, query: rows,
            queryStride: channels, rows: group, scale: 1, isBound: !isMean, scores: scores, scoreStride: chunk,
            scratch: memory + scratch.kernel)
        kernels.scoreTokens(&arguments)
        if let logical {
            for row in 0..<group {
                (logical + row * logicalStride + range.lowerBound * logicalPerPage).update(
                    from: scores + row * chunk, count: count)
            }
        }
        let best = (memory + scratch.keys).bindMemory(to: Int32.self, capacity: chunk)
        let rowsPerList = group / lists
        for list in 0..<lists {
            let first = scores + list * rowsPerList * chunk
            // Rows have memory for whole vectors. Scores past `count` are never read.
            for slot in stride(from: 0, to: count, by: ScoreOrder.Keys.scalarCount) {
                var largest = ScoreOrder.keys(first + slot)
                for row in 1..<rowsPerList {
                    let other = ScoreOrder.keys(first + row * chunk + slot)
                    largest.replace(with: other, where: other .> largest)
                }
                UnsafeMutableRawPointer(best + slot).storeBytes(of: largest, as: ScoreOrder.Keys.self)
            }
            for page in range {
                let start = (page - range.lowerBound) * logicalPerPage
                var key = best[start]
                for slot in start + 1..<min(count, start + logicalPerPage) { key = max(key, best[slot]) }
                keys[list * keyStride + page] = key
            }
        }
    }

    /// The number of logical pages with tokens in the page at a position of a sequence's table.
    func logicalPages(at position: Int32, length: Int) -> Int {
        min(logicalPerPage, (length + logicalPageSize - 1) / logicalPageSize - Int(position) * logicalPerPage)
    }

    /// Converts the group's queries to rows for the product with metadata.
    private func stageQueries(head: Int, token: Int, _ rows: UnsafeMutablePointer<Float>) {
        for member in 0..<group {
            let row = rows + member * channels
            kernels.stageRows(
                query.rows(head: head * group + member, from: token), first: 0, count: 1, channels: headDim, into: row)
            if isMean { continue }
            for channel in 0..<headDim {
                // These comparisons are false for NaN, so that it stays in both halves.
                let q = row[channel]
                row[channel] = q < 0 ? 0 : q
                row[headDim + channel] = q > 0 ? 0 : q
            }
        }
    }
}
