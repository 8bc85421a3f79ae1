import LServe
import SparseKernelsReference
import TestSupport
import Testing

/// Prompts that come in pieces, onto sequences that have tokens.
@Suite("LServe: chunked prompts")
struct LServeChunkTests {
    private static func configuration(_ chunk: Int? = 70) -> LServeConfiguration {
        var configuration = LServeTests.configuration()
        configuration.promptChunkTokens = chunk
        return configuration
    }

    private func piece(
        _ tokens: LServeTests.Tokens, _ range: Range<Int>, _ layer: LServeLayer, _ sequence: LServeLayer.SequenceID,
        on pool: WorkerPool = .shared
    ) throws -> AttentionState {
        let (q, k, v) = try (tokens.query.tokens(range), tokens.key.tokens(range), tokens.value.tokens(range))
        return try layer.prefill(query: q.view(), key: k.view(), value: v.view(), sequence: sequence, on: pool)
    }

    @Test("pieces attend to what one prompt does, and streaming heads hold no more than they may", arguments: LServeTests.kinds)
    func pieces(_ kinds: [Bool]) throws {
        let tokens = try LServeTests.Tokens(330, seed: 20)
        let layer = try LServeTests.layer(kinds, Self.configuration(), tokens: 400, sequences: 1)
        let whole = try LServeTests.layer(kinds, tokens: 400)
        let (sequence, prompt) = try (layer.makeSequence(), whole.makeSequence())
        for range in [0..<40, 40..<41, 41..<41, 41..<73, 73..<143, 143..<213, 213..<280, 280..<320] {
            let state = try piece(tokens, range, layer, sequence)
            #expect(try layer.length(of: sequence) == range.upperBound)
            for head in 0..<LServeTests.queryHeads {
                for token in range {
                    expectRow(
                        state, head: head, token: token - range.lowerBound, query: tokens.queryRows[head][token],
                        keys: tokens.keyRows[head / 2], values: tokens.valueRows[head / 2],
                        positions: kinds[head / 2]
                            ? Array(0...token) : ReferencePagedAttention.streamingPositions(of: token, sink: 5, window: 33),
                        "head \(head), token \(token)")
                }
            }
            if let streaming = layer.streamingCache {
                #expect(streaming.usedPageCount <= layer.configuration.streamingPagesPerSequence)
            }
        }
        // Decoding goes on as after one prompt, and gives the window of prefill back.
        _ = try tokens.prefill(whole, prompt, 320)
        for position in 320..<330 {
            #expect(try tokens.decode(layer, sequence, position) == tokens.decode(whole, prompt, position))
        }
        if let streaming = layer.streamingCache {
            #expect(streaming.usedPageCount <= LServeTests.configuration().streamingPagesPerSequence)
        }
    }

    @Test("after decoding, streaming heads of the next piece see the sink and what decoding kept")
    func turns() throws {
        let tokens = try LServeTests.Tokens(160, seed: 30)
        let kinds = [false, true, false]
        let layer = try LServeTests.layer(kinds, Self.configuration())
        let sequence = try layer.makeSequence()
        _ = try tokens.prefill(layer, sequence, 100)
        for position in 100..<110 { _ = try tokens.decode(layer, sequence, position) }
        // The window of the next step begins at token 87, whose page begins at 80.
        let state = try piece(tokens, 110..<160, layer, sequence)
        for head in 0..<LServeTests.queryHeads {
            for token in 110..<160 {
                let window = ReferencePagedAttention.streamingPositions(of: token, sink: 5, window: 33)
                expectRow(
                    state, head: head, token: token - 110, query: tokens.queryRows[head][token],
                    keys: tokens.keyRows[head / 2], values: tokens.valueRows[head / 2],
                    positions: kinds[head / 2] ? Array(0...token) : window.filter { $0 < 5 || $0 >= 80 },
                    "head \(head), token \(token)")
            }
        }
    }

    @Test("forks go on by themselves, and threads change no bit")
    func forks() throws {
        let tokens = try LServeTests.Tokens(200, seed: 40)
        var configuration = Self.configuration()
        configuration.format = .int8
        var results: [[AttentionState]] = []
        for threads in [1, 2, 7] {
            let pool = WorkerPool(threads: threads)
            let layer = try LServeTests.layer([true, false, true], configuration)
            let parent = try layer.makeSequence()
            _ = try piece(tokens, 0..<60, layer, parent, on: pool)
            _ = try piece(tokens, 60..<130, layer, parent, on: pool)
            let child = try layer.fork(parent)
            results.append(
                try [
                    piece(tokens, 130..<200, layer, parent, on: pool), piece(tokens, 130..<180, layer, child, on: pool),
                    piece(tokens, 180..<200, layer, child, on: pool),
                ])
        }
        #expect(results[1] == results[0] && results[2] == results[0])
    }

    @Test("pieces that are too long, or not announced, are errors and change nothing")
    func errors() throws {
        let tokens = try LServeTests.Tokens(200, seed: 50)
        let layer = try LServeTests.layer([true, false, true], Self.configuration())
        let sequence = try layer.makeSequence()
        _ = try piece(tokens, 0..<90, layer, sequence)
        expectError(.invalidArgument, "key.tokens") { _ = try piece(tokens, 90..<161, layer, sequence) }
        expectError(.invalidShape, "query") {
            let (q, k, v) = try (tokens.query.tokens(0..<2), tokens.key.tokens(0..<3), tokens.value.tokens(0..<3))
            _ = try layer.prefill(query: q.view(), key: k.view(), value: v.view(), sequence: sequence)
        }
        #expect(try layer.length(of: sequence) == 90)
        let other = try LServeTests.layer([true, false, true])
        let second = try other.makeSequence()
        _ = try piece(tokens, 0..<90, other, second)
        expectError(.invalidArgument, "sequence") { _ = try piece(tokens, 90..<91, other, second) }
        expectError(.invalidArgument, "promptChunkTokens") {
            _ = try LServeTests.layer([true], Self.configuration(0))
        }
    }
}
