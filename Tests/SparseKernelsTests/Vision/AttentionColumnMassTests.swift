import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Attention column mass")
struct AttentionColumnMassTests {
    /// Compares every sum of every instruction set with the oracle, with the LSE computed and given.
    static func expectMatches<Element: AttentionElement>(
        _ type: Element.Type, _ shape: AttentionShape, mask: AttentionMask, queries: [Int]? = nil, scale: Float = 1
    ) throws {
        let query = try Tensor<Element>.normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 1, scale: scale)
        let key = try Tensor<Element>.normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 2, scale: scale)
        let chosen = queries ?? Array(0..<shape.queryLength)
        for isGiven in [false, true] {
            let oracles = try (0..<shape.queryHeads).map {
                try ReferenceColumnMass(
                    shape, head: $0, queries: chosen, hasLogSumExp: isGiven, query: query.view(), key: key.view()
                ) { mask.isVisible(query: $0, key: $1, queryLength: shape.queryLength, keyLength: shape.keyLength) }
            }
            let lse = try Tensor([shape.queryHeads, shape.queryLength], oracles.flatMap { $0.logSumExp.map { Float($0) } })
            for set in InstructionSet.available {
                let sums = try AttentionColumnMass(shape, queries: queries, mask: mask, instructionSet: set)
                let mass = try sums(query: query, key: key, logSumExp: isGiven ? lse : nil)
                #expect(mass.shape == [shape.queryHeads, shape.keyLength])
                expectWithin(
                    mass, oracles.flatMap(\.mass), oracles.flatMap(\.bounds), "\(set), \(type), given LSE \(isGiven)")
                // The mean of the heads is one more sum of as many terms, and a product.
                let mean = try AttentionColumnMass(
                    shape, queries: queries, mask: mask, reduction: .meanOfHeads, instructionSet: set)(
                        query: query, key: key, logSumExp: isGiven ? lse : nil)
                let heads = Double(shape.queryHeads)
                let expected = (0..<shape.keyLength).map { key in oracles.reduce(0.0) { $0 + $1.mass[key] } / heads }
                let bounds = (0..<shape.keyLength).map { key in
                    oracles.reduce(0.0) { $0 + $1.bounds[key] } / heads + (heads + 4) * 0x1p-24 * expected[key]
                }
                #expect(mean.shape == [1, shape.keyLength])
                expectWithin(mean, expected, bounds, "\(set), \(type), mean, given LSE \(isGiven)")
            }
        }
    }

    static func expectWithin(
        _ actual: Tensor<Float>, _ expected: [Double], _ bounds: [Double], _ label: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        #expect(actual.count == expected.count, "\(label)", sourceLocation: sourceLocation)
        var worst = (excess: 0.0, text: "")
        for index in 0..<expected.count {
            let excess = abs(Double(actual[flat: index]) - expected[index]) - bounds[index]
            if excess > worst.excess || excess.isNaN {
                worst = (excess, "\(index): \(actual[flat: index]), expected \(expected[index]) ± \(bounds[index])")
            }
        }
        #expect(worst.text.isEmpty, "\(label): \(worst.text)", sourceLocation: sourceLocation)
    }

    @Test(
        "sums agree with the oracle for lengths of any kind",
        arguments: [
            // Queries, keys, heads, KV heads, channels.
            [1, 1, 1, 1, 8], [3, 3, 2, 1, 4], [7, 100, 2, 2, 20], [65, 65, 1, 1, 64], [33, 300, 6, 2, 16], [5, 2, 2, 1, 3],
            [201, 130, 2, 1, 33], [2, 1300, 7, 1, 72],
        ])
    func oracle(_ sizes: [Int]) throws {
        let shape = try AttentionShape(
            queryLength: sizes[0], keyLength: sizes[1], queryHeads: sizes[2], kvHeads: sizes[3], headDim: sizes[4])
        try Self.expectMatches(Float.self, shape, mask: .causal)
        try Self.expectMatches(Float16.self, shape, mask: .full)
        try Self.expectMatches(BFloat16.self, shape, mask: .window(left: 9, right: 3), scale: 3)
    }

    @Test("chosen queries in any order agree with the oracle")
    func chosenQueries() throws {
        let shape = try AttentionShape(queryLength: 90, keyLength: 140, queryHeads: 4, kvHeads: 2, headDim: 12)
        try Self.expectMatches(Float.self, shape, mask: .causal, queries: [89])
        try Self.expectMatches(Float.self, shape, mask: .causal, queries: [70, 3, 41, 88])
    }

    @Test("the mass of all keys is the number of queries, and what dense attention reads from them")
    func meaning() throws {
        let shape = try AttentionShape(
            queryLength: 200, keyLength: 300, queryHeads: 4, kvHeads: 2, headDim: 32, valueDim: 1)
        let query = try Tensor<Float>.normal([4, 200, 32], seed: 3)
        let key = try Tensor<Float>.normal([2, 300, 32], seed: 4)
        var value = try Tensor<Float>(zeros: [2, 300, 1])
        for head in 0..<2 { value[flat: head * 300 + 17] = 1 }
        for set in InstructionSet.available {
            // With a value of 1 at key 17 and 0 elsewhere, the output of a query is its probability of key 17.
            let state = try DenseAttention(shape, mask: .causal, instructionSet: set)(query: query, key: key, value: value)
            let mass = try AttentionColumnMass(shape, instructionSet: set)(
                query: query, key: key, logSumExp: state.logSumExp)
            for head in 0..<4 {
                let total = (0..<300).reduce(0.0) { $0 + Double(mass[flat: head * 300 + $1]) }
                #expect(abs(total - 200) < 200 * 3e-6, "\(set)")
                let read = (0..<200).reduce(0.0) { $0 + Double(state.output[flat: head * 200 + $1]) }
                #expect(abs(Double(mass[flat: head * 300 + 17]) - read) < 1e-5 * max(1, read), "\(set)")
            }
        }
    }

    @Test("limits of queries agree with the mask that they stand for", arguments: InstructionSet.available)
    func limits(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 70, keyLength: 90, queryHeads: 2, kvHeads: 1, headDim: 16)
        let query = try Tensor<Float>.normal([2, 70, 16], seed: 5)
        let key = try Tensor<Float>.normal([1, 90, 16], seed: 6)
        let masked = try AttentionColumnMass(shape, mask: .causal, instructionSet: set)(query: query, key: key)
        let limits = KeyLimits(below: (0..<70).map { $0 + 21 })
        let limited = try AttentionColumnMass(shape, limits: limits, instructionSet: set)(query: query, key: key)
        #expect(masked.bits == limited.bits)
        // A query that sees nothing adds nothing.
        let blind = KeyLimits((0..<70).map { $0 == 9 ? 4..<4 : 0..<90 })
        let one = try AttentionColumnMass(shape, queries: [9], limits: blind, instructionSet: set)(query: query, key: key)
        #expect(one.elements.allSatisfy { $0 == 0 })
    }

    @Test("threads, layouts and choices of heads change no bit", arguments: InstructionSet.available)
    func bits(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 90, keyLength: 1700, queryHeads: 6, kvHeads: 2, headDim: 24)
        let query = try Tensor<BFloat16>.normal([6, 90, 24], seed: 7)
        let key = try Tensor<BFloat16>.normal([2, 1700, 24], seed: 8)
        for reduction in [AttentionColumnMass.Reduction.none, .meanOfHeads] {
            let sums = try AttentionColumnMass(shape, reduction: reduction, instructionSet: set)
            let expected = try sums(query: query, key: key, on: .serial)
            for threads in [2, 7] {
                #expect(try sums(query: query, key: key, on: WorkerPool(threads: threads)).bits == expected.bits)
            }
            if reduction == .meanOfHeads { continue }
            let some = try AttentionColumnMass(shape, heads: [4, 1], instructionSet: set)(query: query, key: key)
            #expect(some.bits == Array(expected.bits[6800..<8500] + expected.bits[1700..<3400]))
            // The same floats in another layout, and in wider rows.
            let (floatQuery, floatKey) = (query.converted(to: Float.self), key.converted(to: Float.self))
            let plain = try sums(query: floatQuery, key: floatKey)
            #expect(plain.bits == expected.bits)
            let columns = try Tensor<Float>([1700, 3, 24]) { index in
                let (token, rest) = index.quotientAndRemainder(dividingBy: 72)
                return rest < 48 ? floatKey[flat: (rest / 24 * 1700 + token) * 24 + rest % 24] : .nan
            }
            var mass = try Tensor<Float>(zeros: [6, 1700])
            let rows = try columns.view(layout: .nhd)
            try sums.run(query: floatQuery.view(), key: rows.heads(0..<2), into: mass.mutableMatrixView())
            #expect(mass.bits == expected.bits)
        }
    }

    @Test("keys of a cache give the bits of the same keys in memory", arguments: InstructionSet.available)
    func cachedKeys(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 30, keyLength: 150, queryHeads: 4, kvHeads: 2, headDim: 16)
        let query = try Tensor<Float>.normal([4, 30, 16], seed: 13)
        let key = try Tensor<Float16>.normal([2, 150, 16], seed: 14)
        let cache = try PagedKVCache(
            KVCacheConfiguration(kvHeads: 2, headDim: 16, pageSize: 16, pageCapacity: 10, format: .float16))
        let sequence = cache.makeSequence()
        try cache.append(key: key, value: key, to: sequence)
        let cached = try cache.rows(of: sequence)
        let sums = try AttentionColumnMass(shape, instructionSet: set)
        var mass = try Tensor<Float>(zeros: [4, 150])
        try sums.run(query: query.view(), key: cached.key, into: mass.mutableMatrixView())
        #expect(try mass.bits == sums(query: query, key: key).bits)
    }

    @Test("values that are not finite reach the keys of their rows only", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 70, keyLength: 70, queryHeads: 2, kvHeads: 2, headDim: 16)
        let query = try Tensor<Float>.normal([2, 70, 16], seed: 9)
        let key = try Tensor<Float>.normal([2, 70, 16], seed: 10)
        let sums = try AttentionColumnMass(shape, queries: Array(0..<67), instructionSet: set)
        let clean = try sums(query: query, key: key)
        for value in [Float.nan, .infinity] {
            // Key 68 is seen by no chosen query.
            var hidden = key
            hidden[0, 68, 3] = value
            #expect(try sums(query: query, key: hidden).bits == clean.bits)
            // Query 30 sees keys up to 30.
            var row = query
            row[0, 30, 2] = value
            let mass = try sums(query: row, key: key)
            #expect((0...30).allSatisfy { mass[0, $0].isNaN })
            #expect(mass.bits[31...] == clean.bits[31...])
        }
        // A score of −∞ is a probability of 0, also in lanes that are no row.
        let positive = try Tensor<Float>([2, 70, 16]) { _ in 1 }
        var low = key
        for channel in 0..<16 { low[0, 5, channel] = -.infinity }
        let mass = try AttentionColumnMass(shape, queries: [60, 61, 62], instructionSet: set)(query: positive, key: low)
        #expect(mass[0, 5] == 0)
        #expect(mass.elements.allSatisfy { $0.isFinite })
    }

    @Test("nothing outside of the operands is read or written")
    func borders() async {
        await #expect(processExitsWith: .success) {
            let shape = try AttentionShape(queryLength: 5, keyLength: 131, queryHeads: 2, kvHeads: 1, headDim: 7)
            for fencesEnd in [true, false] {
                let query = FencedMemory([Float](repeating: 1, count: 70), fencesEnd: fencesEnd)
                let key = FencedMemory([Float](repeating: 1, count: 917), fencesEnd: fencesEnd)
                let mass = FencedMemory([Float](repeating: 0, count: 262), fencesEnd: fencesEnd)
                for set in InstructionSet.available {
                    let (q, k) = (
                        try TensorView(query.elements.span, heads: 2, tokens: 5, channels: 7),
                        try TensorView(key.elements.span, heads: 1, tokens: 131, channels: 7)
                    )
                    try AttentionColumnMass(shape, instructionSet: set).run(
                        query: q, key: k, into: MutableMatrixView(mass.elements.mutableSpan, rows: 2, columns: 131))
                }
            }
        }
    }

    @Test("empty choices and lengths give zeros", arguments: InstructionSet.available)
    func empty(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 4, keyLength: 6, queryHeads: 2, kvHeads: 1, headDim: 8)
        let query = try Tensor<Float>.normal([2, 4, 8], seed: 11)
        let key = try Tensor<Float>.normal([1, 6, 8], seed: 12)
        #expect(
            try AttentionColumnMass(shape, queries: [], instructionSet: set)(query: query, key: key).elements
                == [Float](repeating: 0, count: 12))
        #expect(try AttentionColumnMass(shape, heads: [], instructionSet: set)(query: query, key: key).shape == [0, 6])
        let none = try AttentionColumnMass(shape, heads: [], reduction: .meanOfHeads, instructionSet: set)
        #expect(try none(query: query, key: key).elements == [Float](repeating: 0, count: 6))
        let keyless = try AttentionShape(queryLength: 4, keyLength: 0, queryHeads: 2, kvHeads: 1, headDim: 8)
        let nothing = try Tensor<Float>(zeros: [1, 0, 8])
        #expect(try AttentionColumnMass(keyless, instructionSet: set)(query: query, key: nothing).count == 0)
    }

    @Test("bad input is a typed error")
    func errors() throws {
        let shape = try AttentionShape(queryLength: 4, keyLength: 6, queryHeads: 2, kvHeads: 1, headDim: 8)
        expectError(.invalidArgument, "queries[1]", containing: "0..<4", "4") {
            _ = try AttentionColumnMass(shape, queries: [0, 4])
        }
        expectError(.invalidArgument, "queries[1]") { _ = try AttentionColumnMass(shape, queries: [1, 1]) }
        expectError(.invalidArgument, "heads[0]") { _ = try AttentionColumnMass(shape, heads: [-1]) }
        expectError(.invalidArgument, "softmaxScale") { _ = try AttentionColumnMass(shape, softmaxScale: .infinity) }
        expectError(.invalidArgument, "mask.window") { _ = try AttentionColumnMass(shape, mask: .causal(window: 0)) }
        expectError(.invalidShape, "limits") { _ = try AttentionColumnMass(shape, limits: KeyLimits(below: [1])) }
        expectError(.invalidArgument, "limits[3]") {
            _ = try AttentionColumnMass(shape, limits: KeyLimits(below: [1, 2, 3, 7]))
        }
        let (query, key) = (try Tensor<Float>(zeros: [2, 4, 8]), try Tensor<Float>(zeros: [1, 6, 8]))
        let sums = try AttentionColumnMass(shape)
        expectError(.invalidShape, "query") { _ = try sums(query: key, key: key) }
        expectError(.invalidShape, "key") { _ = try sums(query: query, key: query) }
        expectError(.invalidShape, "logSumExp", containing: "2 × 4") {
            _ = try sums(query: query, key: key, logSumExp: Tensor(zeros: [2, 6]))
        }
        var mass = try Tensor<Float>(zeros: [1, 6])
        expectError(.invalidShape, "mass", containing: "2 × 6", "1 × 6") { try sums.run(query: query, key: key, into: &mass) }
    }
}

#if os(Linux) && canImport(Glibc)
    /// Calls allocate nothing on the heap once the pool has its scratch. See `AllocationTests`.
    @Suite("Allocations of token reduction")
    struct TokenReductionAllocationTests {
        @Test("column masses, similarities and compaction allocate nothing after the first calls")
        func calls() async {
            await #expect(processExitsWith: .success) {
                let shape = try AttentionShape(queryLength: 40, keyLength: 300, queryHeads: 4, kvHeads: 2, headDim: 16)
                let query = try Tensor<Float>.normal([4, 40, 16], seed: 1)
                let key = try Tensor<Float16>.normal([2, 300, 16], seed: 2)
                var mass = try Tensor<Float>(zeros: [1, 300])
                let hidden = try Tensor<Float>.normal([300, 100], seed: 3)
                let chains = try FrameChains(frames: 10, places: 30)
                let compaction = try TokenCompaction(length: 300, keeping: Array(stride(from: 0, to: 300, by: 3)))
                var fewer = try Tensor<Float>(zeros: [100, 100])
                var similarities = try Tensor<Float>(zeros: [300])
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let sums = try AttentionColumnMass(shape, reduction: .meanOfHeads, instructionSet: set)
                        let merge = try FrameMerge(channels: 100, instructionSet: set)
                        AllocationTests.warmUp(pool, scratchByteCount: sums.scratchByteCount, workspaces: 1)
                        var allocated = 0
                        for call in 0..<12 {
                            var before = 0
                            func end() { if call >= 2 { allocated += AllocationCounter.count - before } }
                            let (q, k, x) = (try query.view(), try key.view(), try hidden.matrixView())
                            do {
                                let target = try mass.mutableMatrixView()
                                before = AllocationCounter.count
                                try sums.run(query: q, key: k, into: target, on: pool)
                                end()
                            }
                            do {
                                let target = similarities.mutableSpan
                                before = AllocationCounter.count
                                try merge.run(x, chains, into: target, on: pool)
                                end()
                            }
                            do {
                                let target = try fewer.mutableMatrixView()
                                before = AllocationCounter.count
                                try compaction.run(x, into: target, on: pool)
                                end()
                            }
                        }
                        #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations in 10 calls")
                    }
                }
            }
        }
    }
#endif
