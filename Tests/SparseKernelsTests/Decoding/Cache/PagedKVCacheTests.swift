import SparseKernels
import Testing

@Suite("Paged KV cache")
struct PagedKVCacheTests {
    private static let bounds = SmallCache.all[0]
    private static let alone = SmallCache.all[2]

    /// A cache of pages of 16 tokens, with one sequence of `tokens` tokens in both layers.
    private func model(_ small: SmallCache, tokens: Int, pageCapacity: Int = 12) throws -> PagedKVCacheModel {
        let model = try PagedKVCacheModel(small.configuration(pageCapacity: pageCapacity))
        let index = model.make()
        if tokens > 0 { try model.append(tokens, to: index) }
        return model
    }

    // MARK: - Lengths and memory

    @Test("pages are taken when their first token comes", arguments: [1, 3, 7, 15, 16, 17, 32, 33])
    func pages(_ tokens: Int) throws {
        let model = try model(Self.bounds, tokens: tokens)
        #expect(model.cache.usedPageCount == (tokens + 15) / 16)
        #expect(model.cache.byteCount == 12 * model.configuration.bytesPerPage)
        try model.check("\(tokens) tokens")
    }

    @Test("tokens appended one by one give the same cache as all at once", arguments: SmallCache.all)
    func oneByOne(_ small: SmallCache) throws {
        let (whole, single) = (try model(small, tokens: 0), try model(small, tokens: 0))
        try whole.append(37, to: 0)
        for layer in 0..<2 { for _ in 0..<37 { try single.append(1, to: 0, layer: layer) } }
        // Tokens are numbered in the order of appending, so that both have the same.
        #expect(whole.sequences[0].model == single.sequences[0].model)
        try whole.check("at once")
        try single.check("one by one")
    }

    @Test("operands may have any type and layout")
    func operands() throws {
        let cache = try PagedKVCache(Self.alone.configuration(layers: 1))
        let sequence = cache.makeSequence()
        // [tokens, heads, channels]
        let keys = try Tensor<Float16>([7, 2, 9]) { Float16($0 % 100) }
        let values = try Tensor<BFloat16>([7, 2, 5]) { BFloat16(Float($0 % 50)) }
        try cache.append(key: keys.view(layout: .nhd), value: values.view(layout: .nhd), to: sequence)
        let (readKeys, readValues) = try (cache.keys(of: sequence), cache.values(of: sequence))
        for head in 0..<2 {
            for token in 0..<7 {
                #expect(readKeys[flat: (head * 7 + token) * 9 + 3] == Float(((token * 2 + head) * 9 + 3) % 100))
                #expect(readValues[flat: (head * 7 + token) * 5 + 4] == Float(((token * 2 + head) * 5 + 4) % 50))
            }
        }
    }

    @Test("layers share pages and have lengths of their own")
    func layers() throws {
        let model = try model(Self.bounds, tokens: 12)
        try model.append(9, to: 0, layer: 1)
        #expect(try model.cache.pageTable(of: model.sequences[0].id).count == 2)
        try model.append(18, to: 0, layer: 0)
        #expect(try model.cache.pageTable(of: model.sequences[0].id).count == 2)
        try model.truncate(0, to: 26)
        #expect(try model.cache.length(of: model.sequences[0].id, layer: 0) == 26)
        #expect(try model.cache.length(of: model.sequences[0].id, layer: 1) == 21)
        try model.check("lengths 26 and 21")
    }

    // MARK: - Forks

    @Test("a fork at 0 has no pages", arguments: [bounds, alone])
    func forkAtZero(_ small: SmallCache) throws {
        let model = try model(small, tokens: 23)
        let child = try model.fork(0, at: 0)
        #expect(try model.cache.pageTable(of: model.sequences[child].id).isEmpty)
        try model.append(3, to: child)
        try model.check("fork at 0")
        #expect(model.cache.usedPageCount == 3)
    }

    @Test("a fork on a page boundary shares full pages for good", arguments: [bounds, alone])
    func forkOnBoundary(_ small: SmallCache) throws {
        let model = try model(small, tokens: 40)
        let child = try model.fork(0, at: 32)
        #expect(model.cache.usedPageCount == 3)
        try model.append(10, to: child)
        try model.append(10, to: 0)
        try model.check("fork at 32")
        // The pages are 2 shared ones, the parent's third and fourth, and the child's third.
        #expect(model.cache.usedPageCount == 5)
        let tables = try model.sequences.map { try model.cache.pageTable(of: $0.id) }
        #expect(tables[0].prefix(2) == tables[1].prefix(2) && tables[0][2] != tables[1][2])
    }

    @Test("two children write after sharing a partial page", arguments: [bounds, alone])
    func partialPage(_ small: SmallCache) throws {
        let model = try model(small, tokens: 26)
        let (first, second) = (try model.fork(0), try model.fork(0))
        #expect(model.cache.usedPageCount == 2)
        try model.append(1, to: first)
        #expect(model.cache.usedPageCount == 3)
        try model.append(1, to: second)
        #expect(model.cache.usedPageCount == 4)
        // The parent is now the only owner of the page, so that it is not copied.
        try model.append(1, to: 0)
        #expect(model.cache.usedPageCount == 4)
        try model.check("three sequences")
        try model.free(0)
        #expect(model.cache.usedPageCount == 3)
        try model.check("without the parent")
    }

    @Test("overwriting a shared page copies it")
    func overwriteShared() throws {
        let model = try model(Self.bounds, tokens: 48)
        let child = try model.fork(0)
        try model.overwrite(15..<17, of: child, layer: 1)
        #expect(model.cache.usedPageCount == 5)
        try model.overwrite(15..<17, of: 0, layer: 0)
        #expect(model.cache.usedPageCount == 5)
        try model.check("overwritten on both sides")
    }

    @Test("a cut through a logical page gives the child a page of its own, one between logical pages does not")
    func forkInsideLogicalPage() throws {
        let model = try model(Self.bounds, tokens: 32)
        try model.fork(0, at: 24)
        #expect(model.cache.usedPageCount == 2)
        try model.fork(0, at: 25)
        #expect(model.cache.usedPageCount == 3)
        try model.check("forks at 24 and 25, in logical pages of 4 tokens")
        let alone = try self.model(Self.alone, tokens: 32)
        try alone.fork(0, at: 25)
        #expect(alone.cache.usedPageCount == 2)
    }

    @Test("a child that is freed without tokens leaves the cache unchanged")
    func childWithoutTokens() throws {
        let model = try model(Self.bounds, tokens: 26)
        let before = try model.snapshot()
        try model.free(try model.fork(0))
        try model.free(try model.fork(0, at: 0))
        #expect(try model.snapshot() == before)
    }

    @Test("a chain of forks shares its common pages")
    func chain() throws {
        let model = try model(Self.alone, tokens: 32)
        var index = 0
        for _ in 0..<5 {
            index = try model.fork(index)
            try model.append(1, to: index)
        }
        // All share 2 pages, and each has a copy of its parent's later ones.
        #expect(model.cache.usedPageCount == 7)
        try model.check("chain")
    }

    // MARK: - Truncation

    @Test("truncating shared pages does not free them", arguments: [bounds, alone])
    func truncateShared(_ small: SmallCache) throws {
        let model = try model(small, tokens: 40)
        let child = try model.fork(0)
        try model.truncate(0, to: 21)
        try model.check("truncated to 21")
        #expect(try model.cache.length(of: model.sequences[child].id) == 40)
        try model.append(2, to: 0)
        try model.check("appended again")
        try model.truncate(0, to: 0)
        #expect(model.cache.usedPageCount == 3)
        try model.check("truncated to 0")
    }

    @Test("a sequence is cut back and continued, as APR does at join", arguments: SmallCache.all)
    func rollback(_ small: SmallCache) throws {
        let model = try model(small, tokens: 37)
        for _ in 0..<4 {
            try model.append(21, to: 0)
            try model.truncate(0, to: 37)
            try model.check("cut back to 37")
        }
        #expect(model.cache.usedPageCount == 3)
    }

    @Test("truncating to where the sequence ends does nothing")
    func truncateToLength() throws {
        let model = try model(Self.bounds, tokens: 26)
        let child = try model.fork(0)
        try model.truncate(child, to: 26)
        #expect(model.cache.usedPageCount == 2)
        try model.check("untouched")
    }

    // MARK: - Discarding

    @Test("discarding gives back whole pages only", arguments: [(0, 64, 4), (1, 64, 3), (16, 47, 1), (15, 33, 1), (17, 32, 0)])
    func discard(_ start: Int, _ end: Int, _ pages: Int) throws {
        let model = try model(Self.bounds, tokens: 70)
        let child = try model.fork(0)
        try model.discard(start..<end, of: 0)
        try model.discard(start..<end, of: 0)
        #expect(model.cache.usedPageCount == 5)
        try model.free(child)
        #expect(model.cache.usedPageCount == 5 - pages)
        try model.append(15, to: 0)
        try model.check("discarded \(start)..<\(end)")
    }

    @Test("a streaming head needs pages for the sink and the window, however long it runs")
    func streaming() throws {
        let model = try model(Self.bounds, tokens: 1, pageCapacity: 5)
        for _ in 0..<400 {
            try model.append(1, to: 0)
            let length = model.sequences[0].model.longest
            if length > 36 { try model.discard(16..<length - 20, of: 0) }
        }
        #expect(try model.cache.length(of: model.sequences[0].id) == 401)
        try model.check("401 tokens in 5 pages")
    }

    @Test("forks and cuts of sequences keep holes")
    func holes() throws {
        let model = try model(Self.bounds, tokens: 80)
        try model.discard(16..<48, of: 0)
        let child = try model.fork(0, at: 53)
        try model.append(3, to: child)
        try model.truncate(0, to: 32)
        #expect(try model.cache.pageTable(of: model.sequences[0].id)[1...] == [-1])
        try model.append(1, to: 0)
        try model.check("holes on both sides")
    }

    // MARK: - Names

    @Test("the name of a freed sequence is never known again")
    func names() throws {
        let cache = try PagedKVCache(Self.alone.configuration())
        let first = cache.makeSequence()
        try cache.free(first)
        let second = cache.makeSequence()
        #expect(first != second && cache.sequences == [second])
        #expect(throws: SparseKernelsError.self) { try cache.length(of: first) }
        #expect(try cache.length(of: second) == 0)
    }

    // MARK: - Bytes

    /// The example of Docs/Layouts/KVPages.md, as token 5 of a page.
    @Test("bytes are those of the worked example of the layout page", arguments: InstructionSet.available)
    func bytes(_ set: InstructionSet) throws {
        let configuration = try KVCacheConfiguration(
            kvHeads: 1, headDim: 8, pageSize: 16, pageCapacity: 1, format: .int4, quantization: .zeroPoint)
        let cache = try PagedKVCache(configuration, instructionSet: set)
        let sequence = cache.makeSequence()
        let row: [Float] = [0.31, 0.42, -0.57, 0.23, -1.79, -2.18, 1.90, 4.32]
        let token = try Tensor<Float>([1, 6, 8]) { $0 < 40 ? 0 : row[$0 % 8] }
        try cache.append(key: token.view(), value: token.view(), to: sequence)
        func bytes(_ kind: KVSection.Kind, _ range: Range<Int>) -> [UInt8] {
            let section = cache.storage.sections.first { $0.kind == kind }!
            let page = cache.storage.page(0, of: section, layer: 0, head: 0)
            return Array(UnsafeRawBufferPointer(start: page, count: section.bytesPerPage)[range])
        }
        #expect(bytes(.keyScales, 10..<12) == [0xef, 0x36] && bytes(.keyOffsets, 10..<12) == [0x08, 0x45])
        #expect(bytes(.keys, 20..<24) == [0x66, 0x64, 0x01, 0xf9])
        // The words are channels. Byte 2 has tokens 4 and 5, of which token 4 is zero.
        let words = bytes(.values, 0..<32)
        #expect((0..<8).map { words[4 * $0 + 2] } == [0x60, 0x60, 0x40, 0x60, 0x10, 0x00, 0x90, 0xf0])
        let read = try cache.keys(of: sequence, tokens: 5..<6).elements
        #expect(read == [6, 6, 4, 6, 1, 0, 9, 15].map { (Float($0) - 5.03125) * 0.433349609375 })
    }
}
