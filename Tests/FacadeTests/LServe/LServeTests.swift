import LServe
import SparseKernelsReference
import TestSupport
import Testing

@Suite("LServe")
struct LServeTests {
    /// Small pages and windows, with formats that round nothing.
    static func configuration(_ sharing: SelectionSharing = .kvHead) -> LServeConfiguration {
        var configuration = LServeConfiguration()
        configuration.pageSize = 16
        configuration.logicalPageSize = 4
        configuration.tokenBudget = 64
        configuration.sharing = sharing
        configuration.decodeSinkTokens = 20
        configuration.decodeLocalTokens = 24
        configuration.prefillSinkTokens = 5
        configuration.prefillLocalTokens = 33
        configuration.format = .float32
        configuration.metadataFormat = .float32
        return configuration
    }

    static let kinds = [[false, true, false], [true, true, true], [false, false, false], [true, false, true]]
    static let (queryHeads, headDim, valueDim) = (6, 16, 12)

    static func layer(
        _ kinds: [Bool], _ configuration: LServeConfiguration = configuration(), tokens: Int = 600, sequences: Int = 4
    ) throws -> LServeLayer {
        try LServeLayer(
            queryHeads: queryHeads, headDim: headDim, valueDim: valueDim, isRetrieval: kinds, configuration: configuration,
            tokenCapacity: tokens, sequenceCapacity: sequences)
    }

    /// The tokens of a sequence: the prompt and the following ones.
    struct Tokens {
        let query: Tensor<Float>
        let key: Tensor<Float>
        let value: Tensor<Float>
        /// The same tokens by head and token, for the oracle.
        let (queryRows, keyRows, valueRows): ([[[Double]]], [[[Double]]], [[[Double]]])

        init(_ length: Int, kvHeads: Int = 3, seed: UInt64) throws {
            query = try .normal([queryHeads, length, headDim], seed: seed)
            key = try .normal([kvHeads, length, headDim], seed: seed + 1)
            value = try .normal([kvHeads, length, valueDim], seed: seed + 2)
            (queryRows, keyRows, valueRows) = (Self.rows(query), Self.rows(key), Self.rows(value))
        }

        private static func rows(_ tensor: Tensor<Float>) -> [[[Double]]] {
            (0..<tensor.shape[0]).map { tensor.rows(ofHead: $0) }
        }

        func prefill(_ layer: LServeLayer, _ sequence: LServeLayer.SequenceID, _ count: Int) throws -> AttentionState {
            let (q, k, v) = try (query.tokens(0..<count), key.tokens(0..<count), value.tokens(0..<count))
            return try layer.prefill(query: q.view(), key: k.view(), value: v.view(), sequence: sequence)
        }

        func decode(_ layer: LServeLayer, _ sequence: LServeLayer.SequenceID, _ position: Int) throws -> AttentionState {
            let step = position..<position + 1
            let (q, k, v) = try (query.tokens(step), key.tokens(step), value.tokens(step))
            return try layer.decode(query: q.view(), key: k.view(), value: v.view(), sequences: [sequence])
        }
    }

    // MARK: - Prefill

    @Test("a prompt: retrieval heads see all of it, streaming heads sink and window", arguments: kinds, [1, 5, 16, 70])
    func prefill(_ kinds: [Bool], _ length: Int) throws {
        let tokens = try Tokens(length, seed: 10)
        let layer = try Self.layer(kinds)
        let sequence = try layer.makeSequence()
        let state = try tokens.prefill(layer, sequence, length)
        #expect(try layer.length(of: sequence) == length)
        for head in 0..<Self.queryHeads {
            for token in 0..<length {
                expectRow(
                    state, head: head, token: token, query: tokens.queryRows[head][token], keys: tokens.keyRows[head / 2],
                    values: tokens.valueRows[head / 2],
                    positions: kinds[head / 2]
                        ? Array(0...token) : ReferencePagedAttention.streamingPositions(of: token, sink: 5, window: 33),
                    "head \(head), token \(token)")
            }
        }
    }

    // MARK: - Decoding

    /// The pages that the selector's rule selects from the tokens before `position`, per query head.
    static func pages(_ tokens: Tokens, position: Int, sharing: SelectionSharing) throws -> [[Int]] {
        if position == 0 { return Array(repeating: [], count: queryHeads) }
        let scores = (0..<queryHeads).map { head in
            let keys = Array(tokens.keyRows[head / 2].prefix(position))
            let logical = ReferencePageSelection(keys: keys, pageSize: 4).scores(query: tokens.queryRows[head][position])
            return ReferencePageSelection.physicalScores(logical, logicalPages: 4)
        }
        return (0..<queryHeads).map { head in
            let members = sharing == .queryHead ? head..<head + 1 : head / 2 * 2..<head / 2 * 2 + 2
            let best = scores[head].indices.map { page in members.map { scores[$0][page] }.max()! }
            let chosen = ReferencePageSelection.lserve(best, cachedTokens: position, pageSize: 16, tokenBudget: 64)
            // The error of products of 32 terms of about 1 is far smaller.
            #expect(chosen.margin > 1e-5)
            return chosen.indices
        }
    }

    @Test("steps read the chosen pages and the current token, or sink and window", arguments: kinds, [0, 61, 128])
    func decode(_ kinds: [Bool], _ prompt: Int) throws {
        for sharing in SelectionSharing.allCases { try Self.expectSteps(kinds, sharing, prompt) }
    }

    static func expectSteps(_ kinds: [Bool], _ sharing: SelectionSharing, _ prompt: Int) throws {
        let tokens = try Tokens(prompt + 24, seed: 20)
        let layer = try layer(kinds, configuration(sharing))
        let sequence = try layer.makeSequence()
        if prompt > 0 { _ = try tokens.prefill(layer, sequence, prompt) }
        var (pages, selected) = ([[Int]](), 0)
        for position in prompt..<prompt + 24 {
            if position == prompt || position % 4 == 0 {
                (pages, selected) = (try Self.pages(tokens, position: position, sharing: sharing), position)
            }
            let state = try tokens.decode(layer, sequence, position)
            // The pages of all tokens since the selection, including the current one.
            let later = Set(selected / 16...position / 16)
            for head in 0..<queryHeads {
                let positions =
                    kinds[head / 2]
                    ? ReferencePagedAttention.positions(
                        ofPages: later.union(pages[head]).sorted(), pageSize: 16, length: position + 1)
                    : ReferencePagedAttention.streamingPositions(of: position, sink: 20, window: 24)
                expectRow(
                    state, head: head, token: 0, query: tokens.queryRows[head][position], keys: tokens.keyRows[head / 2],
                    values: tokens.valueRows[head / 2], positions: positions, "head \(head), position \(position)")
            }
        }
        #expect(try layer.length(of: sequence) == prompt + 24)
        #expect(layer.selectionCount == (kinds.contains(true) ? 6 + (prompt % 4 == 0 ? 0 : 1) : 0))
    }

    @Test("a batch of different lengths gives what each sequence gives alone, on any number of threads")
    func batches() throws {
        let prompts = [130, 1, 64]
        let all = try prompts.indices.map { try Tokens(prompts[$0] + 9, seed: UInt64(30 + 10 * $0)) }
        let kinds = [true, false, true]
        func run(together: Bool, _ pool: WorkerPool) throws -> [[Float]] {
            let layer = try Self.layer(kinds)
            let sequences = try prompts.map { _ in try layer.makeSequence() }
            for (index, prompt) in prompts.enumerated() { _ = try all[index].prefill(layer, sequences[index], prompt) }
            var outputs = [[Float]](repeating: [], count: prompts.count)
            for step in 0..<9 {
                for group in together ? [Array(prompts.indices)] : prompts.indices.map({ [$0] }) {
                    func batch(_ part: (Tokens) -> Tensor<Float>) throws -> Tensor<Float> {
                        let rows = try group.map { try part(all[$0]).tokens(prompts[$0] + step..<prompts[$0] + step + 1) }
                        let (heads, channels) = (rows[0].shape[0], rows[0].shape[2])
                        return try Tensor([heads, group.count, channels]) {
                            rows[$0 / channels % group.count][flat: $0 / channels / group.count * channels + $0 % channels]
                        }
                    }
                    let (query, key, value) = try (batch(\.query), batch(\.key), batch(\.value))
                    let state = try layer.decode(
                        query: query.view(), key: key.view(), value: value.view(), sequences: group.map { sequences[$0] },
                        on: pool)
                    for (place, index) in group.enumerated() {
                        outputs[index] += try state.output.tokens(place..<place + 1).elements
                    }
                }
            }
            return outputs
        }
        let expected = try run(together: false, .serial)
        for threads in [1, 2, 7] {
            #expect(try run(together: true, WorkerPool(threads: threads)) == expected, "\(threads) threads")
        }
    }

    @Test("appended tokens, in whatever pieces, serve as a prompt does")
    func append() throws {
        let tokens = try Tokens(400, seed: 40)
        let layer = try Self.layer([true, false, true], tokens: 900)
        let (whole, pieces) = try (layer.makeSequence(), layer.makeSequence())
        _ = try tokens.prefill(layer, whole, 390)
        for range in [0..<1, 1..<17, 17..<48, 48..<389, 389..<390] {
            let (key, value) = try (tokens.key.tokens(range), tokens.value.tokens(range))
            try layer.append(key: key.view(), value: value.view(), to: pieces)
        }
        for position in 390..<400 {
            #expect(try tokens.decode(layer, whole, position) == tokens.decode(layer, pieces, position))
        }
    }

    @Test("a fork goes on as its parent would")
    func fork() throws {
        let tokens = try Tokens(140, seed: 50)
        let other = try Tokens(140, seed: 60)
        let layer = try Self.layer([true, false, true])
        let parent = try layer.makeSequence()
        _ = try tokens.prefill(layer, parent, 101)
        let (child, twin) = try (layer.fork(parent), layer.fork(parent))
        try layer.free(parent)
        for position in 101..<140 {
            #expect(try tokens.decode(layer, child, position).output.shape == [6, 1, 12])
        }
        // The twin does not see the child's tokens.
        let state = try other.decode(layer, twin, 101)
        let fresh = try layer.makeSequence()
        _ = try tokens.prefill(layer, fresh, 101)
        #expect(state == (try other.decode(layer, fresh, 101)))
    }

    // MARK: - Memory

    @Test("streaming heads hold sink and window, whatever the length")
    func memory() throws {
        let configuration = Self.configuration()
        #expect(configuration.streamingPagesPerSequence == 2 + 2 + 1)
        #expect(LServeConfiguration().streamingPagesPerSequence == 2 + 4 + 1)
        let tokens = try Tokens(600, seed: 70)
        let layer = try Self.layer([true, false, false], tokens: 640, sequences: 1)
        let sequence = try layer.makeSequence()
        _ = try tokens.prefill(layer, sequence, 500)
        let (retrieval, streaming) = try (#require(layer.retrievalCache), #require(layer.streamingCache))
        #expect(retrieval.configuration.kvHeads == 1 && streaming.configuration.kvHeads == 2)
        for position in 500..<600 {
            _ = try tokens.decode(layer, sequence, position)
            #expect(retrieval.usedPageCount == position / 16 + 1)
            #expect(streaming.usedPageCount <= configuration.streamingPagesPerSequence)
        }
        #expect(layer.usedByteCount == retrieval.usedByteCount + streaming.usedByteCount)
        #expect(layer.byteCount == retrieval.byteCount + streaming.byteCount)
        try layer.free(sequence)
        #expect(layer.usedByteCount == 0)
    }

    // MARK: - Errors

    @Test("bad options are errors that name them")
    func options() throws {
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, queryHeads: Int = 6, kinds: [Bool] = [true, false, true],
            tokens: Int = 64, sequences: Int = 1, sourceLocation: SourceLocation = #_sourceLocation,
            _ change: (inout LServeConfiguration) -> Void = { _ in }
        ) {
            var configuration = Self.configuration()
            change(&configuration)
            expectError(code, argument, sourceLocation: sourceLocation) {
                _ = try LServeLayer(
                    queryHeads: queryHeads, headDim: 16, isRetrieval: kinds, configuration: configuration,
                    tokenCapacity: tokens,
                    sequenceCapacity: sequences)
            }
        }
        expect(.invalidShape, "isRetrieval", kinds: [])
        expect(.invalidShape, "queryHeads", queryHeads: 4)
        expect(.invalidArgument, "tokenCapacity", tokens: 0)
        expect(.invalidArgument, "sequenceCapacity", sequences: 0)
        expect(.invalidArgument, "pageSize") { $0.pageSize = 0 }
        expect(.invalidArgument, "decodeSinkTokens") { $0.decodeSinkTokens = -1 }
        expect(.invalidArgument, "decodeLocalTokens") { $0.decodeLocalTokens = 0 }
        expect(.invalidArgument, "prefillSinkTokens") { $0.prefillSinkTokens = .max }
        expect(.invalidArgument, "prefillLocalTokens") { $0.prefillLocalTokens = 0 }
        expect(.invalidArgument, "tokenBudget") { $0.tokenBudget = 40 }
        expect(.invalidArgument, "tokenBudget") { $0.tokenBudget = 0 }
        expect(.invalidArgument, "interval") { $0.selectionInterval = 0 }
        expect(.invalidArgument, "metadata.logicalPageSize") { $0.logicalPageSize = 5 }
    }

    @Test(
        "after an error a layer goes on as if nothing had happened", arguments: [[true, false, true], [false, false, false]])
    func unchanged(_ kinds: [Bool]) throws {
        var configuration = Self.configuration()
        configuration.format = .int8
        let (layer, twin) = try (Self.layer(kinds, configuration, tokens: 96, sequences: 2), Self.layer(kinds, configuration))
        let tokens = try Tokens(110, seed: 80)
        let (first, second) = try (layer.makeSequence(), layer.makeSequence())
        let sequence = try twin.makeSequence()
        #expect(try tokens.prefill(layer, first, 90) == tokens.prefill(twin, sequence, 90))
        expectError(.capacityExceeded, "sequenceCapacity") { _ = try layer.makeSequence() }
        expectError(.capacityExceeded, "sequenceCapacity") { _ = try layer.fork(first) }
        expectError(.invalidArgument, "sequence") { _ = try tokens.prefill(layer, first, 3) }
        expectError(.invalidShape, "key") {
            let (key, value) = try (Tensor<Float>(zeros: [2, 4, 16]), Tensor<Float>(zeros: [3, 4, 12]))
            try layer.append(key: key.view(), value: value.view(), to: first)
        }
        // An element that no code represents, in the second sequence of a step and late in a prompt.
        var (query, key, value) = try (
            Tensor<Float>(zeros: [6, 2, 16]), Tensor<Float>(zeros: [3, 2, 16]), Tensor<Float>(zeros: [3, 2, 12])
        )
        value[flat: value.count - 1] = .infinity
        expectError(.invalidArgument, "value") {
            _ = try layer.decode(query: query.view(), key: key.view(), value: value.view(), sequences: [first, second])
        }
        expectError(.invalidArgument, "sequences") {
            _ = try layer.decode(query: query.view(), key: key.view(), value: value.view(), sequences: [first, first])
        }
        key = try .normal([3, 70, 16], seed: 1)
        value = try .normal([3, 70, 12], seed: 2)
        value[flat: value.count - 1] = .nan
        expectError(.invalidArgument, "value") { try layer.append(key: key.view(), value: value.view(), to: first) }
        if kinds.contains(true) {
            key = try .normal([3, 200, 16], seed: 1)
            value = try .normal([3, 200, 12], seed: 2)
            expectError(.capacityExceeded, "pageCapacity") {
                try layer.append(key: key.view(), value: value.view(), to: second)
            }
        }
        query = try .normal([6, 1, 16], seed: 3)
        #expect(try layer.length(of: first) == 90 && layer.length(of: second) == 0)
        for position in 90..<100 {
            #expect(try tokens.decode(layer, first, position) == tokens.decode(twin, sequence, position), "\(position)")
        }
        try layer.free(second)
        expectError(.unknownSequence, "sequence") { _ = try layer.length(of: second) }
        expectError(.unknownSequence, "sequence") { try layer.free(second) }
    }

    // MARK: - Recorded steps

    @Test(
        "recorded steps: the same pages and windows, outputs within 1e-5",
        .enabled(if: !TestData.externalFiles(in: "goldens/lserve").isEmpty, TestData.absence),
        arguments: TestData.externalFiles(in: "goldens/lserve"))
    func recorded(_ path: String) throws {
        let file = try SafetensorsFile(path: path)
        let (key, value) = try (file.tensor("in.k", as: Float16.self), file.tensor("in.v", as: Float16.self))
        let query = try RecordedSteps.query(file)
        let cached = key.shape[1] - 1
        var configuration = LServeConfiguration()
        configuration.tokenBudget = try 64 * file.tensor("out.selected_pages", as: Int32.self).shape[1]
        configuration.sharing = .queryHead
        configuration.format = .float16
        for isRetrieval in [true, false] {
            let layer = try LServeLayer(
                queryHeads: query.shape[0], headDim: key.shape[2],
                isRetrieval: Array(repeating: isRetrieval, count: key.shape[0]), configuration: configuration,
                tokenCapacity: cached + 1)
            let sequence = try layer.makeSequence()
            let (keys, values) = try (key.tokens(0..<cached), value.tokens(0..<cached))
            try layer.append(key: keys.view(), value: values.view(), to: sequence)
            let (k, v) = try (key.tokens(cached..<cached + 1), value.tokens(cached..<cached + 1))
            let state = try layer.decode(query: query.view(), key: k.view(), value: v.view(), sequences: [sequence])
            let output = try file.tensor(isRetrieval ? "out.attention_output" : "out.streaming_output", as: Float.self)
            #expect(zip(state.output.elements, output.elements).allSatisfy { abs($0 - $1) <= 1e-5 })
        }
    }
}
