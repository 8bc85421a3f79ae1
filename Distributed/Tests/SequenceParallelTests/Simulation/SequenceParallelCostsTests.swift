import SparseKernelsReference
import Testing

@testable import SequenceParallel

@Suite("SequenceParallelCosts")
struct SequenceParallelCostsTests {
    @Test("bytes are those of the published formulas where everything divides", arguments: [(1, 4), (2, 2), (4, 1), (8, 4)])
    func formulas(_ ulysses: Int, _ ring: Int) {
        let (n, heads, kvHeads, d) = (4096, 16, 8, 64)
        let costs = SequenceParallelCosts(
            queryHeads: heads, kvHeads: kvHeads, headDim: d, queryElementBytes: 1,
            keyElementBytes: 1, outputElementBytes: 1)
        let ranks = ulysses * ring
        let tokens = Array(repeating: n / ranks, count: ranks)
        for rank in 0..<ranks {
            let sent = costs.sentBytes(by: rank, tokens: tokens, ulysses: ulysses)
            #expect(sent.exchange == n / ranks * d * (2 * heads + 2 * kvHeads) * (ulysses - 1) / ulysses)
            #expect(sent.ring == 2 * (n / ring) * (kvHeads / ulysses) * d * (ring - 1))
            #expect(sent.total == sent.exchange + sent.ring)
        }
    }

    /// Every message of a call, one by one.
    @Test("bytes of uneven shards are the sum of the messages", arguments: [1, 2, 4])
    func uneven(_ ulysses: Int) {
        let tokens = [5, 0, 7, 3, 1, 9, 2, 4]
        let costs = SequenceParallelCosts(
            queryHeads: 4, kvHeads: 2, headDim: 8, valueDim: 16, queryElementBytes: 4,
            keyElementBytes: 2, outputElementBytes: 4, sendsLogSumExp: true)
        let (heads, kvHeads, ring) = (4 / ulysses, max(1, 2 / ulysses), 8 / ulysses)
        for rank in tokens.indices {
            var expected = SequenceParallelCosts.SentBytes()
            let group = rank / ulysses
            for peer in group * ulysses..<(group + 1) * ulysses where peer != rank {
                expected.operands += tokens[rank] * (heads * 8 * 4 + kvHeads * (8 + 16) * 2)
                expected.output += tokens[peer] * heads * (16 * 4 + 4)
            }
            for step in 0..<ring - 1 {
                let held = (group - step + ring) % ring
                let rows = tokens[held * ulysses..<(held + 1) * ulysses].reduce(0, +)
                expected.ring += rows * kvHeads * (8 + 16) * 2
            }
            #expect(costs.sentBytes(by: rank, tokens: tokens, ulysses: ulysses) == expected)
        }
    }

    @Test("heads allow the groups that the attention allows")
    func groups() {
        let costs = SequenceParallelCosts(queryHeads: 12, kvHeads: 2, headDim: 8)
        #expect((1...12).filter(costs.allows) == [1, 2, 4, 6, 12])
        #expect(costs.localKVHeads(ulysses: 4) == 1)
        #expect(SequenceParallelCosts(queryHeads: 12, kvHeads: 4, headDim: 8).allows(ulysses: 6) == false)
        #expect(costs.decodeBytes(ranks: 1) == 0)
        #expect(costs.decodeBytes(ranks: 3, sequences: 2) == 2 * 2 * 12 * 9 * 4)
    }

    @Test("visible pairs are counted as by hand", arguments: [true, false])
    func pairs(_ isCausal: Bool) {
        var generator = SplitMix64(seed: 3)
        for _ in 0..<50 {
            func ranges() -> [Range<Int>] {
                var (list, start): ([Range<Int>], Int) = ([], 0)
                for _ in 0..<Int.random(in: 0...3, using: &generator) {
                    start += Int.random(in: 0...9, using: &generator)
                    let end = start + Int.random(in: 1...9, using: &generator)
                    list.append(start..<end)
                    start = end
                }
                return list
            }
            let (queries, keys) = (ranges(), ranges())
            var expected = 0
            for query in queries.joined() {
                for key in keys.joined() where !isCausal || key <= query { expected += 1 }
            }
            #expect(visiblePairs(queries, keys, isCausal: isCausal) == expected)
        }
    }
}
