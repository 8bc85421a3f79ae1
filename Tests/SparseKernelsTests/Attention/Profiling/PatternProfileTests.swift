import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Profiles of patterns")
struct PatternProfileTests {
    struct Operands {
        let shape: AttentionShape
        var query: Tensor<Float>
        var key: Tensor<Float>
        var value: Tensor<Float>

        init(queryLength: Int = 60, keyLength: Int = 150, queryHeads: Int = 4, kvHeads: Int = 2, headDim: Int = 12) throws {
            shape = try AttentionShape(
                queryLength: queryLength, keyLength: keyLength, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim,
                valueDim: headDim - 3)
            query = try .normal([queryHeads, queryLength, headDim], seed: 1)
            key = try .normal([kvHeads, keyLength, headDim], seed: 2)
            value = try .normal([kvHeads, keyLength, headDim - 3], seed: 3)
        }
    }

    /// A key is kept at random, in runs and alone; one row in seven has no key.
    static func pattern(rows: Int, keys: Int, seed: UInt64) throws -> (runs: KeyRuns, keeps: [[Bool]]) {
        var random = SplitMix64(seed: seed)
        var (runOffsets, keyOffsets, runs, single, keeps) = ([0], [0], [Range<Int>](), [Int32](), [[Bool]]())
        for row in 0..<rows {
            var kept = [Bool](repeating: false, count: keys)
            var key = row % 7 == 6 ? keys : Int(random.next() % 9)
            while key < keys {
                let length = min(keys - key, 1 + Int(random.next() % 20))
                if length < 3 {
                    single.append(Int32(key))
                    kept[key] = true
                    key += 1
                } else {
                    runs.append(key..<key + length)
                    for index in key..<key + length { kept[index] = true }
                    key += length
                }
                key += 1 + Int(random.next() % 30)
            }
            runOffsets.append(runs.count)
            keyOffsets.append(single.count)
            keeps.append(kept)
        }
        let partition = try BlockPartition(length: rows, blockSize: 1)
        return (
            try KeyRuns(
                query: partition, keyLength: keys, runOffsets: runOffsets, runs: runs, keyOffsets: keyOffsets, keys: single),
            keeps
        )
    }

    static func full(rows: Int, keys: Int) throws -> KeyRuns {
        try KeyRuns(
            query: BlockPartition(length: rows, blockSize: max(1, rows)), keyLength: keys,
            runOffsets: rows == 0 ? [0] : [0, 1], runs: rows == 0 ? [] : [0..<keys], keyOffsets: rows == 0 ? [0] : [0, 0],
            keys: [])
    }

    /// The mean of (a − b)² in `Double`, and how far that of attention in `Float` may be from it: an output may be off by δ, so
    /// a square by 2·|a − b|·δ + δ² with the δ of both rows, and storing the mean rounds it.
    static func oracle<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        _ shape: AttentionShape, _ query: Tensor<Q>, _ key: Tensor<K>, _ value: Tensor<V>, rows: [Int], head: Int,
        keeps: [[Bool]], reference: [[Bool]]? = nil
    ) throws -> (error: Double, bound: Double) {
        let attention = ReferenceAttention(shape)
        var (error, bound) = (0.0, 0.0)
        for (index, token) in rows.enumerated() {
            let sides = try [reference?[index], keeps[index]].map { kept in
                try attention.row(
                    head: head, token: token, query: query.view(), key: key.view(), value: value.view(),
                    hides: { key in kept.map { !$0[key] } ?? false })
            }
            let delta = sides.reduce(0) { $0 + AttentionErrorBound($1, headDim: shape.headDim).output }
            for (a, b) in zip(sides[0].output, sides[1].output) {
                error += (a - b) * (a - b)
                bound += (2 * abs(a - b) + delta) * delta
            }
        }
        let count = Double(rows.count * shape.valueDim)
        return (error / count, bound / count + 0x1p-23 * error / count)
    }

    // MARK: - Results

    @Test("errors are those of the oracle, also for repeated rows and rows without keys", arguments: InstructionSet.available)
    func matchesOracle(_ set: InstructionSet) throws {
        let operands = try Operands()
        let rows = [3, 59, 0, 3, 17, 41, 22, 58]
        let patterns = try (0..<3).map { try Self.pattern(rows: rows.count, keys: 150, seed: 10 + $0) }
        let reference = try Self.pattern(rows: rows.count, keys: 150, seed: 30)
        for reference in [nil, reference] {
            let profile = try PatternProfile(
                operands.shape, rows: rows, patterns: patterns.map(\.runs), reference: reference?.runs, instructionSet: set)
            #expect(profile.instructionSet == set && profile.rowsWithoutKeys == [1, 1, 1])
            let errors = try profile(query: operands.query, key: operands.key, value: operands.value)
            #expect(errors.errors.shape == [3, 4])
            for (index, pattern) in patterns.enumerated() {
                for head in 0..<4 {
                    let expected = try Self.oracle(
                        operands.shape, operands.query, operands.key, operands.value, rows: rows, head: head,
                        keeps: pattern.keeps, reference: reference?.keeps)
                    #expect(
                        abs(Double(errors.errors[index, head]) - expected.error) <= expected.bound,
                        "\(set): pattern \(index), head \(head)")
                }
            }
        }
    }

    @Test("16-bit operands with strides are read in place", arguments: InstructionSet.available)
    func sixteenBits(_ set: InstructionSet) throws {
        let operands = try Operands()
        let rows = [5, 44, 13]
        let pattern = try Self.pattern(rows: 3, keys: 150, seed: 5)
        let profile = try PatternProfile(operands.shape, rows: rows, patterns: [pattern.runs], instructionSet: set)
        // Tokens outermost, as projections make them.
        let query = try Tensor<BFloat16>.normal([60, 4, 12], seed: 6)
        let key = try Tensor<BFloat16>.normal([150, 2, 12], seed: 7)
        let value = try Tensor<BFloat16>.normal([150, 2, 9], seed: 8)
        let errors = try profile(
            query: query.view(layout: .nhd), key: key.view(layout: .nhd), value: value.view(layout: .nhd))
        func adjacent(_ tensor: Tensor<BFloat16>) throws -> Tensor<BFloat16> {
            let (tokens, heads, channels) = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
            return try Tensor([heads, tokens, channels]) { index in
                tensor[index / channels % tokens, index / channels / tokens, index % channels]
            }
        }
        for head in 0..<4 {
            let expected = try Self.oracle(
                operands.shape, adjacent(query), adjacent(key), adjacent(value), rows: rows, head: head, keeps: pattern.keeps)
            #expect(abs(Double(errors.errors[0, head]) - expected.error) <= expected.bound, "\(set): head \(head)")
        }
    }

    @Test("a pattern of all keys has no error, and wider patterns come closer", arguments: InstructionSet.available)
    func fullPattern(_ set: InstructionSet) throws {
        let operands = try Operands(queryLength: 33, keyLength: 33)
        let rows = Array(0..<33)
        let patterns = try [0, 3, 12, 40].map { reach in
            try KeyRuns(
                query: BlockPartition(length: 33, blockSize: 1), keyLength: 33, runOffsets: Array(0...33),
                runs: rows.map { max(0, $0 - reach)..<min(33, $0 + reach + 1) },
                keyOffsets: [Int](repeating: 0, count: 34), keys: [])
        }
        let errors = try PatternProfile(
            operands.shape, rows: rows, patterns: patterns + [Self.full(rows: 33, keys: 33)], instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value
            ).errors
        for head in 0..<4 {
            #expect(errors[0, head] > errors[1, head] && errors[1, head] > errors[2, head] && errors[2, head] > 0)
            #expect(errors[3, head] == 0 && errors[4, head] == 0)
        }
    }

    @Test("any number of threads gives the same bits")
    func threads() throws {
        let operands = try Operands()
        let rows = (0..<29).map { $0 * 7 % 60 }
        let patterns = try (0..<2).map { try Self.pattern(rows: 29, keys: 150, seed: 20 + $0).runs }
        let profile = try PatternProfile(operands.shape, rows: rows, patterns: patterns)
        let results = try [1, 2, 7].map { threads in
            try profile(
                query: operands.query, key: operands.key, value: operands.value, on: WorkerPool(threads: threads)
            ).errors.bits
        }
        #expect(results[0] == results[1] && results[0] == results[2])
    }

    @Test("the scale of the scores is the given one; soft caps apply")
    func modifiers() throws {
        let operands = try Operands()
        let pattern = try Self.pattern(rows: 2, keys: 150, seed: 9).runs
        func errors(_ modifiers: ScoreModifiers, _ query: Tensor<Float>) throws -> Tensor<Float> {
            try PatternProfile(operands.shape, rows: [4, 9], patterns: [pattern], modifiers: modifiers)(
                query: query, key: operands.key, value: operands.value
            ).errors
        }
        let scaled = try Tensor<Float>(operands.query.shape) { operands.query[flat: $0] * 2 }
        #expect(try errors(.init(softmaxScale: 0.5), operands.query) == errors(.init(softmaxScale: 0.25), scaled))
        #expect(try errors(.init(logitsSoftCap: 1), operands.query) != errors(.init(), operands.query))
    }

    @Test("elements that are not finite do the same to the errors of the heads that read them, and of no other")
    func nonFinite() throws {
        let operands = try Operands()
        let pattern = try Self.pattern(rows: 4, keys: 150, seed: 9).runs
        let profile = try PatternProfile(operands.shape, rows: [1, 2, 30, 40], patterns: [pattern])
        let clean = try profile(query: operands.query, key: operands.key, value: operands.value).errors
        for element in [Float.nan, .infinity] {
            var value = operands.value
            value[0, 77, 3] = element
            let errors = try profile(query: operands.query, key: operands.key, value: value).errors
            #expect(!errors[0, 0].isFinite && !errors[0, 1].isFinite)
            #expect(errors[0, 2] == clean[0, 2] && errors[0, 3] == clean[0, 3])
        }
        // A row that is not sampled is not read.
        var query = operands.query
        query[0, 3, 0] = .nan
        #expect(try profile(query: query, key: operands.key, value: operands.value).errors == clean)
        query[3, 30, 0] = .nan
        let errors = try profile(query: query, key: operands.key, value: operands.value).errors
        #expect(errors[0, 3].isNaN && errors[0, 0] == clean[0, 0])
    }

    @Test("the least error wins, the lower pattern a tie; NaN loses")
    func best() throws {
        let nan = Float.nan
        let errors = try PatternErrors(
            Tensor([3, 6], [1, 2, nan, nan, .infinity, nan] + [1, 1, 5, nan, nan, .infinity] + [0, 1, 4, nan, .infinity, 7]))
        #expect(errors.best == [2, 1, 2, 0, 0, 2])
        #expect(errors.best(heads: 0..<2) == 2 && errors.best(heads: 1..<3) == 2 && errors.best(heads: 2..<4) == 0)
        expectError(.invalidShape, "errors") { _ = try PatternErrors(Tensor(zeros: [0, 3])) }
        expectError(.invalidShape, "errors") { _ = try PatternErrors(Tensor(zeros: [3])) }
    }

    @Test("without rows errors are 0; without keys rows are empty on both sides")
    func emptyExtents() throws {
        let operands = try Operands()
        let none = try PatternProfile(operands.shape, rows: [], patterns: [Self.full(rows: 0, keys: 150)])
        #expect(
            try none(query: operands.query, key: operands.key, value: operands.value).errors == Tensor(zeros: [1, 4]))
        let empty = try Operands(keyLength: 0)
        let pattern = try KeyRuns(
            query: BlockPartition(length: 2, blockSize: 2), keyLength: 0, runOffsets: [0, 0], runs: [], keyOffsets: [0, 0],
            keys: [])
        let profile = try PatternProfile(empty.shape, rows: [0, 1], patterns: [pattern])
        #expect(profile.rowsWithoutKeys == [2])
        #expect(try profile(query: empty.query, key: empty.key, value: empty.value).errors == Tensor(zeros: [1, 4]))
    }

    @Test("bad samples, patterns and operands are errors that name them")
    func badInput() throws {
        let operands = try Operands()
        let pattern = try Self.full(rows: 2, keys: 150)
        expectError(.invalidArgument, "rows[1]", containing: "60") {
            _ = try PatternProfile(operands.shape, rows: [0, 60], patterns: [pattern])
        }
        expectError(.invalidArgument, "rows[0]") {
            _ = try PatternProfile(operands.shape, rows: [-1, 0], patterns: [pattern])
        }
        expectError(.invalidArgument, "patterns") { _ = try PatternProfile(operands.shape, rows: [0, 1], patterns: []) }
        expectError(.invalidShape, "patterns[1]", containing: "2 × 149") {
            _ = try PatternProfile(operands.shape, rows: [0, 1], patterns: [pattern, Self.full(rows: 2, keys: 149)])
        }
        expectError(.invalidShape, "reference") {
            _ = try PatternProfile(
                operands.shape, rows: [0, 1], patterns: [pattern], reference: Self.full(rows: 3, keys: 150))
        }
        expectError(.invalidArgument, "modifiers.aliBiSlopes") {
            _ = try PatternProfile(
                operands.shape, rows: [0, 1], patterns: [pattern], modifiers: .init(aliBiSlopes: [1, 1, 1, 1]))
        }
        let profile = try PatternProfile(operands.shape, rows: [0, 1], patterns: [pattern])
        let (query, key, value) = (operands.query, operands.key, operands.value)
        expectError(.invalidShape, "query") { _ = try profile(query: key, key: key, value: value) }
        expectError(.invalidShape, "key") { _ = try profile(query: query, key: query, value: value) }
        expectError(.invalidShape, "value") { _ = try profile(query: query, key: key, value: key) }
    }
}
