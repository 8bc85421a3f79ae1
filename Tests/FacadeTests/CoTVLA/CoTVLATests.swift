import CoTVLA
import SparseKernelsReference
import TestSupport
import Testing

@Suite("CoT-VLA")
struct CoTVLATests {
    // MARK: - Sequences

    @Test("a row sees what comes before it, and its own span of actions")
    func limits() throws {
        let sequence = try CoTVLASequence([
            (.observation, 4), (.instruction, 2), (.subgoal, 3), (.actions, 5), (.observation, 2), (.actions, 3),
        ])
        #expect(sequence.length == 19 && sequence.actionSpans == [9..<14, 16..<19])
        let shape = try AttentionShape(queryLength: 15, keyLength: 19, queryHeads: 1, kvHeads: 1, headDim: 4)
        let limits = try sequence.limits(shape)
        for query in 0..<15 {
            for key in 0..<19 {
                let position = query + 4
                let shares = sequence.actionSpans.contains { $0.contains(position) && $0.contains(key) }
                #expect(limits.isVisible(query: query, key: key) == (key <= position || shares))
            }
        }
        #expect(try CoTVLASequence([]).length == 0)
        #expect(try CoTVLASequence([(.actions, 0), (.actions, 2), (.actions, 2)]).actionSpans == [0..<2, 2..<4])
    }

    @Test("bad sequences are typed errors")
    func sequenceErrors() throws {
        expectError(.invalidArgument, "actionSpans[1]", containing: "4...20", "3..<8") {
            _ = try CoTVLASequence(length: 20, actionSpans: [0..<4, 3..<8])
        }
        expectError(.invalidArgument, "actionSpans[1]") { _ = try CoTVLASequence(length: 20, actionSpans: [8..<9, 1..<2]) }
        expectError(.invalidArgument, "actionSpans[0]") { _ = try CoTVLASequence(length: 20, actionSpans: [19..<21]) }
        expectError(.invalidArgument, "actionSpans[0]") { _ = try CoTVLASequence(length: 20, actionSpans: [-1..<2]) }
        expectError(.invalidShape, "length") { _ = try CoTVLASequence(length: -1, actionSpans: []) }
        expectError(.invalidArgument, "segments[1]") { _ = try CoTVLASequence([(.subgoal, 2), (.actions, -2)]) }
        expectError(.invalidArgument, "segments[1]") { _ = try CoTVLASequence([(.subgoal, 2), (.actions, .max)]) }
        let sequence = try CoTVLASequence(length: 20, actionSpans: [])
        let other = try AttentionShape(queryLength: 4, keyLength: 19, queryHeads: 1, kvHeads: 1, headDim: 4)
        expectError(.invalidShape, "keyLength", containing: "20", "19") { _ = try sequence.limits(other) }
        let long = try AttentionShape(queryLength: 21, keyLength: 20, queryHeads: 1, kvHeads: 1, headDim: 4)
        expectError(.invalidShape, "queryLength") { _ = try sequence.limits(long) }
    }

    // MARK: - Bins

    @Test("values come back within half a bin, and outliers at the ends")
    func bins() throws {
        let bins = try ActionBins(low: [-1, 0, 5], high: [1, 0.5, 5])
        let actions = try Tensor<Float>([4, 3], [-1, 0, 5, 1, 0.5, 5, 0.123, 0.3, 5, -7, 9, 6])
        let codes = try bins.bins(of: actions)
        #expect(codes == [0, 0, 0, 255, 255, 0, 143, 153, 0, 0, 255, 0])
        let values = try bins.actions(of: codes)
        #expect(values.shape == [4, 3])
        for index in 0..<9 where index % 3 != 2 {
            let step: Float = index % 3 == 0 ? 2 / 256.0 : 0.5 / 256
            #expect(abs(values[flat: index] - actions[flat: index]) <= step / 2 + 1e-7)
        }
        #expect(values[3, 0] == -1 + 1 / 256.0 && values[0, 2] == 5)
        // Every bin is the bin of its centre.
        let all = try bins.actions(of: (0..<256).flatMap { [Int32($0), Int32($0), 0] })
        #expect(try bins.bins(of: all) == (0..<256).flatMap { [Int32($0), Int32($0), 0] })
    }

    @Test("percentiles are those of the sorted values, between neighbours")
    func percentiles() throws {
        // 0, 1, …, 200 in some order: the 1st percentile is 2 and the 99th 198; a dimension of 5 values lies between them.
        let actions = try Tensor<Float>([201, 2]) { index in
            index % 2 == 0 ? Float(index / 2 * 37 % 201) : 10 * Float(index / 2 % 5)
        }
        let bins = try ActionBins(percentilesOf: actions)
        #expect(bins.count == 256 && bins.low == [2, 0] && bins.high == [198, 40])
        let few = try ActionBins(percentilesOf: Tensor([3, 1], [4, 0, 1]), range: 0.25...0.75, count: 8)
        #expect(few.low == [0.5] && few.high == [2.5])
        let one = try ActionBins(percentilesOf: Tensor([1, 1], [3]))
        #expect(one.low == [3] && one.high == [3])
    }

    @Test("tokens are the rarest of the vocabulary, and files keep every bit")
    func tokens() throws {
        let bins = try ActionBins(low: [-0.1, 1.0 / 3], high: [0.7, 2.0 / 3], count: 4)
        let tokenizer = try ActionTokenizer(bins, leastUsedOf: [9, 0, 3, 7, 3, 3, 8, 1])
        // Of the three tokens with 3 uses, the last two.
        #expect(tokenizer.vocabulary == [1, 4, 5, 7])
        let actions = try Tensor<Float>([2, 2], [-0.1, 0.66, 0.3, 0.4])
        let tokens = try tokenizer.tokens(of: actions)
        #expect(tokens == [1, 7, 4, 1] || tokens == [1, 7, 5, 1])
        #expect(try bins.bins(of: tokenizer.actions(of: tokens)) == bins.bins(of: actions))
        #expect(try ActionTokenizer(json: tokenizer.json) == tokenizer)
        let directory = try TemporaryDirectory()
        let path = directory.path + "/actions.json"
        try tokenizer.write(to: path)
        #expect(try ActionTokenizer(path: path) == tokenizer)
        let logits = try Tensor<Float>([2, 8], [9, 1, 9, 9, 2, 2, 9, 0, 0, -3, 0, 0, -5, -4, 0, -3])
        #expect(try tokenizer.likeliestTokens(logits) == [4, 1])
    }

    @Test("bad bins, tokens and files are typed errors")
    func binErrors() throws {
        expectError(.invalidShape, "low") { _ = try ActionBins(low: [], high: []) }
        expectError(.invalidShape, "high") { _ = try ActionBins(low: [0], high: []) }
        expectError(.invalidArgument, "high[0]") { _ = try ActionBins(low: [1], high: [0]) }
        expectError(.invalidArgument, "high[0]") { _ = try ActionBins(low: [0], high: [.nan]) }
        expectError(.invalidArgument, "count") { _ = try ActionBins(low: [0], high: [1], count: 0) }
        expectError(.invalidShape, "actions") { _ = try ActionBins(percentilesOf: Tensor(zeros: [0, 3])) }
        expectError(.invalidArgument, "actions", containing: "element 1") {
            _ = try ActionBins(percentilesOf: Tensor([2, 1], [1, .nan]))
        }
        expectError(.invalidArgument, "range") { _ = try ActionBins(percentilesOf: Tensor([1, 1], [1]), range: 0...1.5) }
        let bins = try ActionBins(low: [0, 0], high: [1, 1], count: 4)
        expectError(.invalidShape, "actions", containing: "[…, 2]") { _ = try bins.bins(of: Tensor(zeros: [2, 3])) }
        expectError(.invalidArgument, "actions") { _ = try bins.bins(of: Tensor([1, 2], [0, .infinity])) }
        expectError(.invalidShape, "bins") { _ = try bins.actions(of: [1]) }
        expectError(.invalidArgument, "bins[1]", containing: "0..<4", "4") { _ = try bins.actions(of: [1, 4]) }
        expectError(.invalidShape, "vocabulary") { _ = try ActionTokenizer(bins, vocabulary: [1]) }
        expectError(.invalidArgument, "vocabulary[3]") { _ = try ActionTokenizer(bins, vocabulary: [1, 2, 3, 1]) }
        expectError(.invalidShape, "counts") { _ = try ActionTokenizer(bins, leastUsedOf: [1, 2]) }
        let tokenizer = try ActionTokenizer(bins, vocabulary: [3, 4, 5, 6])
        expectError(.invalidArgument, "tokens[1]") { _ = try tokenizer.actions(of: [3, 7]) }
        expectError(.invalidShape, "logits", containing: "above 6") {
            _ = try tokenizer.likeliestTokens(Tensor(zeros: [1, 6]))
        }
        expectError(.invalidArgument, "logits[0]") {
            _ = try tokenizer.likeliestTokens(Tensor([1, 7], [0, 0, 0, 0, 0, 0, .nan]))
        }
        for json in [
            "", "[]", "{}", tokenizer.json.replacing("cotvla", with: "other"), tokenizer.json.replacing("[0,0]", with: "[2,0]"),
            tokenizer.json.replacing("[3,4", with: "[4,4"), tokenizer.json.replacing("\"bins\":4", with: "\"bins\":5"),
        ] {
            let error = #expect(throws: SparseKernelsError.self) { try ActionTokenizer(json: json) }
            #expect(error?.code == .malformedFile, "\(json)")
        }
        expectError(.inputOutput, describing: "readable") { _ = try ActionTokenizer(path: "/nonexistent/actions.json") }
    }

    // MARK: - Decoding

    @Test("one block over a cache gives what the whole sequence gives with its limits", arguments: InstructionSet.available)
    func parallelDecoding(_ set: InstructionSet) throws {
        let sequence = try CoTVLASequence([(.observation, 30), (.instruction, 9), (.subgoal, 16), (.actions, 70)])
        let (heads, kvHeads, channels, length) = (4, 2, 16, sequence.length)
        let query = try Tensor<Float>.normal([heads, length, channels], seed: 1)
        let key = try Tensor<Float>.normal([kvHeads, length, channels], seed: 2)
        let value = try Tensor<Float>.normal([kvHeads, length, channels], seed: 3)
        let shape = try AttentionShape(query: query, key: key, value: value)
        let whole = try DenseAttention(shape, limits: sequence.limits(shape), instructionSet: set)(
            query: query, key: key, value: value)

        let cache = try PagedKVCache(
            KVCacheConfiguration(kvHeads: kvHeads, headDim: channels, pageSize: 16, pageCapacity: 16, format: .float32))
        let id = cache.makeSequence()
        try cache.append(key: key, value: value, to: id)
        let bins = try ActionBins(low: Array(repeating: -1, count: 7), high: Array(repeating: 1, count: 7))
        let decoder = try ActionDecoder(
            ActionTokenizer(bins, vocabulary: (0..<256).map { $0 + 100 }), placeholders: .normal([3, 5], seed: 4))
        let block = try Tensor<Float>([heads, 70, channels]) { index in
            query[flat: (index / (70 * channels) * length + 55) * channels + index % (70 * channels)]
        }
        let cached = try cache.rows(of: id)
        var output = try Tensor<Float>(zeros: [heads, 70, channels])
        try decoder.attention(queryHeads: heads, over: cached.tokens, cache.configuration, instructionSet: set).run(
            query: block.view(), key: cached.key, value: cached.value, output: output.mutableView())
        // The paged operator gives the same, for batches of sequences.
        let state = try PagedAttention(
            queryHeads: heads, configuration: cache.configuration, mask: .full, instructionSet: set)(
                query: block, cache: cache, sequences: [id], queryLengths: [70])
        expectError(.invalidShape, "tokens", containing: "70", "69") {
            _ = try decoder.attention(queryHeads: heads, over: 69, cache.configuration, instructionSet: set)
        }
        for head in 0..<heads {
            for row in 0..<70 {
                for channel in 0..<channels {
                    let expected = whole.output[head, row + 55, channel]
                    #expect(abs(output[head, row, channel] - expected) < 1e-5)
                    #expect(abs(state.output[head, row, channel] - expected) < 1e-5)
                }
            }
        }
    }

    @Test("placeholders by kind in, actions out")
    func decoder() throws {
        let bins = try ActionBins(low: Array(repeating: -1, count: 7), high: Array(repeating: 1, count: 7))
        let tokenizer = try ActionTokenizer(bins, vocabulary: (0..<256).map { $0 + 100 })
        let placeholders = try Tensor<Float>([3, 2], [1, 2, 3, 4, 5, 6])
        let decoder = try ActionDecoder(tokenizer, placeholders: placeholders)
        #expect(decoder.tokenCount == 70 && decoder.rows.shape == [70, 2])
        #expect((0..<8).map { decoder.rows[$0, 1] } == [2, 2, 2, 4, 4, 4, 6, 2])
        let wanted = try Tensor<Float>([10, 7]) { Float($0 % 13) / 7 - 0.9 }
        let tokens = try tokenizer.tokens(of: wanted)
        let actions = try decoder.decode { rows in
            #expect(rows == decoder.rows)
            return try Tensor([70, 400]) { tokens[$0 / 400] == $0 % 400 ? 1 : 0 }
        }
        #expect(actions.shape == [10, 7])
        #expect((0..<70).allSatisfy { abs(actions[flat: $0] - wanted[flat: $0]) <= 1 / 256.0 + 1e-7 })
        expectError(.invalidShape, "logits", containing: "70 rows") { _ = try decoder.actions(of: Tensor(zeros: [69, 400])) }
        expectError(.invalidShape, "placeholders") { _ = try ActionDecoder(tokenizer, placeholders: Tensor(zeros: [2, 2])) }
        expectError(.invalidShape, "kinds") {
            _ = try ActionDecoder(tokenizer, placeholders: placeholders, kinds: [.gripper])
        }
        expectError(.invalidArgument, "actions") { _ = try ActionDecoder(tokenizer, placeholders: placeholders, actions: 0) }
    }
}
