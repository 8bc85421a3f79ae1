import SparseKernelsReference
import Testing

@testable import SequenceParallel

/// What a user would state of attention on ranks, and what it sends.
@Suite("Sequence-parallel attention, statements")
struct SequenceParallelPropertyTests {
    typealias Scene = AttentionScene<Float>

    @Test("outputs are within the values that a token sees")
    func hull() throws {
        let scene = try Scene(length: 57, queryHeads: 4, kvHeads: 2, seed: 11, scale: 3)
        let state = try scene.attend(.zigzag(length: 57, ulysses: 2, ring: 2), .init(ulysses: 2)).state
        for head in 0..<4 {
            var (low, high) = ([Float](repeating: .infinity, count: 8), [Float](repeating: -.infinity, count: 8))
            for token in 0..<57 {
                for channel in 0..<8 {
                    let value = scene.value[head / 2, token, channel]
                    low[channel] = min(low[channel], value)
                    high[channel] = max(high[channel], value)
                    let output = state.output[head, token, channel]
                    let slack = 1e-5 * max(abs(low[channel]), abs(high[channel]))
                    #expect(output >= low[channel] - slack && output <= high[channel] + slack)
                }
            }
        }
    }

    @Test("the first token's output is its value")
    func firstToken() throws {
        let scene = try Scene(length: 40, queryHeads: 2, kvHeads: 2, seed: 12)
        let state = try scene.attend(.random(length: 40, ranks: 4, pieces: 11, seed: 3), .init(ulysses: 2)).state
        for head in 0..<2 {
            for channel in 0..<8 { #expect(state.output[head, 0, channel] == scene.value[head, 0, channel]) }
        }
    }

    @Test("who has a token does not matter")
    func order() throws {
        let scene = try Scene(length: 60, queryHeads: 4, kvHeads: 2, seed: 13)
        let options = Scene.Options(ulysses: 2)
        for shards in [
            try TokenShards.zigzag(length: 60, ulysses: 2, ring: 2), try .contiguous(lengths: [3, 0, 40, 17]),
            // Later tokens before earlier ones, and alternating ones.
            try TokenShards(length: 60, ranges: [[45..<60], [30..<45], [15..<30], [0..<15]]),
            try TokenShards(length: 60, ranges: (0..<4).map { rank in stride(from: rank, to: 60, by: 4).map { $0..<$0 + 1 } }),
        ] {
            try scene.expectMatch(try scene.attend(shards, options).state, options, merges: 3, "\(shards.ranges)")
        }
    }

    @Test("a change of a token changes nothing before it")
    func causality() throws {
        let scene = try Scene(length: 48, queryHeads: 4, kvHeads: 4, seed: 14)
        var (key, value) = (scene.key, scene.value)
        key.update { position, element in if position / 8 % 48 >= 30 { element += 1 } }
        value.update { position, element in if position / 8 % 48 >= 30 { element -= 1 } }
        let shards = try TokenShards.zigzag(length: 48, ulysses: 2, ring: 4)
        let before = try scene.attend(shards, .init(ulysses: 2)).state
        let after = try Scene(query: scene.query, key: key, value: value).attend(shards, .init(ulysses: 2)).state
        for head in 0..<4 {
            for token in 0..<48 {
                let isEqual = (0..<8).allSatisfy { before.output[head, token, $0] == after.output[head, token, $0] }
                #expect(isEqual == (token < 30))
            }
        }
    }

    @Test("neither timing nor overlap change a bit")
    func timing() throws {
        let scene = try Scene(length: 70, queryHeads: 4, kvHeads: 1, seed: 15)
        for (shards, ulysses) in [
            (try TokenShards.zigzag(length: 70, ulysses: 2, ring: 2), 2), (try .contiguous(length: 70, ranks: 3), 1),
        ] {
            var options = Scene.Options(ulysses: ulysses, sliceRows: 8)
            let expected = try scene.attend(shards, options).state.bits
            options.overlaps = false
            #expect(try scene.attend(shards, options).state.bits == expected)
            options.overlaps = true
            for delays in 1...3 as ClosedRange<UInt64> {
                options.delays = delays
                #expect(try scene.attend(shards, options).state.bits == expected)
            }
        }
    }

    /// Large enough for copies, slices and merges to wake threads.
    @Test("threads change no bit")
    func threads() throws {
        let scene = try Scene(length: 1600, queryHeads: 4, kvHeads: 2, headDim: 64, seed: 19)
        let shards = try TokenShards.zigzag(length: 1600, ulysses: 1, ring: 2)
        let expected = try scene.attend(shards, .init()).state
        for threads in [2, 7] {
            let state = try scene.attend(shards, .init(threads: threads)).state
            #expect(state == expected)
        }
    }

    @Test("later calls use the buffers of the first")
    func buffers() throws {
        let scene = try Scene(length: 40, queryHeads: 2, kvHeads: 1, seed: 20)
        let shards = try TokenShards.zigzag(length: 40, ulysses: 2, ring: 3)
        let isKept = try LocalCommunicator.run(ranks: 6) { (ranks) throws(SparseKernelsError) in
            let attention = try SequenceParallelAttention(
                shards, queryHeads: 2, kvHeads: 1, headDim: 8, mask: .causal, ulysses: 2, on: ranks)
            let tokens = shards.positions(of: ranks.rank)
            let (q, k, v) = (
                try scene.query.tokens(tokens), try scene.key.tokens(tokens), try scene.value.tokens(tokens)
            )
            _ = try attention(query: q, key: k, value: v, on: .serial)
            guard case .ring(let ring) = attention.work else { return false }
            let buffers = ring.buffers
            let all = {
                [
                    buffers.queries, buffers.keys, buffers.nextKeys, buffers.earlierKeys, buffers.states, buffers.outputs,
                    buffers.partial,
                ]
            }
            let before = all()
            _ = try attention(query: q, key: k, value: v, on: .serial)
            return zip(before, all()).allSatisfy { $0 === $1 && $0.byteCount > 0 }
        }
        #expect(isKept == Array(repeating: true, count: 6))
    }

    @Test("NaN and infinity stay in the rows that see them")
    func nonFinite() throws {
        let scene = try Scene(length: 44, queryHeads: 2, kvHeads: 2, seed: 16)
        let shards = try TokenShards.zigzag(length: 44, ulysses: 2, ring: 2)
        let clean = try scene.attend(shards, .init(ulysses: 2)).state
        var (query, value) = (scene.query, scene.value)
        query[0, 20, 3] = .nan
        value[1, 30, 2] = .infinity
        let state = try Scene(query: query, key: scene.key, value: value).attend(shards, .init(ulysses: 2)).state
        for head in 0..<2 {
            for token in 0..<44 {
                for channel in 0..<8 {
                    let (actual, expected) = (state.output[head, token, channel], clean.output[head, token, channel])
                    if head == 0 && token == 20 {
                        #expect(actual.isNaN)
                    } else if head == 1 && token >= 30 && channel == 2 {
                        #expect(actual == .infinity)
                    } else {
                        #expect(actual == expected, "\(head), \(token), \(channel)")
                    }
                }
            }
        }
        #expect(state.logSumExp[0, 20].isNaN)
    }

    @Test("ranks send what the formula says", arguments: [(1, 4), (2, 2), (4, 1), (4, 2)])
    func bytes(_ ulysses: Int, _ ring: Int) throws {
        let (n, heads, kvHeads, d) = (501, 8, 4, 8)
        let scene = try Scene(length: n, queryHeads: heads, kvHeads: kvHeads, headDim: d, seed: 17)
        for mask in [AttentionMask.causal, .full] {
            let result = try scene.attend(
                .zigzag(length: n, ulysses: ulysses, ring: ring), .init(mask: mask, ulysses: ulysses))
            // Of all ranks: queries, keys, values and outputs (with an LSE per row) leave their rank but for 1/U of the heads,
            // and the keys and values of a group visit R − 1 others.
            let rows = Double(4 * n * (heads * (2 * d + 1) + kvHeads * 2 * d))
            let exchange = rows * Double(ulysses - 1) / Double(ulysses)
            let passed = Double(4 * n * kvHeads * 2 * d * (ring - 1))
            let sent = result.statistics.reduce(0) { $0 + $1.sentBytes }
            #expect(abs(Double(sent) / (exchange + passed) - 1) < 0.02)
            let mean = Double(sent) / Double(ulysses * ring)
            for statistics in result.statistics {
                #expect(statistics.sentBytes == statistics.expectedSentBytes)
                #expect(abs(Double(statistics.sentBytes) / mean - 1) < 0.02)
            }
        }
    }

    @Test("copies of heads, 16 bits, and groups that nobody sees are counted")
    func bytesOfOthers() throws {
        let scene = try AttentionScene<BFloat16>(length: 96, queryHeads: 4, kvHeads: 1, seed: 18)
        for mask in [AttentionMask.causal, .causal(window: 10)] {
            let result = try scene.attend(.contiguous(length: 96, ranks: 8), .init(mask: mask, ulysses: 2))
            for statistics in result.statistics { #expect(statistics.sentBytes == statistics.expectedSentBytes) }
        }
    }

    @Test("time is accounted for")
    func statistics() throws {
        let scene = try Scene(length: 80, queryHeads: 2, kvHeads: 1)
        let statistics = try scene.attend(.zigzag(length: 80, ulysses: 1, ring: 2), .init()).statistics
        for rank in statistics {
            #expect(rank.attentionSeconds > 0 && rank.exchangeSeconds > 0 && rank.waitingSeconds >= 0)
            #expect(rank.seconds < 60)
        }
    }
}
