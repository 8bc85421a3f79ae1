import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Paged attention: masks")
struct PagedAttentionMaskTests {
    static let lengths = [1, 17, 330, 420]
    static let queryLengths = [1, 5, 1, 3]

    @Test("sinks and windows agree with the oracle", arguments: [KVFormat.float16, .int8, .int4])
    func streaming(_ format: KVFormat) throws {
        let fixture = try PagedAttentionFixture(format, lengths: Self.lengths)
        let query = try PagedAttentionTests.query(heads: 4, Self.queryLengths)
        for sink in [0, 4, 100] {
            for window in [1, 16, 300, 5000] {
                let mask = KVMask.streaming(sink: sink, window: window)
                let expected = try fixture.expected(
                    fixture.attention(queryHeads: 4, mask: mask), query: query, queryLengths: Self.queryLengths
                ) { _, _, position in
                    ReferencePagedAttention.streamingPositions(of: position, sink: sink, window: window)
                }
                for set in InstructionSet.available {
                    let state = try fixture.attention(queryHeads: 4, mask: mask, set)(
                        query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: Self.queryLengths)
                    PagedAttentionFixture.compare(state, expected, "\(set), \(format), \(mask)")
                }
            }
        }
    }

    @Test("a window longer than the sequence is the causal mask", arguments: InstructionSet.available)
    func longWindow(_ set: InstructionSet) throws {
        let fixture = try PagedAttentionFixture(.float32, lengths: [40, 1100])
        let query = try PagedAttentionTests.query(heads: 4, [1, 3])
        let causal = try fixture.attention(queryHeads: 4, set)(
            query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [1, 3])
        for mask in [
            KVMask.streaming(sink: 0, window: .max), .streaming(sink: 7, window: 1100), .streaming(sink: .max, window: 1),
        ] {
            let state = try fixture.attention(queryHeads: 4, mask: mask, set)(
                query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [1, 3])
            #expect(bits(state) == bits(causal), "\(set), \(mask)")
        }
    }

    @Test("pages that no query sees may have been discarded", arguments: [KVFormat.bfloat16, .int8])
    func discarded(_ format: KVFormat) throws {
        let fixture = try PagedAttentionFixture(format, lengths: [2000, 200])
        let query = try PagedAttentionTests.query(heads: 4, [5, 1])
        let attention = try fixture.attention(queryHeads: 4, mask: .streaming(sink: 20, window: 100))
        func state(_ attention: PagedAttention) throws -> AttentionState {
            try attention(query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [5, 1])
        }
        let before = try state(attention)
        // The first of five queries is at position 1995 and sees keys from 1896 on.
        try fixture.cache.discard(fixture.sequences[0], tokens: 20..<1896)
        #expect(try fixture.cache.pageTable(of: fixture.sequences[0]).filter { $0 == -1 }.count == 1888 / 16 - 2)
        #expect(bits(try state(attention)) == bits(before))

        func expectGone(_ mask: KVMask) {
            expectError(.notFound, "sequences[0]") {
                _ = try state(fixture.attention(queryHeads: 4, mask: mask))
            }
        }
        expectGone(.causal)
        expectGone(.streaming(sink: 33, window: 100))
        // The page of token 1872 was discarded, and the first query sees it.
        expectGone(.streaming(sink: 20, window: 109))
        _ = try state(fixture.attention(queryHeads: 4, mask: .streaming(sink: 32, window: 108)))
    }

    // MARK: - Full, windows, linear biases

    /// The positions that a mask shows, by the mask's definition.
    static func positions(_ mask: KVMask, _ position: Int, length: Int) -> [Int] {
        (0..<length).filter { token in
            switch mask {
            case .causal: token <= position
            case .full: true
            case .window(let left, let right):
                (left ?? -1 < 0 || position - token <= left!) && (right ?? -1 < 0 || token - position <= right!)
            case .streaming(let sink, let window): token <= position && (token < sink || token > position - window)
            }
        }
    }

    static let masks: [KVMask] = [
        .causal, .full, .window(left: nil, right: nil), .window(left: -1, right: 0), .window(left: nil, right: 2),
        .window(left: 0, right: 0), .window(left: 3, right: 1), .window(left: 40, right: -1), .window(left: 300, right: 7),
        .window(left: .max, right: .max), .window(left: .max, right: 1), .window(left: 2, right: .max),
    ]

    @Test("full masks and windows agree with the oracle", arguments: [KVFormat.float16, .int8], masks)
    func windows(_ format: KVFormat, _ mask: KVMask) throws {
        let (lengths, queryLengths) = ([1, 17, 330, 420], [1, 5, 4, 9])
        let fixture = try PagedAttentionFixture(format, lengths: lengths)
        let query = try PagedAttentionTests.query(heads: 4, queryLengths)
        let slopes: [Float] = [0.25, 0.5, -0.01, 0]
        for (cap, biases, form) in [
            (nil, nil, .signed), (5, slopes, .signed), (nil, slopes, .symmetric),
        ] as [(Float?, [Float]?, AliBiForm)] {
            func attention(_ set: InstructionSet) throws -> PagedAttention {
                try fixture.attention(
                    queryHeads: 4, mask: mask, logitsSoftCap: cap, aliBiSlopes: biases, aliBiForm: form, set)
            }
            let expected = try fixture.expected(attention(.portable), query: query, queryLengths: queryLengths) {
                Self.positions(mask, $2, length: lengths[$0])
            }
            for set in InstructionSet.available {
                let states = try [1, 2, 7].map { threads in
                    try attention(set)(
                        query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: queryLengths,
                        on: WorkerPool(threads: threads))
                }
                PagedAttentionFixture.compare(states[0], expected, "\(set), \(format), \(mask), \(form)")
                #expect(bits(states[1]) == bits(states[0]) && bits(states[2]) == bits(states[0]))
            }
        }
    }

    @Test("masks that show the same tokens give the same bits", arguments: InstructionSet.available)
    func equalMasks(_ set: InstructionSet) throws {
        let fixture = try PagedAttentionFixture(.float32, lengths: [40, 1100])
        let query = try PagedAttentionTests.query(heads: 4, [1, 3])
        func rows(_ mask: KVMask, _ slopes: [Float]? = nil, _ form: AliBiForm = .signed) throws -> [[UInt32]] {
            bits(
                try fixture.attention(queryHeads: 4, mask: mask, aliBiSlopes: slopes, aliBiForm: form, set)(
                    query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [1, 3]))
        }
        #expect(try rows(.window(left: nil, right: 0)) == rows(.causal))
        #expect(try rows(.window(left: 1099, right: 0)) == rows(.causal))
        #expect(try rows(.window(left: 99, right: 0)) == rows(.streaming(sink: 0, window: 100)))
        #expect(try rows(.window(left: nil, right: 2)) == rows(.full))
        #expect(try rows(.window(left: .max, right: .max)) == rows(.full))
        #expect(try rows(.causal, [1, 2, 3, 4], .symmetric) == rows(.causal, [1, 2, 3, 4]))
        #expect(try rows(.causal, [0, 0, 0, 0]) == rows(.causal))
    }

    @Test("linear biases of selected tokens are those of their positions", arguments: InstructionSet.available)
    func selectedBiases(_ set: InstructionSet) throws {
        let fixture = try PagedAttentionFixture(.float16, lengths: [300])
        let query = try PagedAttentionTests.query(heads: 4, [2])
        let slopes: [Float] = [0.1, 0.02, 0.3, 0.004]
        let lists: [[Int32]] = [[0, 5, 17, 170, 299], [33, 34, 35, 298]]
        let tokens = try KVSelection(
            unit: 1, sequences: 1, heads: 2, offsets: [0, lists[0].count, lists[0].count + lists[1].count],
            indices: lists[0] + lists[1])
        let pages = try KVSelection(unit: 16, sequences: 1, heads: 2, offsets: [0, 2, 4], indices: [1, 18, 0, 9])
        for (selection, positions) in [
            (tokens, lists.map { $0.map { Int($0) } }),
            (pages, [Array(16..<32) + Array(288..<300), Array(0..<16) + Array(144..<160)]),
        ] {
            let attention = try fixture.attention(queryHeads: 4, aliBiSlopes: slopes, set)
            let expected = try fixture.expected(attention, query: query, queryLengths: [2]) { _, head, position in
                positions[head / 2].filter { $0 <= position }
            }
            let state = try attention(
                query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [2], selection: selection)
            PagedAttentionFixture.compare(state, expected, "\(set), unit \(selection.unit)")
        }
    }

    // MARK: - Empty sequences

    @Test(
        "empty sequences and more queries than tokens agree with the oracle",
        arguments: masks + [.streaming(sink: 2, window: 3)])
    func empty(_ mask: KVMask) throws {
        let (lengths, queryLengths) = ([0, 3, 20, 0, 7, 1], [1, 5, 0, 2, 2, 3])
        let fixture = try PagedAttentionFixture(.float16, lengths: lengths)
        let query = try PagedAttentionTests.query(heads: 4, queryLengths)
        for set in InstructionSet.available {
            let attention = try fixture.attention(queryHeads: 4, mask: mask, aliBiSlopes: [1, 0.5, 0.25, 0], set)
            let expected = try fixture.expected(attention, query: query, queryLengths: queryLengths) {
                Self.positions(mask, $2, length: lengths[$0])
            }
            let state = try attention(
                query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: queryLengths)
            PagedAttentionFixture.compare(state, expected, "\(set), \(mask)")
            // Token 0 is the query of the first sequence; 6 and 7 are those of the fourth.
            for token in [0, 6, 7] {
                for head in 0..<4 {
                    #expect(state.logSumExp[flat: head * 13 + token] == -.infinity)
                    #expect((0..<5).allSatisfy { state.output[flat: (head * 13 + token) * 5 + $0] == 0 })
                }
            }
        }
    }

    @Test("an empty sequence beside others changes no bit", arguments: InstructionSet.available)
    func emptyNeighbours(_ set: InstructionSet) throws {
        let fixture = try PagedAttentionFixture(.int8, lengths: [1100, 0, 30])
        let query = try PagedAttentionTests.query(heads: 4, [1, 1, 1])
        let attention = try fixture.attention(queryHeads: 4, set)
        let together = try attention(query: query, cache: fixture.cache, sequences: fixture.sequences)
        for (token, sequence) in fixture.sequences.enumerated() {
            let row = try Tensor<Float>([4, 1, 8]) { query[flat: ($0 / 8 * 3 + token) * 8 + $0 % 8] }
            let alone = try attention(query: row, cache: fixture.cache, sequences: [sequence])
            #expect(bits(alone) == bits(together, tokens: token..<token + 1))
        }
    }

    @Test("selections may have empty sequences", arguments: InstructionSet.available)
    func emptySelections(_ set: InstructionSet) throws {
        let configuration = try KVCacheConfiguration(
            kvHeads: 2, headDim: 8, pageSize: 16, pageCapacity: 20, metadata: PageMetadata())
        let fixture = try PagedAttentionFixture(configuration, lengths: [100, 0])
        let query = try PagedAttentionTests.query(heads: 4, [1, 1])
        let selector = try PageSelector(queryHeads: 4, configuration: configuration, tokenBudget: 48)
        let selection = try selector.select(query: query.view(), cache: fixture.cache, sequences: fixture.sequences)
        let state = try fixture.attention(queryHeads: 4, set)(
            query: query, cache: fixture.cache, sequences: fixture.sequences, selection: selection)
        #expect((0..<4).allSatisfy { state.logSumExp[flat: 2 * $0 + 1] == -.infinity })
        #expect((0..<4).allSatisfy { state.logSumExp[flat: 2 * $0].isFinite })
    }

    @Test("masks and slopes out of their domain are errors")
    func errors() throws {
        let configuration = try KVCacheConfiguration(kvHeads: 1, headDim: 8, pageCapacity: 1)
        func expect(_ code: SparseKernelsError.Code, _ argument: String, _ mask: KVMask = .causal, _ slopes: [Float]? = nil) {
            expectError(code, argument) {
                _ = try PagedAttention(
                    queryHeads: 2, configuration: configuration, mask: mask, modifiers: .init(aliBiSlopes: slopes))
            }
        }
        expect(.invalidArgument, "mask.left", .window(left: -2, right: 1))
        expect(.invalidArgument, "mask.right", .window(left: nil, right: .min))
        expect(.invalidShape, "aliBiSlopes", .causal, [1])
        expect(.invalidArgument, "aliBiSlopes[1]", .full, [1, .nan])
    }
}
