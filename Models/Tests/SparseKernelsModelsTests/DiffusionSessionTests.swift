import FastDLLM
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

@Suite("Masked-diffusion language model")
struct DiffusionSessionTests {
    static let bidirectional = TinyOptions.all.first { !$0.isCausal }!
    static let tokens = [5, 40, 3, 17, 29, 8, 11, 2, 2, 33, 47, 47, 47, 47, 47, 47, 20, 9]

    private func model() throws -> (tiny: TinyLanguageModel, model: LanguageModel) {
        let tiny = try TinyLanguageModel(Self.bidirectional)
        return (tiny, try LanguageModel(folder: tiny.folder, linear: .float32))
    }

    private func rows(_ logits: Tensor<Float>, _ rows: [Int]) -> [Float] {
        rows.flatMap { row in (0..<48).map { logits[row, $0] } }
    }

    @Test("a pass over everything is the model in Double, and only the rows that were asked for are there")
    func wholePass() throws {
        let (tiny, model) = try model()
        let (expected, tolerance) = ReferenceLanguageModel.logits(tiny, Self.tokens)
        let session = try DiffusionSession(model, capacity: 32, maskToken: 47)
        let asked = [0, 10, 11, 17]
        let logits = try session.logits(of: asked, running: 0..<18, in: Self.tokens)
        #expect(logits.shape == [4, 48])
        for (index, row) in asked.enumerated() {
            for token in 0..<48 { #expect(abs(Double(logits[index, token]) - expected[row * 48 + token]) <= tolerance) }
        }
        #expect(try session.logits(of: [], running: 0..<18, in: Self.tokens).shape == [0, 48])
        #expect(session.seconds.total > 0 && session.byteCount > 0)
    }

    @Test(
        "a pass over a part, after nothing changed, has the logits of the whole",
        arguments: [nil, KVFormat.float32, .float16, .int8])
    func parts(_ format: KVFormat?) throws {
        let (_, model) = try model()
        let session = try DiffusionSession(model, capacity: 32, maskToken: 47, cacheFormat: format)
        let whole = try session.logits(of: Array(0..<18), running: 0..<18, in: Self.tokens)
        let bound: Double = format == .int8 ? 0.1 : format == .float16 ? 2e-2 : 1e-4
        for running in [10..<18, 10..<14, 0..<1, 17..<18, 3..<12] {
            let part = try session.logits(of: Array(running), running: running, in: Self.tokens)
            let difference = largestDifference(part.elements.map(Double.init), rows(whole, Array(running)).map(Double.init))
            #expect(difference < bound, "\(running): \(difference)")
        }
        if format != nil, format != .float32 { return }
        // What changed elsewhere is not seen, what changed in the part is.
        var changed = Self.tokens
        changed[0] = 9
        #expect(
            try session.logits(of: [12], running: 10..<14, in: changed)
                == session.logits(of: [12], running: 10..<14, in: Self.tokens))
        changed[13] = 9
        let there = try session.logits(of: [12], running: 10..<14, in: changed)
        #expect(try there != session.logits(of: [12], running: 10..<14, in: Self.tokens))
    }

    @Test("a stale cache is the mixture of what was there, as plain code has it")
    func staleness() throws {
        let (_, model) = try model()
        let session = try DiffusionSession(model, capacity: 32, maskToken: 47)
        var tokens = Self.tokens
        _ = try session.logits(of: [], running: 0..<18, in: tokens)
        tokens[10] = 1
        tokens[11] = 2
        let stale = try session.logits(of: [12, 13], running: 10..<14, in: tokens)
        // Running the rest as well makes it fresh from 10 on, which changes the result.
        let prefix = try session.logits(of: [12, 13], running: 10..<18, in: tokens)
        let fresh = try session.logits(of: [12, 13], running: 0..<18, in: tokens)
        #expect(largestDifference(stale.elements.map(Double.init), fresh.elements.map(Double.init)) > 1e-3)
        #expect(largestDifference(prefix.elements.map(Double.init), fresh.elements.map(Double.init)) > 1e-3)
        #expect(
            largestDifference(fresh.elements.map(Double.init), rows(try model.logits(tokens), [12, 13]).map(Double.init)) < 1e-4
        )
    }

    @Test("decoding has the same steps for every number of threads, and all caches agree on blocks of everything")
    func decoding() throws {
        let (_, model) = try model()
        func result(_ cache: FastDLLMConfiguration.Cache, threads: Int = 1, format: KVFormat? = nil, length: Int = 16) throws
            -> FastDLLMResult
        {
            var session = try DiffusionSession(model, capacity: 32, maskToken: 47, cacheFormat: format)
            let configuration = FastDLLMConfiguration(blockLength: 8, rule: .threshold(0.5), cache: cache)
            return try FastDLLMDecoder(configuration).generate(
                [1, 2, 3, 4], length: length, with: &session, on: WorkerPool(threads: threads))
        }
        for cache in FastDLLMConfiguration.Cache.allCases {
            let serial = try result(cache)
            #expect(!serial.tokens.contains(47))
            for threads in [2, 7] { #expect(try result(cache, threads: threads) == serial) }
            #expect(try result(cache, format: .float32).tokens == serial.tokens)
        }
        // With one block nothing follows it: both caches run the same rows and see the same.
        #expect(try result(.prefix, length: 8).steps == result(.dual, length: 8).steps)
    }

    @Test("a session takes sequences of any length one after the other", arguments: [nil, KVFormat.float16])
    func sequences(_ format: KVFormat?) throws {
        let (_, model) = try model()
        let session = try DiffusionSession(model, capacity: 18, maskToken: 47, cacheFormat: format)
        for length in [18, 3, 11, 18] {
            let tokens = Array(Self.tokens[..<length])
            let logits = try session.logits(of: [0, length - 1], running: 0..<length, in: tokens)
            let expected = rows(try model.logits(tokens), [0, length - 1])
            #expect(largestDifference(logits.elements.map(Double.init), expected.map(Double.init)) < 2e-2)
        }
    }

    @Test("what does not fit is refused, and nothing changes")
    func errors() throws {
        func expect(_ argument: String, _ body: () throws -> Void) {
            let error = #expect(throws: SparseKernelsError.self) { try body() }
            #expect(error?.code == .invalidArgument && error?.argument == argument, "\(error.map { "\($0)" } ?? "none")")
        }
        let (_, model) = try model()
        let causal = try TinyLanguageModel.load()
        expect("model") { _ = try DiffusionSession(causal, capacity: 8, maskToken: 47) }
        for capacity in [0, -1, 1 << 25] {
            expect("capacity") { _ = try DiffusionSession(model, capacity: capacity, maskToken: 47) }
        }
        for mask in [nil, -1, 48] { expect("maskToken") { _ = try DiffusionSession(model, capacity: 8, maskToken: mask) } }
        let session = try DiffusionSession(model, capacity: 18, maskToken: 47)
        expect("running") { _ = try session.logits(of: [], running: 3..<8, in: Self.tokens) }
        let before = try session.logits(of: [4], running: 0..<18, in: Self.tokens)
        expect("tokens") { _ = try session.logits(of: [], running: 0..<19, in: Self.tokens + [1]) }
        expect("tokens") { _ = try session.logits(of: [], running: 0..<18, in: Array(Self.tokens.dropLast()) + [48]) }
        expect("running") { _ = try session.logits(of: [], running: 3..<19, in: Self.tokens) }
        expect("running") { _ = try session.logits(of: [], running: -1..<2, in: Self.tokens) }
        expect("running") { _ = try session.logits(of: [], running: 3..<5, in: Array(Self.tokens.dropLast())) }
        for rows in [[2], [8], [5, 5], [6, 5]] {
            expect("rows") { _ = try session.logits(of: rows, running: 3..<8, in: Self.tokens) }
        }
        #expect(try session.logits(of: [4], running: 0..<18, in: Self.tokens) == before)
        #expect(try session.logits(of: [], running: 4..<4, in: Self.tokens).shape == [0, 48])
        #expect(
            try DiffusionSession(model, capacity: 8, maskToken: 47).logits(of: [], running: 0..<0, in: []).shape == [0, 48])
    }
}
