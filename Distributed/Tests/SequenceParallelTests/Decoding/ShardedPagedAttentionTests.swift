import SequenceParallel
import SparseKernelsReference
import Testing

@Suite("Sharded paged attention")
struct ShardedPagedAttentionTests {
    static let lengths = [1, 40, 97, 0, 33]

    /// Runs attention on some ranks, and gives what each rank has.
    private static func run(
        _ problem: ShardedProblem, ranks: Int, queryLengths: [Int]? = nil, mask: KVMask = .causal,
        modifiers: ScoreModifiers = ScoreModifiers(), root: Int? = nil, threads: Int = 1,
        _ instructionSet: InstructionSet? = nil
    ) throws -> [RankResult] {
        try LocalCommunicator.run(ranks: ranks, timeLimit: 60) { (ranks) throws(SparseKernelsError) in
            let pool = threads == 1 ? WorkerPool.serial : WorkerPool(threads: threads)
            let (cache, sequences) = try problem.sharded(on: ranks)
            let attention = try ShardedPagedAttention(
                queryHeads: problem.queryHeads, configuration: cache.configuration, mask: mask, modifiers: modifiers,
                on: ranks, instructionSet: instructionSet)
            var query = try problem.query((queryLengths ?? Array(repeating: 1, count: sequences.count)).reduce(0, +))
            if let root, root != ranks.rank { query = try Tensor(zeros: query.shape) }
            var result = try RankResult(cache, sequences)
            result.states.append(
                try attention(
                    query: query, cache: cache, sequences: sequences, queryLengths: queryLengths, root: root, on: pool))
            return result
        }
    }

    /// Expects the same bits on all ranks, within the bounds of exact attention.
    private static func expectExact(
        _ problem: ShardedProblem, ranks: Int, queryLengths: [Int]? = nil, mask: KVMask = .causal,
        modifiers: ScoreModifiers = ScoreModifiers(), _ instructionSet: InstructionSet? = nil,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let results = try run(
            problem, ranks: ranks, queryLengths: queryLengths, mask: mask, modifiers: modifiers, instructionSet)
        for result in results {
            #expect(bits(result.states[0]) == bits(results[0].states[0]), sourceLocation: sourceLocation)
        }
        let queryLengths = queryLengths ?? Array(repeating: 1, count: problem.lengths.count)
        try ShardedOracle(problem).compare(
            results[0].states[0], query: problem.query(queryLengths.reduce(0, +)), queryLengths: queryLengths,
            owners: results[0].owners, modifiers: modifiers, "\(ranks) ranks, \(problem.format), \(mask)",
            sourceLocation: sourceLocation
        ) { sequence, _, position, token in shows(mask, position, token) }
    }

    static func shows(_ mask: KVMask, _ position: Int, _ token: Int) -> Bool {
        switch mask {
        case .causal: token <= position
        case .full: true
        case .window(let left, let right): token >= position - (left ?? 1 << 40) && token <= position + (right ?? 1 << 40)
        case .streaming(let sink, let window): token <= position && (token < sink || token > position - window)
        }
    }

    // MARK: - Steps

    @Test("a step agrees with exact attention, however tokens are cut", arguments: 1...8, ShardedProblem.Layout.allCases)
    func steps(_ ranks: Int, _ layout: ShardedProblem.Layout) throws {
        var problem = ShardedProblem(lengths: Self.lengths, layout: layout)
        problem.format = KVFormat.allCases[(ranks + ShardedProblem.Layout.allCases.firstIndex(of: layout)!) % 5]
        try Self.expectExact(problem, ranks: ranks)
    }

    @Test("every level and format", arguments: InstructionSet.available, KVFormat.allCases)
    func levels(_ set: InstructionSet, _ format: KVFormat) throws {
        var problem = ShardedProblem(format: format, lengths: [60, 21])
        (problem.queryHeads, problem.kvHeads) = (6, 3)
        try Self.expectExact(problem, ranks: 3, modifiers: ScoreModifiers(logitsSoftCap: 3), set)
        try Self.expectExact(problem, ranks: 2, queryLengths: [12, 3], set)
    }

    @Test(
        "windows and streaming see tokens by their place in the whole sequence",
        arguments: [
            KVMask.full, .window(left: 20, right: 0), .window(left: nil, right: 3), .window(left: 0, right: nil),
            .streaming(sink: 5, window: 18), .streaming(sink: 0, window: 1), .streaming(sink: 200, window: 300),
        ])
    func masks(_ mask: KVMask) throws {
        for layout in [ShardedProblem.Layout.placement, .ragged] {
            let problem = ShardedProblem(lengths: Self.lengths, layout: layout)
            try Self.expectExact(problem, ranks: 3, mask: mask)
            try Self.expectExact(problem, ranks: 3, queryLengths: [1, 3, 20, 0, 9], mask: mask)
        }
    }

    @Test("a sink counts once, also where no key is seen")
    func sinks() throws {
        let problem = ShardedProblem(lengths: [40, 3, 0])
        let modifiers = ScoreModifiers(sinkLogits: [0.5, -1, 2, -.infinity])
        try Self.expectExact(problem, ranks: 3, modifiers: modifiers)
        try Self.expectExact(problem, ranks: 3, queryLengths: [10, 2, 1], modifiers: modifiers)
    }

    @Test("one rank has the bits of paged attention", arguments: KVFormat.allCases)
    func oneRank(_ format: KVFormat) throws {
        let problem = ShardedProblem(format: format, lengths: [40, 97, 5])
        let (cache, sequences) = try problem.whole()
        for (queryLengths, mask) in [([1, 1, 1], KVMask.causal), ([7, 30, 0], .window(left: 12, right: 0))] {
            let expected = try PagedAttention(queryHeads: 4, configuration: cache.configuration, mask: mask)(
                query: problem.query(queryLengths.reduce(0, +)), cache: cache, sequences: sequences,
                queryLengths: queryLengths)
            let result = try Self.run(problem, ranks: 1, queryLengths: queryLengths, mask: mask)
            #expect(bits(result[0].states[0]) == bits(expected))
        }
    }

    // MARK: - Several queries

    @Test("several queries of a sequence see tokens up to their own", arguments: 2...8)
    func severalQueries(_ ranks: Int) throws {
        for layout in ShardedProblem.Layout.allCases {
            var problem = ShardedProblem(lengths: Self.lengths, layout: layout)
            (problem.queryHeads, problem.kvHeads) = [(4, 2), (3, 1), (2, 2)][ranks % 3]
            // More than tokens, few and many, none; of pages of one rank and of several.
            try Self.expectExact(problem, ranks: ranks, queryLengths: [3, 8, 60, 0, 2])
        }
    }

    @Test("each rank gets the rows of its own queries", arguments: 1...8)
    func sharded(_ ranks: Int) throws {
        for layout in ShardedProblem.Layout.allCases {
            // A whole prompt, a chunk of one, a few tokens, and one.
            let chunks = [(0, 50), (37, 40), (64, 5), (30, 1)]
            for index in [ranks, ranks + ShardedProblem.Layout.allCases.firstIndex(of: layout)! + 1] {
                let (before, count) = chunks[index % 4]
                var problem = ShardedProblem(
                    format: layout == .ragged ? .float16 : .float32, lengths: [before + count], layout: layout)
                (problem.queryHeads, problem.kvHeads) = [(4, 2), (3, 1), (2, 2)][ranks % 3]
                try Self.expectShards(problem, ranks: ranks, before: before)
            }
        }
        let problem = ShardedProblem(lengths: [90], layout: .zigzagPages)
        try Self.expectShards(problem, ranks: ranks, before: 50, mask: .window(left: 13, right: 0))
        try Self.expectShards(problem, ranks: ranks, before: 80, mask: .streaming(sink: 3, window: 9))
    }

    /// Appends tokens, then a chunk whose queries attend, and compares the rows of all ranks with exact attention.
    private static func expectShards(
        _ problem: ShardedProblem, ranks: Int, before: Int, mask: KVMask = .causal,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let count = problem.lengths[0] - before
        let results = try LocalCommunicator.run(ranks: ranks, timeLimit: 60) { (ranks) throws(SparseKernelsError) in
            let cache = try ShardedKVCache(problem.configuration(), on: ranks)
            let sequence = cache.makeSequence()
            let attention = try ShardedPagedAttention(
                queryHeads: problem.queryHeads, configuration: cache.configuration, mask: mask, on: ranks)
            let (keys, values, query) = (try problem.keys(0), try problem.values(0), try problem.query(count))
            var state: AttentionState?
            for tokens in [0..<before, before..<before + count] {
                let placed = try cache.placement(of: tokens.count, in: sequence)
                let shards = try problem.shards(tokens.count, ranks: ranks.count) ?? placed
                let own = shards.positions(of: ranks.rank)
                let rows = own.map { tokens.lowerBound + $0 }
                try cache.append(
                    key: keys.picking(rows), value: values.picking(rows), to: sequence, shards: shards, on: .serial)
                if tokens.lowerBound == before {
                    let ownQueries = try query.picking(own)
                    state = try attention(query: ownQueries, shards: shards, cache: cache, sequence: sequence, on: .serial)
                }
            }
            var result = try RankResult(cache, [sequence])
            result.states = [state!]
            return result
        }
        // The rows of all ranks, in the order of the chunk.
        var (output, logSumExp) = (
            try Tensor<Float>(zeros: [problem.queryHeads, count, problem.valueDim]),
            try Tensor<Float>(zeros: [problem.queryHeads, count])
        )
        for (rank, result) in results.enumerated() {
            let own = result.owners[0][rank].filter { $0 >= before }.map { $0 - before }
            let state = result.states[0]
            #expect(state.logSumExp.shape[1] == own.count, sourceLocation: sourceLocation)
            for head in 0..<problem.queryHeads {
                for (row, token) in own.enumerated() {
                    logSumExp[flat: head * count + token] = state.logSumExp[flat: head * own.count + row]
                    for channel in 0..<problem.valueDim {
                        output[flat: (head * count + token) * problem.valueDim + channel] =
                            state.output[flat: (head * own.count + row) * problem.valueDim + channel]
                    }
                }
            }
        }
        try ShardedOracle(problem).compare(
            AttentionState(output: output, logSumExp: logSumExp), query: problem.query(count), queryLengths: [count],
            owners: results[0].owners, "\(ranks) ranks, \(problem.layout), \(before) + \(count), \(mask)",
            sourceLocation: sourceLocation
        ) { _, _, position, token in shows(mask, position, token) }
    }

    // MARK: - What users rely on

    @Test("threads, delays and the sender of the queries do not change a bit")
    func timing() throws {
        // So large that two threads share the work.
        let problem = ShardedProblem(format: .float16, headDim: 64, valueDim: 64, lengths: [700, 90])
        let plain = try Self.run(problem, ranks: 2)
        for threads in [2, 7] {
            let threaded = try Self.run(problem, ranks: 2, threads: threads)
            #expect(bits(threaded[1].states[0]) == bits(plain[0].states[0]), "\(threads) threads")
        }
        let sent = try Self.run(problem, ranks: 2, root: 1)
        #expect(bits(sent[0].states[0]) == bits(plain[0].states[0]) && bits(sent[1].states[0]) == bits(plain[0].states[0]))
        let delayed = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let (cache, sequences) = try problem.sharded(on: ranks)
            let attention = try ShardedPagedAttention(queryHeads: 4, configuration: cache.configuration, on: ranks)
            var states: [[UInt32]] = []
            for call in 0..<6 {
                if (call / 2) % 2 == ranks.rank { Delay.wait(milliseconds: 1 + call) }
                states.append(
                    bits(try attention(query: problem.query(2), cache: cache, sequences: sequences, on: .serial)))
            }
            return states
        }
        for states in delayed { for state in states { #expect(state == bits(plain[0].states[0])) } }
    }

    @Test("outputs lie among the values that a query sees")
    func hull() throws {
        let problem = ShardedProblem(lengths: [97], layout: .zigzagPages)
        let state = try Self.run(problem, ranks: 4)[0].states[0]
        let values = try problem.values(0)
        for head in 0..<4 {
            for channel in 0..<problem.valueDim {
                let seen = (0..<97).map { values[flat: ((head / 2) * 97 + $0) * problem.valueDim + channel] }
                let output = state.output[flat: head * problem.valueDim + channel]
                #expect(output >= seen.min()! - 1e-6 && output <= seen.max()! + 1e-6)
            }
        }
    }

    @Test("steps after a prompt are those of one machine, layer by layer")
    func decoding() throws {
        let problem = ShardedProblem(format: .bfloat16, layers: 2, lengths: [45, 30])
        let (whole, names) = try problem.whole()
        let attention = try PagedAttention(queryHeads: 4, configuration: whole.configuration)
        for index in 0..<2 {
            try whole.append(key: problem.keys(index), value: problem.values(index), to: names[index], layer: 1)
        }
        @Sendable func step(_ number: Int, _ layer: Int) throws(SparseKernelsError) -> [Tensor<Float>] {
            let seed = UInt64(100 + 2 * number + layer)
            return [
                try .normal([2, 2, 8], seed: seed), try .normal([2, 2, 6], seed: seed + 1000),
                try .normal([4, 2, 8], seed: seed + 2000),
            ]
        }
        let states = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let (cache, sequences) = try problem.sharded(on: ranks)
            for index in 0..<2 {
                try cache.append(key: problem.keys(index), value: problem.values(index), to: sequences[index], layer: 1)
            }
            let attention = try ShardedPagedAttention(queryHeads: 4, configuration: cache.configuration, on: ranks)
            var states: [AttentionState] = []
            for number in 0..<20 {
                for layer in 0..<2 {
                    let rows = try step(number, layer)
                    try cache.append(key: rows[0], value: rows[1], toEach: sequences, layer: layer, on: .serial)
                    states.append(
                        try attention(query: rows[2], cache: cache, sequences: sequences, layer: layer, on: .serial))
                }
            }
            return states
        }
        var place = 0
        for number in 0..<20 {
            for layer in 0..<2 {
                let rows = try step(number, layer)
                try whole.append(key: rows[0], value: rows[1], toEach: names, layer: layer)
                let expected = try attention(query: rows[2], cache: whole, sequences: names, layer: layer)
                for rank in 0..<3 {
                    // Rounding of single precision; scores of this size have no larger errors.
                    let pairs = zip(states[rank][place].output.elements, expected.output.elements)
                    #expect(pairs.allSatisfy { abs($0 - $1) < 2e-6 }, "step \(number), layer \(layer)")
                }
                place += 1
            }
        }
    }

    @Test("what is not finite stays in its row")
    func nonFinite() throws {
        let problem = ShardedProblem(lengths: [50, 50])
        let states = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let cache = try ShardedKVCache(problem.configuration(), on: ranks)
            let sequences = [cache.makeSequence(), cache.makeSequence()]
            var states: [AttentionState] = []
            for isBroken in [false, true] {
                if isBroken { for sequence in sequences { try cache.truncate(sequence, to: 0) } }
                for index in 0..<2 {
                    var (keys, values) = (try problem.keys(index), try problem.values(index))
                    if isBroken, index == 1 {
                        // A key of head 0, and a value of head 1.
                        keys[flat: 20 * 8 + 3] = .nan
                        values[flat: (50 + 40) * 6 + 2] = .infinity
                    }
                    try cache.append(key: keys, value: values, to: sequences[index], on: .serial)
                }
                let attention = try ShardedPagedAttention(queryHeads: 4, configuration: cache.configuration, on: ranks)
                states.append(try attention(query: problem.query(2), cache: cache, sequences: sequences, on: .serial))
                // Queries before a broken key do not see it.
                states.append(
                    try attention(
                        query: problem.query(80), cache: cache, sequences: sequences, queryLengths: [40, 40], on: .serial))
            }
            return states
        }
        for ranked in states {
            let (clean, broken) = (ranked[0], ranked[2])
            for head in 0..<4 {
                #expect(rowBits(clean, head, 0) == rowBits(broken, head, 0))
                let row = (0..<6).map { broken.output[flat: (head * 2 + 1) * 6 + $0] }
                let expected =
                    head < 2 ? row.allSatisfy { $0.isNaN } : row[2] == .infinity && row[3...].allSatisfy { $0.isFinite }
                #expect(expected, "\(row)")
                // Query i of the second sequence has position 10 + i.
                for query in 0..<80 where query < 40 || query - 40 + 10 < 20 {
                    #expect(rowBits(ranked[1], head, query) == rowBits(ranked[3], head, query), "\(head), \(query)")
                }
            }
        }
    }

    private func rowBits(_ state: AttentionState, _ head: Int, _ token: Int) -> [UInt32] {
        let place = head * state.output.shape[1] + token
        let channels = state.output.shape[2]
        return (place * channels..<(place + 1) * channels).map { state.output[flat: $0].bitPattern }
            + [state.logSumExp[flat: place].bitPattern]
    }

    @Test("operands have every type and stride, and results go where they belong")
    func operands() throws {
        let problem = ShardedProblem(lengths: [60, 35])
        let texts = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let (cache, sequences) = try problem.sharded(on: ranks)
            let attention = try ShardedPagedAttention(queryHeads: 4, configuration: cache.configuration, on: ranks)
            let query: Tensor<BFloat16> = try problem.query(2).converted()
            let expected = try attention(query: query, cache: cache, sequences: sequences, on: .serial)
            // Token by token, with a gap behind each row.
            var memory = [Float](repeating: 7, count: 2 * 4 * 9)
            let geometry = try TensorGeometry(heads: 4, tokens: 2, channels: 6, headStride: 9, tokenStride: 36)
            let queryView = try query.view()
            try attention.run(
                query: queryView, cache: cache, sequences: sequences,
                output: MutableTensorView(memory.mutableSpan, geometry: geometry), on: .serial)
            for head in 0..<4 {
                for token in 0..<2 {
                    for channel in 0..<9 {
                        let expected = channel < 6 ? expected.output[flat: (head * 2 + token) * 6 + channel] : 7
                        if memory[token * 36 + head * 9 + channel] != expected { return "(\(head), \(token), \(channel))" }
                    }
                }
            }
            var rounded = try Tensor<BFloat16>(zeros: [4, 2, 6])
            try attention.run(query: query, cache: cache, sequences: sequences, into: &rounded, on: .serial)
            return rounded == expected.output.converted() ? "" : "rounding"
        }
        #expect(texts == ["", "", ""])
    }

    @Test("a rank sends one message per call, of the size that is stated")
    func traffic() throws {
        let problem = ShardedProblem(lengths: [60, 35])
        let differences = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let (cache, sequences) = try problem.sharded(on: ranks)
            let attention = try ShardedPagedAttention(queryHeads: 4, configuration: cache.configuration, on: ranks)
            let before = ranks.traffic
            for _ in 0..<5 { _ = try attention(query: problem.query(2), cache: cache, sequences: sequences, on: .serial) }
            let sent = ranks.traffic - before
            return [sent.sentMessages, sent.sentBytes, attention.statistics.sentBytes, attention.messageByteCount(queries: 2)]
        }
        for numbers in differences {
            #expect(numbers[0] == 10 && numbers[1] == 10 * numbers[3] && numbers[2] == numbers[1])
            // Outputs and LSE, and less than one per cent more at usual sizes.
            #expect(numbers[3] == 2 * 4 * (6 + 1) * 4 + 16)
        }
    }

    @Test("queries of 16 bits travel as such, and give the bits of wider ones")
    func shardedTraffic() throws {
        let problem = ShardedProblem(lengths: [60])
        let results = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let (cache, sequences) = try problem.sharded(on: ranks)
            let attention = try ShardedPagedAttention(queryHeads: 4, configuration: cache.configuration, on: ranks)
            let shards = try TokenShards.contiguous(lengths: [5, 0, 12])
            let query: Tensor<BFloat16> = try problem.query(17).picking(shards.positions(of: ranks.rank)).converted()
            let before = ranks.traffic
            let narrow = try attention(query: query, shards: shards, cache: cache, sequence: sequences[0], on: .serial)
            let sent = (ranks.traffic - before).sentBytes
            let counted = attention.statistics.sentBytes
            let wide = try attention(
                query: query.converted(to: Float.self), shards: shards, cache: cache, sequence: sequences[0], on: .serial)
            return [sent, counted, bits(narrow) == bits(wide) ? 1 : 0]
        }
        for (rank, numbers) in results.enumerated() {
            let own = [5, 0, 12][rank]
            #expect(numbers[1] == 2 * own * 4 * 8 * 2 + (17 - own) * 4 * (6 + 1) * 4)
            // Twice the ranks say that they can go on.
            #expect(numbers[0] == numbers[1] + 2 * 2 * 16)
            #expect(numbers[2] == 1)
        }
    }

    @Test("empty calls have empty results")
    func empty() throws {
        let problem = ShardedProblem(lengths: [20])
        let shapes = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let (cache, sequences) = try problem.sharded(on: ranks)
            let attention = try ShardedPagedAttention(queryHeads: 4, configuration: cache.configuration, on: ranks)
            let none = try Tensor<Float>(zeros: [4, 0, 8])
            let shards = try TokenShards.contiguous(length: 0, ranks: 2)
            return [
                try attention(query: none, cache: cache, sequences: [], on: .serial).output.shape,
                try attention(query: none, cache: cache, sequences: sequences, queryLengths: [0], on: .serial).output.shape,
                try attention(query: none, shards: shards, cache: cache, sequence: sequences[0], on: .serial).output.shape,
            ]
        }
        #expect(shapes.allSatisfy { $0 == [[4, 0, 6], [4, 0, 6], [4, 0, 6]] })
    }
}
