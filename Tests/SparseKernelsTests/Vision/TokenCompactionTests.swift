import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Token compaction")
struct TokenCompactionTests {
    @Test("kept rows of ragged batches stay in their order, bit for bit", arguments: [1, 2, 7])
    func rows(_ threads: Int) throws {
        let pool = WorkerPool(threads: threads)
        let lengths = [5, 0, 7, 3000]
        let lists = [[0, 4], [], [1, 2, 6], Array(stride(from: 2, to: 3000, by: 7))]
        let compaction = try TokenCompaction(lengths: lengths, keeping: lists)
        #expect(compaction.tokenCount == 3012 && compaction.sequences == 4)
        let kept = [0, 4] + [6, 7, 11] + lists[3].map { $0 + 12 }
        #expect(compaction.kept.map { Int($0) } == kept)
        #expect(compaction.keptTokens(of: 2) == [1, 2, 6] && compaction.keptTokens(of: 1) == [])
        let x = try Tensor<Float16>.normal([3012, 131], seed: 1)
        let y = try compaction(x, on: pool)
        #expect(y.shape == [kept.count, 131])
        let bits = x.bits
        #expect(y.bits == kept.flatMap { bits[$0 * 131..<($0 + 1) * 131] })
        // Heads of a cache, and a number per token.
        let heads = try Tensor<Float>.normal([3, 3012, 5], seed: 2)
        let fewer = try compaction(heads, on: pool)
        #expect(fewer.shape == [3, kept.count, 5])
        for head in 0..<3 {
            for (row, token) in kept.enumerated() {
                #expect((0..<5).allSatisfy { fewer[head, row, $0] == heads[head, token, $0] })
            }
        }
        let numbers = try Tensor<Int32>([3012]) { Int32($0) }
        #expect(try compaction(numbers, on: pool).elements == compaction.kept)
    }

    /// Rows of 1 part and of several, strided and not.
    @Test("rows move to the front of their own memory", arguments: [3, 1500, 2048], [1, 2, 7])
    func inPlace(_ channels: Int, _ threads: Int) throws {
        let tokens = 60
        let kept = (0..<tokens).filter { $0 % 3 != 1 && $0 > 4 }
        let compaction = try TokenCompaction(length: tokens, keeping: kept)
        let x = try Tensor<Float>.normal([tokens, channels + 2], seed: 3)
        var buffer = x
        let count = try compaction.compact(
            MutableMatrixView(buffer.mutableSpan, rows: tokens, columns: channels, rowStride: channels + 2),
            on: WorkerPool(threads: threads))
        #expect(count == kept.count)
        for (row, token) in kept.enumerated() {
            #expect((0..<channels).allSatisfy { buffer[row, $0] == x[token, $0] })
        }
        // Padding, and rows behind the kept ones, are left alone.
        for row in 0..<tokens {
            for channel in row < kept.count ? channels..<channels + 2 : 0..<channels + 2 {
                #expect(buffer[row, channel] == x[row, channel])
            }
        }
    }

    @Test("positions are renumbered or kept")
    func positions() throws {
        let compaction = try TokenCompaction(lengths: [4, 3], keeping: [[1, 3], [0, 2]])
        #expect(compaction.positions(.kept) == [1, 3, 0, 2])
        #expect(compaction.positions(.renumbered) == [0, 1, 0, 1])
        let old = [7, 8, 9, 10, 2, 3, 4]
        #expect(try compaction.positions(.kept, from: old) == [8, 10, 2, 4])
        #expect(try compaction.positions(.renumbered, from: old) == [7, 8, 2, 3])
        let nothing = try TokenCompaction(lengths: [], keeping: [])
        #expect(nothing.sequences == 0 && nothing.positions(.kept) == [])
        #expect(try nothing(Tensor<Float>(zeros: [0, 4])).shape == [0, 4])
        let none = try TokenCompaction(length: 3, keeping: [])
        #expect(try none(Tensor<Float>.normal([3, 4], seed: 4)).shape == [0, 4])
    }

    @Test("attention over a compacted cache is attention over the kept tokens")
    func cache() throws {
        let configuration = try KVCacheConfiguration(
            layers: 2, kvHeads: 2, headDim: 16, pageSize: 16, pageCapacity: 16, format: .float32)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        let key = try Tensor<Float>.normal([2, 50, 16], seed: 5)
        let value = try Tensor<Float>.normal([2, 50, 16], seed: 6)
        try cache.append(key: key, value: value, to: sequence, layer: 1)
        let compaction = try TokenCompaction(length: 50, keeping: [0, 3, 17, 18, 40, 49])
        let copy = try compaction.copy(sequence, in: cache)
        #expect(try cache.length(of: copy, layer: 1) == 6 && cache.length(of: copy, layer: 0) == 0)
        #expect(try cache.keys(of: copy, layer: 1) == compaction(key))
        #expect(try cache.values(of: copy, layer: 1) == compaction(value))
        #expect(try cache.keys(of: sequence, layer: 1) == key)
        expectError(.invalidShape, "layer 1", containing: "49", "50") {
            _ = try TokenCompaction(length: 49, keeping: []).copy(sequence, in: cache)
        }
        expectError(.invalidShape, "compaction") {
            _ = try TokenCompaction(lengths: [25, 25], keeping: [[], []]).copy(sequence, in: cache)
        }
        // A copy that does not fit leaves the cache as it was.
        let all = try TokenCompaction(length: 50, keeping: Array(0..<50))
        while let another = try? all.copy(sequence, in: cache) { #expect(try cache.length(of: another, layer: 1) == 50) }
        expectError(.capacityExceeded, "pageCapacity") { _ = try all.copy(sequence, in: cache) }
        #expect(try cache.keys(of: copy, layer: 1) == compaction(key))
    }

    @Test("bad input is a typed error")
    func errors() throws {
        expectError(.invalidShape, "lists", containing: "2", "1") { _ = try TokenCompaction(lengths: [1, 2], keeping: [[]]) }
        expectError(.invalidArgument, "lengths[0]") { _ = try TokenCompaction(lengths: [-1], keeping: [[]]) }
        expectError(.invalidShape, "lengths") { _ = try TokenCompaction(length: 1 << 31, keeping: []) }
        for list in [[3], [-1], [1, 1], [2, 0]] {
            expectError(.invalidArgument, "lists[0][\(list.count - 1)]") { _ = try TokenCompaction(length: 3, keeping: list) }
        }
        let compaction = try TokenCompaction(length: 3, keeping: [0, 2])
        expectError(.invalidShape, "x", containing: "3 tokens") { _ = try compaction(Tensor<Float>(zeros: [4, 2])) }
        expectError(.invalidShape, "x") { _ = try compaction(Tensor<Float>(zeros: [3, 2, 2, 2])) }
        expectError(.invalidShape, "old") { _ = try compaction.positions(.kept, from: [1]) }
        let x = try Tensor<Float>(zeros: [3, 2])
        var y = try Tensor<Float>(zeros: [3, 2])
        expectError(.invalidShape, "y", containing: "2 × 2", "3 × 2") {
            try compaction.run(x.matrixView(), into: y.mutableMatrixView())
        }
        var short = try Tensor<Float>(zeros: [2, 2])
        expectError(.invalidShape, "x", containing: "3 rows") { try compaction.compact(short.mutableMatrixView()) }
    }
}
