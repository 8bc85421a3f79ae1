import SparseKernels
import TestSupport
import Testing

@Suite("Paged KV cache: accounting")
struct PagedKVCachePagesTests {
    private let model: PagedKVCacheModel

    init() throws {
        model = try PagedKVCacheModel(
            KVCacheConfiguration(layers: 2, kvHeads: 2, headDim: 3, pageSize: 16, pageCapacity: 40, format: .float32))
        _ = model.make()
        try model.append(40, to: 0)
    }

    @Test("a sequence knows its pages and who else has them")
    func use() throws {
        let cache = model.cache
        try model.fork(0)
        try model.fork(0, at: 20)
        try model.append(1, to: 1)
        let uses = try model.sequences.map { try cache.pageUse(of: $0.id) }
        #expect(uses.map(\.total) == [3, 3, 2] && uses.map(\.shared) == [2, 2, 2] && uses.map(\.own) == [1, 1, 0])
        #expect(try cache.pageOwners(of: model.sequences[0].id) == [3, 3, 1])
        try model.discard(0..<16, of: 0)
        #expect(try cache.pageOwners(of: model.sequences[0].id) == [0, 3, 1])
        #expect(try cache.pageUse(of: model.sequences[0].id).total == 2)
    }

    @Test("a step takes the pages that were foretold, also where writers share a page")
    func needed() throws {
        let cache = model.cache
        for length in [40, 40, 32, 33, 3] { try model.fork(0, at: length) }
        let ids = model.sequences.map(\.id)
        for counts in [[1, 1, 1, 1, 1, 1], [0, 0, 20, 1, 17, 0], [0, 0, 0, 0, 0, 0], [9, 0, 0, 1, 0, 50]] {
            let needed = try cache.pagesNeeded(toAppend: counts, to: ids)
            let before = cache.freePageCount
            for (index, count) in counts.enumerated() { try model.append(count, to: index) }
            #expect(before - cache.freePageCount == needed, "\(counts)")
        }
        try model.check("at the end")
    }

    @Test("arguments that do not fit are errors")
    func errors() throws {
        let (cache, id) = (model.cache, model.sequences[0].id)
        expectError(.invalidShape, "counts") { _ = try cache.pagesNeeded(toAppend: [1, 2], to: [id]) }
        expectError(.invalidArgument, "sequences") { _ = try cache.pagesNeeded(toAppend: [1, 2], to: [id, id]) }
        for count in [-1, Int.max, Int.min] {
            expectError(.invalidArgument, "counts[0]") { _ = try cache.pagesNeeded(toAppend: [count], to: [id]) }
        }
        try model.free(0)
        expectError(.unknownSequence, "sequence") { _ = try cache.pagesNeeded(toAppend: [1], to: [id]) }
        expectError(.unknownSequence, "sequence") { _ = try cache.pageUse(of: id) }
        expectError(.unknownSequence, "sequence") { _ = try cache.pageOwners(of: id) }
    }
}
