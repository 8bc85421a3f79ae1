import Foundation
import MInference
import SparseKernelsReference
import TestSupport
import Testing

@Suite("MInference prefill")
struct MInferenceTests {
    static func operands(_ shape: AttentionShape, seed: UInt64 = 1) throws -> (Tensor<Float>, Tensor<Float>, Tensor<Float>) {
        (
            try .normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: seed),
            try .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: seed + 1),
            try .normal([shape.kvHeads, shape.keyLength, shape.valueDim], seed: seed + 2)
        )
    }

    /// Whether a query sees a key, by the definition of the pattern.
    static func sees(_ pattern: HeadPattern, _ query: Int, _ key: Int, _ shape: AttentionShape) -> Bool {
        let position = query + shape.keyLength - shape.queryLength
        if key > position { return false }
        switch pattern {
        case .dense: return true
        case .streaming(let sink, let local): return key < sink || position - key < local
        case .blockSparse(let mask, let head): return mask[head, mask.grid.query.block(of: query), mask.grid.key.block(of: key)]
        case .band(let band): return band.isVisible(query: query, key: key, position: position - query)
        case .runs(let runs):
            let block = runs.query.block(of: query)
            return runs.runs(block: block).contains { $0.contains(key) } || runs.keys(block: block).contains(Int32(key))
        }
    }

    @Test("every pattern is what its numbers say, and attention follows it")
    func patterns() throws {
        let shape = try AttentionShape(queryLength: 130, keyLength: 420, queryHeads: 4, kvHeads: 2, headDim: 16)
        let (query, key, value) = try Self.operands(shape)
        let heads: [MInferenceHead] = [
            .verticalSlash(vertical: 40, slash: 105), .aShape(initial: 5, local: 33), .blockSparse(topK: 3, blockSize: 32),
            .dense,
        ]
        let prefill = try MInferencePrefill(shape, heads: heads)
        let result = try prefill(query: query, key: key, value: value)

        let scores = try VerticalSlashScoring(shape)(query: query, key: key)
        let lines = try VerticalSlashSelection(vertical: 40, slash: 105)(scores, head: 0)
        #expect(lines.keys.count == 40 && lines.distances.count == 105)
        #expect(
            result.patterns[0] == .runs(try VerticalSlashIndex(lines, queryLength: 130, keyLength: 420).keyRuns))
        #expect(result.patterns[1] == .streaming(sink: 5, local: 33))
        #expect(result.patterns[3] == .dense)
        if case .blockSparse(let mask, let head) = result.patterns[2] {
            let pooled = try MeanPoolScoring(shape, grid: mask.grid, padding: .zeros)(query: query, key: key)
            for row in 0..<mask.grid.blockRows {
                let best = mask.grid.reachableColumns(ofRow: row).sorted {
                    let (a, b) = (pooled[head, row, $0], pooled[head, row, $1])
                    return a != b ? a > b : $0 < $1
                }.prefix(3).sorted()
                #expect(mask.columns(head: head, row: row).map(Int.init) == best)
            }
        } else {
            Issue.record("head 2 is not block-sparse")
        }

        let reference = ReferenceAttention(shape, mask: .causal)
        var pairs = 0
        for head in 0..<4 {
            for token in 0..<130 {
                let row = try reference.row(
                    head: head, token: token, query: query.view(), key: key.view(), value: value.view(),
                    hides: { !Self.sees(result.patterns[head], token, $0, shape) })
                pairs += row.visibleKeys
                let bound = AttentionErrorBound(row, headDim: 16)
                for channel in 0..<16 {
                    let actual = Double(result.state.output[flat: (head * 130 + token) * 16 + channel])
                    #expect(abs(actual - row.output[channel]) <= bound.output)
                }
            }
        }
        let causal = (0..<130).reduce(0) { $0 + 291 + $1 } * 4
        #expect(result.density == Double(pairs) / Double(causal))
    }

    @Test("budgets beyond the sequence are dense attention")
    func everything() throws {
        let shape = try AttentionShape(queryLength: 200, keyLength: 200, queryHeads: 2, kvHeads: 1, headDim: 8)
        let (query, key, value) = try Self.operands(shape)
        let dense = try DenseAttention(shape, mask: .causal)(query: query, key: key, value: value)
        for head in [MInferenceHead.standard, .standardAShape, .blockSparse(), .dense] {
            let result = try MInferencePrefill(shape, heads: [head])(query: query, key: key, value: value)
            #expect(result.density == 1, "\(head)")
            for index in 0..<dense.output.count {
                // Values are below 6, and the orders of sums differ.
                #expect(abs(result.state.output[flat: index] - dense.output[flat: index]) < 1e-5)
            }
        }
    }

    @Test("one token, and threads change no bit")
    func sizesAndThreads() throws {
        for (queries, keys) in [(1, 1), (1, 500), (65, 65), (300, 301)] {
            let shape = try AttentionShape(queryLength: queries, keyLength: keys, queryHeads: 3, kvHeads: 3, headDim: 8)
            let (query, key, value) = try Self.operands(shape)
            let prefill = try MInferencePrefill(
                shape,
                heads: [.verticalSlash(vertical: 30, slash: 60), .blockSparse(topK: 2), .aShape(initial: 0, local: 1)],
                forcedDistances: 30)
            let expected = try prefill(query: query, key: key, value: value, on: .serial)
            for threads in [2, 7] {
                let result = try prefill(query: query, key: key, value: value, on: WorkerPool(threads: threads))
                #expect(result.patterns == expected.patterns && result.state == expected.state)
            }
        }
    }

    @Test("bad input is an error that names it")
    func errors() throws {
        let shape = try AttentionShape(queryLength: 8, keyLength: 8, queryHeads: 2, kvHeads: 1, headDim: 4)
        let long = try AttentionShape(queryLength: 9, keyLength: 8, queryHeads: 2, kvHeads: 1, headDim: 4)
        #expect(throws: Never.self) { try MInferencePrefill(long) }
        expectError(.invalidShape, "heads") { _ = try MInferencePrefill(shape, heads: [.dense, .dense, .dense]) }
        expectError(.invalidShape, "heads") { _ = try MInferencePrefill(shape, heads: []) }
        expectError(.invalidArgument, "heads[1].slash") {
            _ = try MInferencePrefill(shape, heads: [.dense, .verticalSlash(vertical: 1, slash: -1)])
        }
        expectError(.invalidArgument, "heads[0].local") {
            _ = try MInferencePrefill(shape, heads: [.aShape(initial: 0, local: 0)])
        }
        expectError(.invalidArgument, "heads[0].topK") { _ = try MInferencePrefill(shape, heads: [.blockSparse(topK: 0)]) }
        expectError(.invalidArgument, "heads[0].blockSize") {
            _ = try MInferencePrefill(shape, heads: [.blockSparse(blockSize: 0)])
        }
        expectError(.invalidArgument, "forcedDistances") { _ = try MInferencePrefill(shape, forcedDistances: 0) }
        expectError(.invalidArgument, "softmaxScale") { _ = try MInferencePrefill(shape, softmaxScale: .nan) }
        let operand = try Tensor<Float>(zeros: [2, 8, 4])
        for head in [MInferenceHead.standard, .blockSparse(), .dense] {
            expectError(.invalidShape, "key") {
                _ = try MInferencePrefill(shape, heads: [head])(query: operand, key: operand, value: operand)
            }
        }
    }
}

@Suite("MInference configuration")
struct MInferenceConfigurationTests {
    static let text = """
        [{"0": ["vertical_and_slash", 30, 800, 0.97], "3": ["stream_llm", 100, 800, 1]}, {},
         {"1": ["block_sparse", 8, 1, 0.5]}]
        """

    @Test("the released form gives patterns, and the standard one where there is no entry")
    func releasedForm() throws {
        let configuration = try MInferenceConfiguration(json: Self.text)
        #expect(
            try configuration.heads(layer: 0, queryHeads: 4)
                == [.verticalSlash(vertical: 30, slash: 800), .standard, .standard, .aShape(initial: 100, local: 800)])
        #expect(try configuration.heads(layer: 1, queryHeads: 2) == [.standard, .standard])
        #expect(try configuration.heads(layer: 2, queryHeads: 2) == [.standard, .blockSparse(topK: 100, blockSize: 64)])
        #expect(try configuration.heads(layer: 9, queryHeads: 1) == [.verticalSlash(vertical: 1000, slash: 6096)])
        #expect(configuration.layers[0][0]?.score == 0.97)
        let late = try MInferenceConfiguration(json: Self.text, startingLayer: 1)
        #expect(try late.heads(layer: 0, queryHeads: 1) == [.dense])
    }

    @Test("writing and reading gives the same patterns")
    func roundTrip() throws {
        let configuration = try MInferenceConfiguration(json: Self.text)
        #expect(try MInferenceConfiguration(json: configuration.json()) == configuration)
        let dense = MInferenceConfiguration(layers: [[2: .init(.dense)]])
        let error = #expect(throws: SparseKernelsError.self) { try dense.json() }
        #expect(error?.code == .invalidArgument && error?.argument == "layers[0][2]")
    }

    @Test(
        "text of any other form is an error that says where",
        arguments: [
            ("", "json"), ("{", "json"), ("[1]", "json[0]"), ("{\"0\": 3}", "json"), ("[{\"0\": 3}]", "json[0][\"0\"]"),
            ("[{\"0\": [\"vertical_and_slash\", 1, 2]}]", "json[0][\"0\"]"),
            ("[{\"0\": [\"vertical_and_slash\", 1, 2, 3, 4]}]", "json[0][\"0\"]"),
            ("[{\"0\": [\"vertical_and_slash\", 1.5, 2, 3]}]", "json[0][\"0\"]"),
            ("[{\"0\": [\"vertical_and_slash\", 1e99, 2, 3]}]", "json[0][\"0\"]"),
            ("[{}, {\"7\": [\"vertical_and_slash\", -1, 2, 3]}]", "json[1][\"7\"].vertical"),
            ("[{\"0\": [\"stream_llm\", 1, 0, 3]}]", "json[0][\"0\"].local"),
            ("[{\"0\": [\"nonsense\", 1, 2, 3]}]", "json[0][\"0\"]"),
            ("[{\"01\": [\"stream_llm\", 1, 2, 3]}]", "json[0][\"01\"]"),
            ("[{\"-1\": [\"stream_llm\", 1, 2, 3]}]", "json[0][\"-1\"]"),
            (String(repeating: "[", count: 100_000), "json"),
        ])
    func hostile(_ text: String, _ place: String) throws {
        let error = #expect(throws: SparseKernelsError.self) { try MInferenceConfiguration(json: text) }
        #expect(error?.code == .malformedFile && error?.argument == place, "\(String(describing: error))")
    }

    @Test("entries of heads that are not there, and files that are not there, are errors")
    func errors() throws {
        let configuration = try MInferenceConfiguration(json: Self.text)
        let heads = #expect(throws: SparseKernelsError.self) { try configuration.heads(layer: 0, queryHeads: 3) }
        #expect(heads?.code == .invalidArgument && heads?.argument == "layers[0]")
        let layer = #expect(throws: SparseKernelsError.self) { try configuration.heads(layer: -1, queryHeads: 3) }
        #expect(layer?.code == .invalidArgument && layer?.argument == "layer")
        let file = #expect(throws: SparseKernelsError.self) { try MInferenceConfiguration(path: "/nowhere/config.json") }
        #expect(file?.code == .inputOutput)
    }
}

@Suite("MInference search")
struct MInferenceSearchTests {
    /// Heads that attend to one place: head 0 to the last tokens, head 1 to one key in the middle.
    static func structured(_ length: Int) throws -> (AttentionShape, Tensor<Float>, Tensor<Float>, Tensor<Float>) {
        let shape = try AttentionShape(queryLength: length, keyLength: length, queryHeads: 2, kvHeads: 2, headDim: 16)
        var query = try Tensor<Float>.normal([2, length, 16], seed: 1, scale: 0.1)
        var key = try Tensor<Float>.normal([2, length, 16], seed: 2, scale: 0.1)
        let value = try Tensor<Float>.normal([2, length, 16], seed: 3)
        for token in 0..<length {
            // Head 0 rotates slowly in two channels, so that neighbours have high scores.
            let angle = Double(token) * 0.02
            let (x, y) = (Float(cos(angle)), Float(sin(angle)))
            query[flat: token * 16] = 8 * x
            query[flat: token * 16 + 1] = 8 * y
            key[flat: token * 16] = 8 * x
            key[flat: token * 16 + 1] = 8 * y
            // In head 1 every query asks for key length / 3.
            query[flat: (length + token) * 16] = 8
        }
        key[flat: (length + length / 3) * 16] = 8
        return (shape, query, key, value)
    }

    @Test("the paper's rule keeps the work of the A-shape and takes the least error")
    func paper() throws {
        let (shape, query, key, value) = try Self.structured(1500)
        let choices = try MInferenceSearch(shape, mode: .paper(initial: 20, local: 200, verticals: [30, 60]))(
            query: query, key: key, value: value)
        let single = try AttentionShape(queryLength: 1500, keyLength: 1500, queryHeads: 1, kvHeads: 1, headDim: 16)
        let budget = try BlockSparseAttention(single, heads: [.streaming(sink: 20, local: 200)], isCausal: true).visiblePairs
        for (head, choice) in choices.enumerated() {
            #expect(choice.measurements.count == 4)
            #expect(choice.winner.measure == choice.measurements.map(\.measure).min() && choice.head == choice.winner.head)
            for measurement in choice.measurements {
                let patterns = try MInferencePrefill(shape, heads: [measurement.head]).patterns(
                    query: query.view(), key: key.view())
                let pairs = try BlockSparseAttention(single, heads: [patterns[head]], isCausal: true).visiblePairs
                let slack =
                    if case .verticalSlash(_, VerticalSlashSelection.minimumSlash) = measurement.head { 2.0 } else { 1.0 }
                #expect(Double(pairs) <= slack * Double(budget), "\(measurement)")
            }
        }
        // No window includes key 500, so the A-shape misses it, and verticals find it.
        if case .aShape = choices[1].head { Issue.record("head 1 attends to a key in the middle") }
        #expect(choices[1].winner.measure < 0.1 && choices[1].measurements[0].measure > 0.5)
    }

    @Test("the released rule takes the most recall and relabels")
    func released() throws {
        let (shape, query, key, value) = try Self.structured(2600)
        let choices = try MInferenceSearch(shape, mode: .released())(query: query, key: key, value: value)
        for choice in choices {
            #expect(choice.measurements.count == 6)
            #expect(choice.winner.measure == choice.measurements.map(\.measure).max())
            #expect(choice.measurements.allSatisfy { $0.measure > 0 && $0.measure <= 1 })
            switch choice.winner.head {
            case .aShape: #expect(choice.head == .verticalSlash(vertical: 100, slash: 800))
            case .blockSparse: #expect(choice.head == .verticalSlash(vertical: 1000, slash: 6096))
            default: #expect(choice.head == choice.winner.head)
            }
        }
        // The recall of the first candidate, from probabilities in `Double`.
        let reference = ReferenceAttention(shape, mask: .causal)
        var recall = 0.0
        for token in stride(from: 2500, to: 2600, by: 1) {
            let all = try reference.row(head: 1, token: token, query: query.view(), key: key.view(), value: value.view())
            let some = try reference.row(
                head: 1, token: token, query: query.view(), key: key.view(), value: value.view(),
                hides: { $0 >= 100 && token - $0 >= 800 })
            recall += exp(some.logSumExp - all.logSumExp) / 100
        }
        #expect(abs(choices[1].measurements[0].measure - recall) < 1e-5)
    }

    @Test("bad input is an error that names it")
    func errors() throws {
        let shape = try AttentionShape(queryLength: 80, keyLength: 80, queryHeads: 2, kvHeads: 1, headDim: 4)
        expectError(.invalidShape, "queryLength") { _ = try MInferenceSearch(shape, mode: .released()) }
        expectError(.invalidArgument, "mode.firstQuery") { _ = try MInferenceSearch(shape, mode: .released(firstQuery: -1)) }
        expectError(.invalidArgument, "mode.verticals[1]") {
            _ = try MInferenceSearch(shape, mode: .paper(verticals: [1, -1]))
        }
        expectError(.invalidArgument, "mode.local") { _ = try MInferenceSearch(shape, mode: .paper(local: 0)) }
    }
}
