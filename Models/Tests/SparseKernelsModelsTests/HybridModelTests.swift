import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

@Suite("Hybrid models")
struct HybridModelTests: SessionSuite {
    @Test(
        "the model and its sessions are as in Double",
        arguments: [
            ("M*-M-*M-", 0...Double.infinity, false), ("*M", 0.05...0.6, true), ("-M-*--MM", 0...Double.infinity, true),
        ])
    func reference(_ pattern: String, _ limits: ClosedRange<Double>, _ hasBiases: Bool) throws {
        let tiny = try TinyHybridModel(pattern, limits: limits, hasBiases: hasBiases)
        let (expected, tolerance) = ReferenceHybridModel.logits(tiny, tokens)
        #expect(tolerance < 0.02)
        let model = try LanguageModel(folder: tiny.folder, linear: .float32)
        func check(_ logits: Tensor<Float>, _ what: String) {
            #expect(logits.shape == [tokens.count, 48])
            let difference = largestDifference(logits.elements.map(Double.init), expected)
            #expect(difference <= tolerance, "\(what): \(difference) of \(tolerance)")
        }
        check(try model.logits(tokens), "without a cache")
        check(try logits(model, Self.exact()), "in one chunk")
        check(try logits(model, Self.exact(chunk: 5)), "in chunks of 5")
        check(try logits(model, Self.exact(chunk: 1)), "in chunks of 1")
        for prompt in [0, 1, 8] { check(try stepwise(model, Self.exact(), prompt: prompt), "\(prompt) tokens, then steps") }
    }

    @Test("every linear layer shows its input, and the last row alone is that of all rows")
    func layers() throws {
        let model = try TinyHybridModel.load()
        var seen: [String: [Int]] = [:]
        let all = try model.logits(tokens) { layer, input in seen[layer] = input.shape }
        let inputs = [
            "M": ["in_proj": 24, "out_proj": 24], "-": ["up_proj": 24, "down_proj": 40],
            "*": ["q_proj": 24, "k_proj": 24, "v_proj": 24, "o_proj": 32],
        ]
        var expected: [String: [Int]] = [:]
        for (layer, letter) in TinyHybridModel.standardPattern.enumerated() {
            for (name, width) in inputs["\(letter)"]! { expected["backbone.layers.\(layer).mixer.\(name)"] = [21, width] }
        }
        #expect(seen == expected)
        let session = try LanguageSession(model, Self.exact(chunk: 6))
        let last = try session.append([tokens], to: [session.makeSequence()])
        #expect(last.shape == [1, 48])
        #expect(largestDifference(last.elements.map(Double.init), all.elements.suffix(48).map(Double.init)) < 1e-4)
    }

    @Test("every number of threads gives the same bits")
    func threads() throws {
        let model = try TinyHybridModel.load()
        let expected = try logits(model, Self.exact(chunk: 6), on: .serial)
        for threads in [2, 7] {
            #expect(try logits(model, Self.exact(chunk: 6), on: WorkerPool(threads: threads)) == expected)
        }
    }

    @Test("sequences of a batch have the logits that they have alone, with every method of decoding")
    func batches() throws {
        let model = try TinyHybridModel.load()
        let prompts = [Array(tokens[..<3]), Array(tokens[2..<19]), [], Array(tokens[5..<12])]
        let steps = [[9, 1, 30, 7], [40, 41, 2, 3]]
        for decoding in [
            DecodingMethod.dense, .streaming(sink: 2, local: 4), .quest(tokens: 16), .twilight(tokens: 32, topP: 0.9),
        ] {
            var options = Self.exact(chunk: 8)
            options.decoding = decoding
            let batch = try LanguageSession(model, options)
            let sequences = prompts.map { _ in batch.makeSequence() }
            _ = try batch.append(prompts, to: sequences)
            let rows = try steps.map { step in try batch.append(step.map { [$0] }, to: sequences) }
            for (index, prompt) in prompts.enumerated() {
                let alone = try LanguageSession(model, options)
                let sequence = alone.makeSequence()
                _ = try alone.append([prompt], to: [sequence])
                for (step, row) in zip(steps, rows) {
                    let own = try alone.append([[step[index]]], to: [sequence]).elements
                    let inBatch = row.elements[index * 48..<(index + 1) * 48]
                    #expect(largestDifference(own.map(Double.init), inBatch.map(Double.init)) < 1e-4, "\(decoding)")
                }
            }
        }
    }

    @Test("a fork goes on as its parent would have, and neither changes the other")
    func forks() throws {
        let model = try TinyHybridModel.load()
        let session = try LanguageSession(model, Self.exact())
        let first = session.makeSequence()
        _ = try session.append([tokens], to: [first])
        let (second, third) = (try session.fork(first), try session.fork(first, at: tokens.count))
        let empty = try session.fork(first, at: 0)
        let row = try session.append([[3]], to: [second])
        #expect(try session.append([[3]], to: [first]) == row)
        _ = try session.append([[7], [8]], to: [first, second])
        #expect(try session.append([[3]], to: [third]) == row)
        #expect(try session.length(of: empty) == 0)
        #expect(try session.append([tokens], to: [empty]) == session.append([tokens], to: [session.makeSequence()]))
    }

    @Test("a sequence is cut to nothing or not at all, and begins anew then")
    func cuts() throws {
        let model = try TinyHybridModel.load()
        let session = try LanguageSession(model, Self.exact())
        let sequence = session.makeSequence()
        let fresh = try session.append([tokens], to: [sequence])
        for body in [{ try session.truncate(sequence, to: 20) }, { _ = try session.fork(sequence, at: 5) }]
            as [() throws -> Void]
        {
            let error = #expect(throws: SparseKernelsError.self, performing: body)
            #expect(
                error?.code == .invalidArgument && error?.argument == "length" && error!.expected.contains("0, the present 21"))
        }
        try session.truncate(sequence, to: 21)
        try session.truncate(sequence, to: 0)
        #expect(try session.length(of: sequence) == 0)
        #expect(try session.append([tokens], to: [sequence]) == fresh)
    }

    @Test("a sequence goes back to its checkpoints, and children begin there")
    func checkpoints() throws {
        let model = try TinyHybridModel.load()
        let session = try LanguageSession(model, Self.exact())
        let sequence = session.makeSequence()
        try session.checkpoint(sequence)
        _ = try session.append([Array(tokens[..<10])], to: [sequence])
        try session.checkpoint(sequence)
        let drafts = try session.append([Array(tokens[10..<14])], to: [sequence], logits: .all)
        let child = try session.fork(sequence, at: 10)
        #expect(try session.append([Array(tokens[10..<14])], to: [child], logits: .all) == drafts)
        try session.truncate(sequence, to: 10)
        #expect(try session.length(of: sequence) == 10)
        #expect(try session.append([Array(tokens[10..<14])], to: [sequence], logits: .all) == drafts)
        try session.removeCheckpoint(of: sequence, at: 10)
        let gone = #expect(throws: SparseKernelsError.self) { try session.truncate(sequence, to: 10) }
        #expect(gone?.argument == "length")
        let none = #expect(throws: SparseKernelsError.self) { try session.removeCheckpoint(of: sequence, at: 3) }
        #expect(none?.code == .notFound)
        var options = Self.exact()
        (options.sequenceCapacity, options.checkpointCapacity) = (1, 0)
        let small = try LanguageSession(model, options)
        let only = small.makeSequence()
        _ = try small.append([[1]], to: [only])
        let full = #expect(throws: SparseKernelsError.self) { try small.checkpoint(only) }
        #expect(full?.code == .capacityExceeded && full?.argument == "checkpointCapacity")
    }

    @Test("a pass that fails half-way is undone with a checkpoint, and else leaves a sequence that can only begin anew")
    func failures() throws {
        let tiny = try TinyHybridModel("M*M*")
        // Keys of some tokens are beyond what the scales of the cache's format reach.
        try tiny.scale("backbone.layers.3.mixer.k_proj.weight", by: 1.5e4)
        var options = Self.exact()
        options.keyFormat = .int8
        options.sequenceCapacity = 60
        let session = try LanguageSession(LanguageModel(folder: tiny.folder), options)
        func fits(_ token: Int, after sequence: LanguageSession.SequenceID) throws -> Bool {
            let copy = try session.fork(sequence)
            defer { try? session.free(copy) }
            return (try? session.append([[token]], to: [copy])) != nil
        }
        let sequence = session.makeSequence()
        let good = try #require(try (0..<48).first { try fits($0, after: sequence) })
        _ = try session.append([[good]], to: [sequence])
        let bad = try #require(try (0..<48).first { try !fits($0, after: sequence) })
        let next = try #require(try (0..<48).first { try fits($0, after: sequence) })
        let kept = try session.fork(sequence)
        try session.checkpoint(kept)
        let expected = try session.append([[next]], to: [session.fork(sequence)])

        let error = #expect(throws: SparseKernelsError.self) { try session.append([[bad]], to: [kept]) }
        #expect(error?.code == .invalidArgument && error?.argument != "sequence")
        #expect(try session.append([[next]], to: [kept]) == expected)

        #expect(throws: SparseKernelsError.self) { try session.append([[bad]], to: [sequence]) }
        for body in [
            { _ = try session.append([[next]], to: [sequence]) }, { _ = try session.fork(sequence) },
            { try session.checkpoint(sequence) }, { try session.truncate(sequence, to: 1) },
        ] as [() throws -> Void] {
            let error = #expect(throws: SparseKernelsError.self, performing: body)
            #expect(error?.code == .invalidArgument && error?.argument == "sequence")
        }
        try session.truncate(sequence, to: 0)
        _ = try session.append([[good]], to: [sequence])
        #expect(try session.append([[next]], to: [sequence]) == expected)
    }

    @Test("memory is that of pages and states, and comes back")
    func memory() throws {
        let model = try TinyHybridModel.load()
        var options = Self.exact()
        (options.sequenceCapacity, options.checkpointCapacity, options.pageSize) = (3, 0, 16)
        let session = try LanguageSession(model, options)
        let nothing = session.byteCount
        let sequence = session.makeSequence()
        #expect(session.byteCount == nothing)
        _ = try session.append([tokens], to: [sequence])
        // Three recurrent layers: 4 × 10 × 6 numbers that decay, and 3 rows of 64; two pages of two layers of attention.
        let state = 4 * 3 * (4 * 10 * 6 + 3 * 64)
        let pages =
            try 2
            * KVCacheConfiguration(
                layers: 2, kvHeads: 2, headDim: 8, pageSize: 16, pageCapacity: 2, format: .float32
            ).bytesPerPage
        #expect(session.byteCount - nothing == state + pages)
        let others = try (0..<2).map { _ in try session.fork(sequence) }
        #expect(session.byteCount - nothing == 3 * state + pages)
        let error = #expect(throws: SparseKernelsError.self) { try session.fork(sequence) }
        #expect(error?.code == .capacityExceeded && error?.argument == "sequenceCapacity")
        let extra = session.makeSequence()
        let full = #expect(throws: SparseKernelsError.self) { try session.append([[1]], to: [extra]) }
        #expect(full?.code == .capacityExceeded && full?.argument == "sequenceCapacity")
        for sequence in others + [sequence] { try session.free(sequence) }
        #expect(session.byteCount == nothing)
        #expect(try session.append([[1]], to: [extra]).shape == [1, 48])
    }

    @Test("calls that cannot be run change nothing")
    func errors() throws {
        let model = try TinyHybridModel.load()
        var options = Self.exact(chunk: 16)
        options.tokenCapacity = 32
        options.pageSize = 16
        options.sequenceCapacity = 4
        let session = try LanguageSession(model, options)
        let sequence = session.makeSequence()
        _ = try session.append([tokens], to: [sequence])
        let copy = try session.fork(sequence)
        let reference = try session.append([[4]], to: [copy])
        try session.free(copy)
        let error = #expect(throws: SparseKernelsError.self) {
            try session.append([Array(repeating: 1, count: 100)], to: [sequence])
        }
        #expect(error?.code == .capacityExceeded && error?.argument == "pageCapacity")
        #expect(try session.append([[4]], to: [sequence]) == reference)
    }

    @Test("formats of linear layers and caches differ as their precision does")
    func formats() throws {
        let tiny = try TinyHybridModel()
        let exact = try LanguageModel(folder: tiny.folder, linear: .float32)
        let expected = try exact.logits(tokens).elements
        for (linear, limit) in [(LinearFormat.float16, 1e-5), (.bfloat16, 5e-2), (.fp8, 0.3), (.w4a16, 0.9), (.w4a8, 0.9)] {
            let model = try LanguageModel(folder: tiny.folder, linear: linear)
            #expect(relativeDistance(try model.logits(tokens).elements, expected) <= limit, "\(linear)")
        }
        for (format, limit) in [(KVFormat.float16, 2e-3), (.bfloat16, 2e-2), (.int8, 3e-2), (.int4, 0.3)] {
            var options = Self.exact(chunk: 7)
            (options.keyFormat, options.valueFormat) = (format, format)
            #expect(relativeDistance(try logits(exact, options).elements, expected) < limit, "\(format)")
        }
        for prefill in [
            PrefillMethod.xAttention(threshold: 1, stride: 8), .mInference(vertical: 4000, slash: 4000), .sparge(keepRatio: 1),
            .streaming(sink: 4, local: 100),
        ] {
            var options = Self.exact(chunk: 8)
            options.prefill = prefill
            #expect(relativeDistance(try logits(exact, options).elements, expected) < 1e-4, "\(prefill)")
        }
    }

    @Test("what sessions of these models cannot do is said")
    func refusals() throws {
        let model = try TinyHybridModel.load()
        let session = try LanguageSession(model)
        #expect(session.pages == nil)
        let branching = #expect(throws: SparseKernelsError.self) { try BranchingSession(session) }
        #expect(branching?.argument == "session" && branching!.actual.contains("recurrent"))
        var options = SessionOptions()
        options.decoding = .lServe(tokens: 64)
        options.retrievalHeads = [[true, false], [true, true]]
        let error = #expect(throws: SparseKernelsError.self) { try LanguageSession(model, options) }
        #expect(error?.argument == "decoding" && error!.actual.contains("recurrent"))
    }

    @Test("statistics count pairs of attention, and states beside keys and values")
    func statistics() throws {
        let session = try LanguageSession(try TinyHybridModel.load(), Self.exact())
        let sequence = session.makeSequence()
        _ = try session.append([tokens], to: [sequence])
        #expect(session.statistics.attendedPairs == Double(2 * 4 * 21 * 22 / 2))
        #expect(session.statistics.prefill.recurrence > 0)
        _ = try session.append([[1]], to: [sequence])
        let state = 4 * 3 * (4 * 10 * 6 + 3 * 64)
        #expect(session.statistics.readBytes == Double(state + 2 * 2 * 22 * 2 * 8 * 4))
    }
}
