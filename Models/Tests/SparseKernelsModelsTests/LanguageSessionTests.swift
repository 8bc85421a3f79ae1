import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

@Suite("Sessions of a language model")
struct LanguageSessionTests: SessionSuite {
    static let tokens = (0..<21).map { ($0 * $0 * 5 + $0 * 3 + 7) % 48 }

    @Test("the model with every option of an architecture, and its sessions, are as in Double", arguments: TinyOptions.all)
    func architectures(_ options: TinyOptions) throws {
        let tiny = try TinyLanguageModel(options)
        let (expected, tolerance) = ReferenceLanguageModel.logits(tiny, tokens)
        #expect(tolerance < 0.02)
        let model = try LanguageModel(folder: tiny.folder, linear: .float32)
        func check(_ logits: Tensor<Float>, _ what: String) {
            #expect(logits.shape == [tokens.count, 48])
            let difference = largestDifference(logits.elements.map(Double.init), expected)
            #expect(difference <= tolerance, "\(what): \(difference) of \(tolerance)")
        }
        check(try model.logits(tokens), "without a cache")
        guard options.isCausal else {
            let error = #expect(throws: SparseKernelsError.self) { try LanguageSession(model) }
            #expect(error?.code == .invalidArgument && error?.argument == "model")
            return
        }
        check(try logits(model, Self.exact()), "in one chunk")
        check(try logits(model, Self.exact(chunk: 5)), "in chunks of 5")
        check(try logits(model, Self.exact(chunk: 1)), "in chunks of 1")
        if !options.dependsOnLength { check(try stepwise(model, Self.exact(), prompt: 8), "token by token") }
        var rotated = Self.exact(chunk: 6)
        rotated.rotatesKeys = true
        rotated.rotatesValues = true
        check(try logits(model, rotated), "with rotated keys and values")
    }

    @Test("the last row alone is that of all rows, and every number of threads gives the same bits")
    func lastRowAndThreads() throws {
        let model = try TinyLanguageModel.load()
        let all = try logits(model, Self.exact(chunk: 6)).elements
        let session = try LanguageSession(model, Self.exact(chunk: 6))
        let last = try session.append([tokens], to: [session.makeSequence()])
        #expect(last.shape == [1, 48])
        #expect(largestDifference(last.elements.map(Double.init), all.suffix(48).map(Double.init)) < 1e-4)
        for threads in [1, 2, 7] {
            let pool = WorkerPool(threads: threads)
            #expect(try logits(model, Self.exact(chunk: 6), on: pool).elements == all)
        }
    }

    @Test("sequences of a batch have the logits that they have alone")
    func batches() throws {
        let model = try TinyLanguageModel.load()
        let prompts = [Array(tokens[..<3]), Array(tokens[2..<19]), Array(tokens[5..<12])]
        let steps = [[9, 1, 30], [40, 41, 2]]
        for decoding in [
            DecodingMethod.dense, .streaming(sink: 2, local: 4), .quest(tokens: 16), .twilight(tokens: 32, topP: 0.9),
        ] {
            var options = Self.exact(chunk: 8)
            options.decoding = decoding
            let batch = try LanguageSession(model, options)
            let sequences = prompts.map { _ in batch.makeSequence() }
            var rows = [try batch.append(prompts, to: sequences)]
            for step in steps { rows.append(try batch.append(step.map { [$0] }, to: sequences)) }
            for (index, prompt) in prompts.enumerated() {
                let alone = try LanguageSession(model, options)
                let sequence = alone.makeSequence()
                var lists = [prompt] + steps.map { [$0[index]] }
                #expect(try alone.length(of: sequence) == 0)
                for (step, list) in lists.enumerated() {
                    let row = try alone.append([list], to: [sequence]).elements
                    let inBatch = rows[step].elements[index * 48..<(index + 1) * 48]
                    #expect(largestDifference(row.map(Double.init), inBatch.map(Double.init)) < 1e-4, "\(decoding)")
                }
                lists.removeAll()
                #expect(try alone.length(of: sequence) == prompt.count + 2)
            }
        }
    }

    @Test("a batch in another order has the same bits")
    func orders() throws {
        let model = try TinyLanguageModel.load()
        let prompts = [Array(tokens[..<3]), Array(tokens[2..<19]), Array(tokens[5..<12])]
        func rows(_ order: [Int]) throws -> [[Float]] {
            let session = try LanguageSession(model, Self.exact())
            let sequences = order.map { _ in session.makeSequence() }
            _ = try session.append(order.map { prompts[$0] }, to: sequences)
            let step = try session.append(order.map { [$0 + 1] }, to: sequences).elements
            return order.indices.sorted { order[$0] < order[$1] }.map { Array(step[$0 * 48..<($0 + 1) * 48]) }
        }
        #expect(try rows([0, 1, 2]) == rows([2, 0, 1]))
    }

    @Test("sparse methods with room for everything are exact")
    func fullBudgets() throws {
        let model = try TinyLanguageModel.load()
        let dense = try logits(model, Self.exact(chunk: 8))
        for prefill in [
            PrefillMethod.xAttention(threshold: 1, stride: 8), .mInference(vertical: 4000, slash: 4000), .sparge(keepRatio: 1),
            .streaming(sink: 4, local: 100), .lServe(sink: 4, local: 4),
        ] {
            for tail in [0, 3, 64] {
                var options = Self.exact(chunk: 8)
                options.prefill = prefill
                options.denseTail = tail
                let difference = largestDifference(try logits(model, options), dense)
                #expect(difference < 1e-4, "\(prefill), tail of \(tail): \(difference)")
            }
        }
        for decoding in [
            DecodingMethod.streaming(sink: 1, local: 100), .quest(tokens: 256), .twilight(tokens: 256, topP: 1),
            .lServe(tokens: 256, interval: 2),
        ] {
            var options = Self.exact(chunk: 8)
            options.decoding = decoding
            let difference = largestDifference(try stepwise(model, options, prompt: 5), dense)
            #expect(difference < 1e-4, "\(decoding): \(difference)")
        }
    }

    @Test("LServe's layers, with streaming heads whose window holds everything, are exact")
    func lServeLayers() throws {
        let model = try TinyLanguageModel.load()
        let dense = try stepwise(model, Self.exact(), prompt: 9)
        var options = Self.exact()
        options.prefill = .lServe()
        options.decoding = .lServe(tokens: 256, interval: 4)
        options.retrievalHeads = [[true, false], [false, false], [true, true]]
        #expect(largestDifference(try stepwise(model, options, prompt: 9), dense) < 1e-4)
        options.rotatesKeys = true
        options.rotatesValues = true
        options.chunk = 4
        #expect(largestDifference(try stepwise(model, options, prompt: 9), dense) < 1e-4)
        options.prefill = .dense
        #expect(largestDifference(try stepwise(model, options, prompt: 9), dense) < 1e-4)
        options.prefill = .xAttention(threshold: 0.9)
        #expect(throws: SparseKernelsError.self) { try LanguageSession(model, options) }
    }

    @Test("methods that leave tokens out do so, but not in the layers that stay dense")
    func sparsity() throws {
        let model = try TinyLanguageModel.load()
        let dense = try stepwise(model, Self.exact(), prompt: 5)
        var options = Self.exact()
        options.decoding = .streaming(sink: 1, local: 3)
        #expect(largestDifference(try stepwise(model, options, prompt: 5), dense) > 1e-3)
        options.denseLayers = 3
        #expect(largestDifference(try stepwise(model, options, prompt: 5), dense) < 1e-4)
    }

    /// MInference with one key and one distance shows few of the blocks of 64.
    @Test("the tail of a prompt attends to everything, whatever chunk it is in")
    func denseTail() throws {
        let model = try TinyLanguageModel.load()
        let prompt = (0..<300).map { $0 * 7 % 48 }
        func last(_ tail: Int, chunk: Int = 512) throws -> (logits: [Float], density: Double) {
            var options = Self.exact(chunk: chunk)
            options.tokenCapacity = 512
            options.prefill = .mInference(vertical: 1, slash: 1)
            options.denseTail = tail
            let session = try LanguageSession(model, options)
            let logits = try session.append([prompt], to: [session.makeSequence()])
            return (logits.elements, session.statistics.prefillDensity)
        }
        let (none, some, all) = try (last(0), last(40), last(300))
        #expect(none.density < some.density && some.density < all.density)
        #expect(all.density == 1)
        #expect(try last(1000).logits == all.logits)
        // Of a tail that is longer than the last chunk, that chunk is dense.
        #expect(try last(0, chunk: 280).density < last(40, chunk: 280).density)
    }

    @Test(
        "keys and values of fewer bits change the logits by little, and less when they are rotated",
        arguments: KVFormat.allCases)
    func formats(_ format: KVFormat) throws {
        let model = try TinyLanguageModel.load()
        let dense = try logits(model, Self.exact(chunk: 7))
        var options = Self.exact(chunk: 7)
        options.keyFormat = format
        options.valueFormat = format
        let relative = relativeDistance(try logits(model, options).elements, dense.elements)
        let limit: [KVFormat: Double] = [.float32: 1e-5, .float16: 2e-3, .bfloat16: 1.5e-2, .int8: 3e-2, .int4: 0.2]
        #expect(relative < limit[format]!, "\(relative)")
        options.rotatesKeys = true
        options.rotatesValues = true
        #expect(relativeDistance(try logits(model, options).elements, dense.elements) < limit[format]!)
    }

    @Test("sequences are forked, cut and freed")
    func sequences() throws {
        let model = try TinyLanguageModel.load()
        let session = try LanguageSession(model, Self.exact())
        let first = session.makeSequence()
        _ = try session.append([tokens], to: [first])
        let used = session.byteCount
        let whole = try session.append([[3]], to: [session.fork(first)])
        let cut = try session.fork(first, at: 10)
        #expect(try session.length(of: cut) == 10)
        _ = try session.append([Array(tokens[10...])], to: [cut])
        let again = try session.append([[3]], to: [cut])
        #expect(largestDifference(whole, again) < 1e-4)
        try session.truncate(cut, to: 21)
        #expect(try session.append([[3]], to: [cut]) == again)
        try session.free(first)
        #expect(session.byteCount >= used)
        for body in [
            { _ = try session.length(of: first) }, { try session.free(first) }, { _ = try session.fork(first) },
            { try session.truncate(first, to: 0) }, { _ = try session.append([[1]], to: [first]) },
        ] as [() throws -> Void] {
            let error = #expect(throws: SparseKernelsError.self, performing: body)
            #expect(error?.code == .unknownSequence)
        }
    }

    @Test("lists without tokens have no rows")
    func empty() throws {
        let model = try TinyLanguageModel.load()
        let session = try LanguageSession(model, Self.exact())
        let (a, b) = (session.makeSequence(), session.makeSequence())
        #expect(try session.append([], to: []).shape == [0, 48])
        #expect(try session.append([[], []], to: [a, b]).shape == [0, 48])
        #expect(try session.append([[], [1, 2]], to: [a, b]).shape == [1, 48])
        #expect(try session.append([[5], []], to: [a, b], logits: .all).shape == [1, 48])
        #expect(try session.append([[5, 6], [7]], to: [a, b], logits: .all).shape == [3, 48])
        #expect(try session.length(of: a) == 3 && session.length(of: b) == 3)
    }

    @Test("calls that cannot be run change nothing")
    func errors() throws {
        let model = try TinyLanguageModel.load()
        var options = Self.exact(chunk: 16)
        options.tokenCapacity = 32
        options.sequenceCapacity = 3
        options.pageSize = 16
        let session = try LanguageSession(model, options)
        let sequence = session.makeSequence()
        _ = try session.append([tokens], to: [sequence])
        let reference = try session.append([[4]], to: [session.fork(sequence)])
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, _ tokens: [[Int]], _ sequences: [LanguageSession.SequenceID]
        ) {
            let error = #expect(throws: SparseKernelsError.self) { try session.append(tokens, to: sequences) }
            #expect(error?.code == code && error?.argument == argument, "\(error!)")
            #expect((try? session.length(of: sequence)) == 21)
        }
        expect(.invalidShape, "sequences", [[1], [2]], [sequence])
        expect(.invalidArgument, "sequences", [[1], [2]], [sequence, sequence])
        expect(.invalidArgument, "tokens", [[48]], [sequence])
        expect(.invalidArgument, "tokens", [[-1]], [sequence])
        expect(.capacityExceeded, "pageCapacity", [Array(repeating: 1, count: 100)], [sequence])
        #expect(try session.append([[4]], to: [session.fork(sequence)]) == reference)
    }

    @Test("options that no session can have are named")
    func badOptions() throws {
        let model = try TinyLanguageModel.load()
        func expect(_ argument: String, _ change: (inout SessionOptions) -> Void) {
            var options = SessionOptions()
            change(&options)
            let error = #expect(throws: SparseKernelsError.self) { try LanguageSession(model, options) }
            #expect(error?.argument.contains(argument) == true, "\(error!)")
        }
        expect("tokenCapacity") { $0.tokenCapacity = 0 }
        expect("sequenceCapacity") { $0.sequenceCapacity = -1 }
        expect("chunk") { $0.chunk = 0 }
        expect("denseLayers") { $0.denseLayers = -1 }
        expect("denseTail") { $0.denseTail = -1 }
        expect("pageSize") { $0.pageSize = 7 }
        expect("retrievalHeads") { $0.retrievalHeads = [[true]] }
        expect("threshold") { $0.prefill = .xAttention(threshold: 2) }
        expect("stride") { $0.prefill = .xAttention(threshold: 0.9, stride: 5) }
        expect("vertical") { $0.prefill = .mInference(vertical: -1, slash: 1) }
        expect("local") { $0.prefill = .streaming(sink: 1, local: 0) }
        expect("local") { $0.decoding = .streaming(sink: 1, local: 0) }
        expect("sink") { $0.decoding = .streaming(sink: -1, local: 1) }
        expect("tokenBudget") { $0.decoding = .quest(tokens: 0) }
        expect("topP") { $0.decoding = .twilight(tokens: 64, topP: 1.5) }
        expect("interval") { $0.decoding = .lServe(tokens: 256, interval: 0) }
    }

    @Test("statistics count tokens, pairs, bytes and seconds")
    func statistics() throws {
        let model = try TinyLanguageModel.load()
        var options = Self.exact(chunk: 8)
        options.decoding = .streaming(sink: 2, local: 3)
        let session = try LanguageSession(model, options)
        let sequence = session.makeSequence()
        #expect(session.statistics == SessionStatistics())
        _ = try session.append([tokens], to: [sequence])
        var statistics = session.statistics
        #expect(statistics.prefillTokens == 21 && statistics.decodedTokens == 0 && statistics.prefillDensity == 1)
        #expect(statistics.attendedPairs == Double(3 * 4 * 21 * 22 / 2))
        #expect(statistics.prefill.total > 0 && statistics.decoding.total == 0)
        #expect(statistics.peakByteCount >= model.byteCount + session.byteCount)
        _ = try session.append([[1]], to: [sequence])
        _ = try session.append([[2]], to: [sequence])
        statistics = session.statistics
        #expect(statistics.decodedTokens == 2 && statistics.steps == 2 && statistics.decodingReadFraction == 10.0 / 45)
        session.resetStatistics()
        #expect(session.statistics == SessionStatistics())
    }

    @Test("densities of sparse prompts are those of their masks")
    func density() throws {
        let model = try TinyLanguageModel.load(TinyOptions.all.first { $0.name == "mistral" }!)
        let windows = try LanguageSession(model, Self.exact(chunk: 8))
        _ = try windows.append([tokens], to: [windows.makeSequence()])
        // 1 + … + 6, then 15 rows of 6 tokens.
        #expect(windows.statistics.attendedPairs == Double(3 * 4 * (21 + 15 * 6)) && windows.statistics.prefillDensity == 1)
        let plain = try TinyLanguageModel.load()
        var options = Self.exact(chunk: 8)
        options.prefill = .streaming(sink: 0, local: 6)
        let streaming = try LanguageSession(plain, options)
        _ = try streaming.append([tokens], to: [streaming.makeSequence()])
        #expect(streaming.statistics.attendedPairs == Double(3 * 4 * (21 + 15 * 6)))
        #expect(streaming.statistics.reachablePairs == Double(3 * 4 * 21 * 11))
    }
}
