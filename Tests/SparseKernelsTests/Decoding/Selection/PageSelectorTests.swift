import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Selection: pages")
struct PageSelectorTests {
    // MARK: - Scores

    @Test("scores are those of the oracle", arguments: InstructionSet.available, [1, 15, 16, 17, 64, 65, 201])
    func scores(_ set: InstructionSet, _ length: Int) throws {
        for (pageSize, logical) in [(64, 16), (16, 16), (32, 1), (64, 64)] {
            let fixture = try PageSelectionFixture(
                lengths: [length], headDim: 20, pageSize: pageSize, metadata: PageMetadata(logicalPageSize: logical),
                instructionSet: set)
            for sharing in SelectionSharing.allCases {
                let selector = try PageSelector(
                    queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: 64, sharing: sharing)
                let actual = try selector.pageScores(
                    query: fixture.query.view(), cache: fixture.cache, sequence: fixture.sequences[0])
                for head in 0..<4 {
                    let expected = try fixture.scores(head: head, sequence: 0)
                    let row = actual.logical.rows()[head]
                    #expect(row.count == expected.values.count && row.count == (length + logical - 1) / logical)
                    #expect(zip(row, expected.values).allSatisfy { abs($0 - $1) <= expected.bound })
                }
                for (list, expected) in try fixture.pageScores(sequence: 0, sharing: sharing).enumerated() {
                    let row = actual.pages.rows()[list]
                    #expect(row.count == expected.values.count && row.count == (length + pageSize - 1) / pageSize)
                    #expect(zip(row, expected.values).allSatisfy { abs($0 - $1) <= expected.bound })
                }
                #expect(actual.positions == (0..<Int32(actual.pages.shape[1])).map { $0 })
            }
        }
    }

    @Test(
        "a score bounds every key of its page, in all formats", arguments: KVFormat.allCases,
        [KVFormat.float32, .float16, .int8])
    func bound(_ format: KVFormat, _ metadata: KVFormat) throws {
        let fixture = try PageSelectionFixture(lengths: [150], metadata: PageMetadata(format: metadata), format: format)
        let selector = try PageSelector(queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: 64)
        let scores = try selector.pageScores(
            query: fixture.query.view(), cache: fixture.cache, sequence: fixture.sequences[0]
        ).logical.rows()
        for head in 0..<4 {
            let query = fixture.row(head: head, sequence: 0)
            let bound = try fixture.scores(head: head, sequence: 0).bound
            for (token, key) in try fixture.cache.keys(of: fixture.sequences[0]).rows(ofHead: head / 2).enumerated() {
                let product = zip(query, key).reduce(0) { $0 + $1.0 * $1.1 }
                // Keys stored as codes are exact in products, and rounded where they are read.
                #expect(scores[head][token / 16] >= product - 4 * bound, "\(head), \(token)")
            }
        }
    }

    /// With few channels and one token per page, nothing averages out. 8-bit metadata are below no product, exactly; float
    /// metadata are as exact as a sum in single precision.
    @Test(
        "a bound bounds: small heads, small pages, every format of metadata", arguments: [1, 2, 3, 5, 8, 20],
        InstructionSet.available)
    func smallBounds(_ headDim: Int, _ set: InstructionSet) throws {
        let length = 640
        for (index, format) in [KVFormat.float32, .float16, .int8, .int4].enumerated() {
            for (logical, metadata) in [(1, KVFormat.int8), (4, .int8), (1, .float16), (1, .float32)] {
                let configuration = try KVCacheConfiguration(
                    kvHeads: 1, headDim: headDim, pageSize: 16, pageCapacity: length / 16, format: format,
                    metadata: PageMetadata(logicalPageSize: logical, format: metadata))
                let cache = try PagedKVCache(configuration, instructionSet: set)
                let sequence = cache.makeSequence()
                let noise = try Tensor<Float>.normal([1, length, headDim], seed: UInt64(10 * headDim + index))
                // Rows of every size, around 0 and far from it.
                let key = try Tensor<Float>(noise.shape) {
                    let token = $0 / headDim
                    return noise[flat: $0] * [1, 40, 1e-3, 5][token % 4] + [0, 0, 7, -300, 1e-4][token % 5]
                }
                try cache.append(key: key.view(), value: key.view(), to: sequence)
                let query = try Tensor<Float>.normal([4, 1, headDim], seed: UInt64(headDim), scale: 2)
                let scores = try PageSelector(
                    queryHeads: 4, configuration: configuration, tokenBudget: 64
                ).pageScores(query: query.view(), cache: cache, sequence: sequence).logical.rows()
                let keys = try cache.keys(of: sequence).rows(ofHead: 0)
                for head in 0..<4 {
                    let q = query.rows(ofHead: head)[0]
                    for (token, key) in keys.enumerated() {
                        let product = zip(q, key).reduce(0) { $0 + $1.0 * $1.1 }
                        let magnitude = zip(q, key).reduce(0) { $0 + abs($1.0 * $1.1) }
                        let bound = scores[head][token / logical]
                        let slack = metadata == .int8 ? 0 : Double(2 * headDim) * 0x1p-24 * magnitude
                        #expect(bound >= product - slack, "\(format), \(metadata), q = \(q), k = \(key)")
                        // The bound must also be useful: no looser than two codes of the row per channel of the query.
                        if logical == 1 && metadata == .int8 {
                            let range = key.max()! - key.min()! + 0x1p-9 * key.reduce(0) { max($0, abs($1)) } + 0x1p-22
                            let width = q.reduce(0) { $0 + abs($1) } * (range * 2.2 / 254 + 3 * 0x1p-24)
                            #expect(bound <= product + width + 1e-4 * (magnitude + width), "\(product), \(bound), \(width)")
                        }
                    }
                }
            }
        }
    }

    @Test("means score by their product with the query", arguments: [1, 16, 40, 100])
    func means(_ length: Int) throws {
        let fixture = try PageSelectionFixture(lengths: [length], metadata: PageMetadata(.mean, format: .float32))
        let selector = try PageSelector(queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: 64)
        let scores = try selector.pageScores(
            query: fixture.query.view(), cache: fixture.cache, sequence: fixture.sequences[0]
        ).logical.rows()
        for head in 0..<4 {
            let keys = try fixture.cache.keys(of: fixture.sequences[0]).rows(ofHead: head / 2)
            let query = fixture.row(head: head, sequence: 0)
            let bound = try fixture.scores(head: head, sequence: 0).bound
            for page in 0..<(length + 15) / 16 {
                let tokens = page * 16..<min(length, page * 16 + 16)
                let mean = tokens.reduce(0) { $0 + zip(query, keys[$1]).reduce(0) { $0 + $1.0 * $1.1 } } / Double(tokens.count)
                // The mean is a sum of at most 16 terms, with as many roundings again as the product has.
                #expect(abs(scores[head][page] - mean) <= 2 * bound, "\(head), \(page)")
            }
        }
    }

    // MARK: - Rules

    /// Compares a selection with a rule on the exact scores, for choices that single precision cannot change.
    static func expectSelection(
        _ fixture: PageSelectionFixture, _ selector: PageSelector, sourceLocation: SourceLocation = #_sourceLocation,
        _ rule: ([Double], Int) -> ReferencePageSelection.Pages
    ) throws {
        let selection = try selector.select(
            query: fixture.query.view(), cache: fixture.cache, sequences: fixture.sequences)
        #expect(selection.unit == fixture.cache.configuration.pageSize && selection.heads == selector.lists)
        for sequence in fixture.sequences.indices {
            let length = try fixture.cache.length(of: fixture.sequences[sequence])
            let lists = selection.lists(sequence: sequence)
            for (list, scores) in try fixture.pageScores(sequence: sequence, sharing: selector.sharing).enumerated() {
                let expected = rule(scores.values, length)
                #expect(lists[list].count == expected.indices.count, sourceLocation: sourceLocation)
                if expected.margin <= 2 * scores.bound { continue }
                #expect(lists[list] == expected.indices, "sequence \(sequence), list \(list)", sourceLocation: sourceLocation)
            }
        }
    }

    static let lengths = [1, 17, 63, 64, 65, 192, 193, 256, 257, 320, 330, 1000]

    @Test("the rule of LServe: the last page, and the best of the others", arguments: SelectionSharing.allCases)
    func lserve(_ sharing: SelectionSharing) throws {
        let fixture = try PageSelectionFixture(lengths: Self.lengths)
        for budget in [64, 256, 300, 512] {
            let selector = try PageSelector(
                queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: budget, sharing: sharing)
            try Self.expectSelection(fixture, selector) { scores, length in
                ReferencePageSelection.lserve(scores, cachedTokens: length, pageSize: 64, tokenBudget: budget)
            }
        }
    }

    @Test("the rule of Quest's accuracy code: the last page is a candidate", arguments: SelectionSharing.allCases)
    func questAccuracy(_ sharing: SelectionSharing) throws {
        let fixture = try PageSelectionFixture(lengths: Self.lengths, pageSize: 16)
        for budget in [16, 64, 300] {
            let selector = try PageSelector(
                queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: budget, sharing: sharing, forcedLast: 0)
            try Self.expectSelection(fixture, selector) { scores, length in
                // The official code drops a page of a context that fits the budget but is not a whole number of pages.
                length <= budget
                    ? ReferencePageSelection.largest(scores.count, of: scores)
                    : ReferencePageSelection.questAccuracy(scores, length: length, pageSize: 16, tokenBudget: budget)
            }
        }
    }

    @Test("forced pages count in the budget")
    func forced() throws {
        let fixture = try PageSelectionFixture(lengths: Self.lengths, pageSize: 16)
        let selector = try PageSelector(
            queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: 100, forcedFirst: 2, forcedLast: 1)
        #expect(selector.pageBudget == 6)
        try Self.expectSelection(fixture, selector) { scores, length in
            let count = scores.count
            if length <= 100 || count <= 6 { return ReferencePageSelection.largest(count, of: scores) }
            var pages = ReferencePageSelection.largest(3, of: Array(scores[2..<count - 1]))
            pages.indices = [0, 1] + pages.indices.map { $0 + 2 } + [count - 1]
            return pages
        }
        // No choice is left, and so no page is scored.
        let fixed = try PageSelector(
            queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: 16, forcedFirst: 2, forcedLast: 2,
            minimumPages: 4)
        let selection = try fixed.select(query: fixture.query.view(), cache: fixture.cache, sequences: fixture.sequences)
        #expect(selection.lists(sequence: 11) == Array(repeating: [0, 1, 61, 62], count: 2))
    }

    @Test("equal scores are taken by lower position; a query that is not finite takes pages from the front")
    func ties() throws {
        let fixture = try PageSelectionFixture(lengths: [640])
        let selector = try PageSelector(queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: 256)
        for value in [0, Float.nan] {
            let query = try Tensor<Float>([4, 1, 24]) { _ in value }
            let selection = try selector.select(query: query.view(), cache: fixture.cache, sequences: fixture.sequences)
            #expect(selection.lists(sequence: 0) == Array(repeating: [0, 1, 2, 9], count: 2))
        }
    }

    @Test("a page with a NaN score comes first")
    func nonFiniteScores() throws {
        let fixture = try PageSelectionFixture(lengths: [640])
        let selector = try PageSelector(
            queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: 256, sharing: .queryHead)
        var query = fixture.query
        query[flat: 3] = .nan
        let selection = try selector.select(query: query.view(), cache: fixture.cache, sequences: fixture.sequences)
        let clean = try selector.select(query: fixture.query.view(), cache: fixture.cache, sequences: fixture.sequences)
        #expect(selection.lists(sequence: 0)[0] == [0, 1, 2, 9])
        #expect(selection.lists(sequence: 0)[1...] == clean.lists(sequence: 0)[1...])
    }

    // MARK: - Caches

    @Test("a batch selects what each sequence would alone, on any number of threads")
    func batches() throws {
        let fixture = try PageSelectionFixture(lengths: [700, 0, 64, 1200, 65, 3], queryHeads: 6)
        for sharing in SelectionSharing.allCases {
            let selector = try PageSelector(
                queryHeads: 6, configuration: fixture.cache.configuration, tokenBudget: 256, sharing: sharing)
            let batch = try selector.select(
                query: fixture.query.view(), cache: fixture.cache, sequences: fixture.sequences, on: .serial)
            #expect(batch.lists(sequence: 1).allSatisfy { $0.isEmpty })
            for threads in [2, 7] {
                let other = try selector.select(
                    query: fixture.query.view(), cache: fixture.cache, sequences: fixture.sequences,
                    on: WorkerPool(threads: threads))
                #expect(other == batch)
            }
            for (index, sequence) in fixture.sequences.enumerated() {
                let row = try Tensor<Float>([6, 1, 24]) { fixture.query[flat: ($0 / 24 * 6 + index) * 24 + $0 % 24] }
                let alone = try selector.select(query: row.view(), cache: fixture.cache, sequences: [sequence])
                #expect(alone.lists(sequence: 0) == batch.lists(sequence: index))
            }
        }
    }

    @Test("each layer has scores and a length of its own")
    func layers() throws {
        let fixture = try PageSelectionFixture(lengths: [400], layers: 2, pages: 8)
        let more = try Tensor<Float16>.normal([2, 100, 24], seed: 99)
        try fixture.cache.append(key: more.view(), value: more.view(), to: fixture.sequences[0], layer: 1)
        let selector = try PageSelector(
            queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: 192, sharing: .queryHead)
        for layer in 0..<2 {
            let selection = try selector.select(
                query: fixture.query.view(), cache: fixture.cache, sequences: fixture.sequences, layer: layer)
            for (list, scores) in try fixture.pageScores(sequence: 0, sharing: .queryHead, layer: layer).enumerated() {
                #expect(scores.values.count == (layer == 0 ? 7 : 8))
                let expected = ReferencePageSelection.lserve(
                    scores.values, cachedTokens: 400, pageSize: 64, tokenBudget: 192)
                #expect(expected.margin > 2 * scores.bound)
                #expect(selection.lists(sequence: 0)[list] == expected.indices)
            }
        }
    }

    @Test("discarded pages are no candidates")
    func discarded() throws {
        let fixture = try PageSelectionFixture(lengths: [700])
        let selector = try PageSelector(
            queryHeads: 4, configuration: fixture.cache.configuration, tokenBudget: 256, sharing: .queryHead)
        try fixture.cache.discard(fixture.sequences[0], tokens: 100..<330)
        let scores = try selector.pageScores(
            query: fixture.query.view(), cache: fixture.cache, sequence: fixture.sequences[0])
        #expect(scores.positions == [0, 1, 5, 6, 7, 8, 9, 10] && scores.pages.shape == [4, 8])
        #expect(scores.logical.shape == [4, 7 * 4 + 4])
        let selection = try selector.select(
            query: fixture.query.view(), cache: fixture.cache, sequences: fixture.sequences)
        for (list, row) in scores.pages.rows().enumerated() {
            let best = ReferencePageSelection.largest(3, of: row, candidates: 7, forced: [7])
            #expect(selection.lists(sequence: 0)[list] == best.indices.map { Int(scores.positions[$0]) })
        }
        try fixture.cache.discard(fixture.sequences[0], tokens: 0..<640)
        let rest = try selector.select(query: fixture.query.view(), cache: fixture.cache, sequences: fixture.sequences)
        #expect(rest.lists(sequence: 0) == Array(repeating: [10], count: 4))
    }

    // MARK: - Errors

    @Test("bad options and operands are errors that name them")
    func errors() throws {
        let fixture = try PageSelectionFixture(lengths: [100, 3])
        let configuration = fixture.cache.configuration
        func make(
            _ code: SparseKernelsError.Code, _ argument: String, queryHeads: Int = 4, budget: Int = 256, first: Int = 0,
            last: Int = 1, minimum: Int = 3, sourceLocation: SourceLocation = #_sourceLocation
        ) {
            expectError(code, argument, sourceLocation: sourceLocation) {
                _ = try PageSelector(
                    queryHeads: queryHeads, configuration: configuration, tokenBudget: budget, forcedFirst: first,
                    forcedLast: last, minimumPages: minimum)
            }
        }
        make(.invalidShape, "queryHeads", queryHeads: 3)
        make(.invalidShape, "queryHeads", queryHeads: 0)
        make(.invalidArgument, "tokenBudget", budget: 0)
        make(.invalidArgument, "minimumPages", minimum: 0)
        make(.invalidArgument, "forcedFirst", first: -1)
        make(.invalidArgument, "forcedLast", last: -1)
        make(.invalidArgument, "forcedFirst, forcedLast", first: 4, last: 1)
        make(.invalidArgument, "forcedFirst, forcedLast", first: .max, last: 1)
        let plain = try KVCacheConfiguration(kvHeads: 2, headDim: 24, pageCapacity: 1)
        expectError(.invalidArgument, "configuration.metadata") {
            _ = try PageSelector(queryHeads: 4, configuration: plain, tokenBudget: 64)
        }

        let selector = try PageSelector(queryHeads: 4, configuration: configuration, tokenBudget: 256)
        func select(
            _ code: SparseKernelsError.Code, _ argument: String, _ shape: [Int] = [4, 2, 24], cache: PagedKVCache? = nil,
            sequences: [PagedKVCache.SequenceID]? = nil, layer: Int = 0, sourceLocation: SourceLocation = #_sourceLocation
        ) throws {
            let query = try Tensor<Float>(zeros: shape)
            expectError(code, argument, sourceLocation: sourceLocation) {
                _ = try selector.select(
                    query: query.view(), cache: cache ?? fixture.cache, sequences: sequences ?? fixture.sequences, layer: layer)
            }
        }
        try select(.invalidShape, "query", [2, 2, 24])
        try select(.invalidShape, "query", [4, 1, 24])
        try select(.invalidShape, "query", [4, 2, 23])
        try select(.invalidArgument, "layer", layer: 1)
        try select(.invalidShape, "cache", cache: PagedKVCache(plain))
        try fixture.cache.free(fixture.sequences[1])
        try select(.unknownSequence, "sequence")
    }
}
