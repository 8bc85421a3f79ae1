import ReasoningBranches
import SparseKernels
import TestSupport
import Testing

@Suite("Prefix index")
struct PrefixIndexTests {
    private let cache: PagedKVCache
    private let index: PrefixIndex

    init() throws {
        cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 1, headDim: 2, pageSize: 16, pageCapacity: 20, format: .float32))
        index = PrefixIndex(cache: cache)
    }

    private func compute(_ count: Int, after sequence: PagedKVCache.SequenceID) throws {
        let rows = try Tensor<Float>(zeros: [1, count, 2])
        try cache.append(key: rows.view(), value: rows.view(), to: sequence)
    }

    /// What a service does with a request. Returns the tokens that were there.
    @discardableResult
    private func serve(_ tokens: [Int]) throws -> Int {
        let (sequence, length) = try index.take(tokens)
        #expect(try cache.length(of: sequence) == length)
        try compute(tokens.count - length, after: sequence)
        try index.release(sequence, remembering: tokens)
        return length
    }

    @Test("finds the longest beginning, at any length")
    func longest() throws {
        let common = Array(0..<40)
        #expect(try serve(common + [100, 101]) == 0)
        #expect(try serve(common + [100, 101, 102]) == 42)
        #expect(try serve(common + [200]) == 40)
        #expect(try serve(Array(common.prefix(7))) == 7)
        #expect(try serve([50]) == 0)
        #expect(index.listCount == 3 && index.tokenCount == 40 + 3 + 1 + 1)
        for (tokens, length) in [
            (common, 40), (common + [100, 5], 41), (common + [200, 1], 41), ([], 0), ([1], 0), ([0, 0], 1),
        ] {
            #expect(index.matchLength(tokens) == length)
        }
        // 3 pages of the first list; a copy of the last page for the third; one of the single token.
        #expect(cache.usedPageCount == 5)
        #expect(cache.sequences.count == 3)
        index.removeAll()
        #expect(cache.usedPageCount == 0 && index.matchLength(common) == 0 && index.listCount == 0)
    }

    @Test("gives up what was not used for longest, from its end, and beginnings of others last")
    func eviction() throws {
        let common = Array(0..<32)
        for number in 0..<4 { try serve(common + [Int](repeating: 100 + number, count: 32)) }
        #expect(cache.usedPageCount == 2 + 4 * 2)
        #expect(index.matchLength(common + [Int](repeating: 100, count: 32)) == 64)
        // List 0 is used again, so list 1 is the first to go: one page of it is enough.
        let (sequence, _) = try index.take(common + [100])
        try cache.free(sequence)
        #expect(index.evict(untilFree: 11) == 1)
        #expect(index.matchLength(common + [Int](repeating: 101, count: 32)) == 48)
        #expect(index.evict(untilFree: 15) == 4)
        #expect((0..<4).map { index.matchLength(common + [Int](repeating: 100 + $0, count: 32)) } == [64, 32, 32, 48])
        #expect(index.evict(untilFree: 17) == 2)
        #expect((0..<4).map { index.matchLength(common + [Int](repeating: 100 + $0, count: 32)) } == [48, 32, 32, 32])
        #expect(index.evict(untilFree: 20) == 3 && cache.usedPageCount == 0)
        #expect(index.evict(untilFree: 21) == 0)
    }

    @Test("lists whose pages others use stay")
    func pinned() throws {
        try serve(Array(0..<32))
        let (sequence, length) = try index.take(Array(0..<32))
        #expect(length == 32)
        try serve(Array(100..<132))
        #expect(index.evict(untilFree: 20) == 2)
        #expect(index.matchLength(Array(0..<32)) == 32 && index.matchLength(Array(100..<132)) == 0)
        try cache.free(sequence)
        #expect(index.evict(untilFree: 20) == 2)
    }

    @Test("prompts that are short of pages take them from the index")
    func underPressure() throws {
        let tree = BranchTree(cache: cache, prefixes: index)
        for number in 0..<5 { try serve([Int](repeating: number, count: 64)) }
        #expect(cache.freePageCount == 0)
        let branch = try tree.start([Int](repeating: 4, count: 100))
        // The page that the branch shares stays, with those of list 4; one of list 0 had to go for each new page.
        #expect(try tree.step()?.tokens == [[Int](repeating: 4, count: 36)])
        #expect(cache.freePageCount == 3 && index.matchLength([Int](repeating: 0, count: 64)) == 16)
        try tree.remove(branch)
    }

    @Test("hostile calls are errors that change nothing")
    func errors() throws {
        let sequence = cache.makeSequence()
        try compute(5, after: sequence)
        expectError(.invalidArgument, "tokens", containing: "6", "5") { try index.insert([1, 2, 3, 4, 5, 6], of: sequence) }
        expectError(.invalidArgument, "tokens") { try index.release(sequence, remembering: Array(0..<9)) }
        #expect(index.listCount == 0 && cache.sequences == [sequence])
        try index.insert([], of: sequence)
        #expect(index.listCount == 0 && cache.sequences == [sequence])
        try index.insert([1, 2, 3], of: sequence)
        try index.insert([1, 2, 3], of: sequence)
        try index.insert([1, 2], of: sequence)
        #expect(index.listCount == 1 && cache.sequences.count == 2 && cache.usedPageCount == 1)
        try cache.free(sequence)
        expectError(.unknownSequence, "sequence") { try index.insert([1], of: sequence) }
        #expect(index.evict(untilFree: 20) == 1 && index.evict(untilFree: -1) == 0)
        #expect(try index.take([1, 2]).length == 0)
    }
}
