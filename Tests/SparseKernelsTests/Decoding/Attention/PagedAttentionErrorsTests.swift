import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Every error names the argument, and leaves outputs unchanged.
@Suite("Paged attention: errors")
struct PagedAttentionErrorsTests {
    private let fixture: PagedAttentionFixture

    init() throws {
        fixture = try PagedAttentionFixture(.float16, layers: 2, lengths: [40, 3])
    }

    // MARK: - Operators

    @Test("heads, scales, caps and masks out of their domain are errors")
    func operators() throws {
        let configuration = fixture.cache.configuration
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, queryHeads: Int = 4, mask: KVMask = .causal,
            softmaxScale: Float? = nil, logitsSoftCap: Float? = nil, set: InstructionSet? = nil,
            sourceLocation: SourceLocation = #_sourceLocation
        ) {
            expectError(code, argument, sourceLocation: sourceLocation) {
                _ = try PagedAttention(
                    queryHeads: queryHeads, configuration: configuration, mask: mask,
                    modifiers: .init(softmaxScale: softmaxScale, logitsSoftCap: logitsSoftCap), instructionSet: set)
            }
        }
        for heads in [0, -2, 1, 3, Int.min] { expect(.invalidShape, "queryHeads", queryHeads: heads) }
        for scale in [Float.nan, .infinity, -.infinity] { expect(.invalidArgument, "softmaxScale", softmaxScale: scale) }
        for cap in [0, -1, Float.nan, .infinity] { expect(.invalidArgument, "logitsSoftCap", logitsSoftCap: cap) }
        expect(.invalidArgument, "mask.sink", mask: .streaming(sink: -1, window: 5))
        expect(.invalidArgument, "mask.window", mask: .streaming(sink: 1, window: 0))
        for set in InstructionSet.known where !InstructionSet.available.contains(set) {
            expect(.unsupportedInstructionSet, "instructionSet", set: set)
        }
    }

    // MARK: - Calls

    /// A valid call, of which each test changes one part.
    private struct Call {
        var query = [4, 3, 8]
        var output = [4, 3, 5]
        var logSumExp = 12
        var sequences: [PagedKVCache.SequenceID]
        var queryLengths: [Int]? = [2, 1]
        var layer = 0
        var selection: KVSelection?
        var mask = KVMask.causal
        var cache: PagedKVCache

        func run() throws -> (output: Tensor<Float>, logSumExp: [Float]) {
            let attention = try PagedAttention(queryHeads: 4, configuration: configuration, mask: mask)
            var result = try Tensor<Float>(output) { _ in TokenKernelTests.canary }
            let operand = try Tensor<Float>(zeros: query)
            var lse = [Float](repeating: TokenKernelTests.canary, count: logSumExp)
            do {
                try attention.run(
                    query: operand.view(), cache: cache, sequences: sequences, queryLengths: queryLengths, layer: layer,
                    selection: selection, output: result.mutableView(), logSumExp: lse.mutableSpan)
            } catch {
                #expect(result.elements.allSatisfy { $0 == TokenKernelTests.canary })
                #expect(lse.allSatisfy { $0 == TokenKernelTests.canary })
                throw error
            }
            return (result, lse)
        }

        var configuration: KVCacheConfiguration
    }

    private func call() -> Call {
        Call(sequences: fixture.sequences, cache: fixture.cache, configuration: fixture.cache.configuration)
    }

    private func expect(
        _ code: SparseKernelsError.Code, _ argument: String, sourceLocation: SourceLocation = #_sourceLocation,
        _ change: (inout Call) throws -> Void
    ) throws {
        var call = call()
        try change(&call)
        expectError(code, argument, sourceLocation: sourceLocation) { _ = try call.run() }
    }

    @Test("the call that other tests break is valid")
    func valid() throws {
        let (output, logSumExp) = try call().run()
        #expect(!output.elements.contains(TokenKernelTests.canary) && !logSumExp.contains(TokenKernelTests.canary))
    }

    @Test("operands of other extents are errors")
    func operands() throws {
        for shape in [[2, 3, 8], [8, 3, 8], [4, 2, 8], [4, 4, 8], [4, 3, 7]] {
            try expect(.invalidShape, "query") { $0.query = shape }
        }
        for shape in [[2, 3, 5], [4, 2, 5], [4, 4, 5], [4, 3, 8]] { try expect(.invalidShape, "output") { $0.output = shape } }
        for count in [0, 11, 13] { try expect(.invalidShape, "logSumExp") { $0.logSumExp = count } }
        try expect(.invalidShape, "cache") { $0.cache = try PagedAttentionFixture(.int8, layers: 2, lengths: [40, 3]).cache }
    }

    @Test("new memory is not made for heads that the queries do not have")
    func manyHeads() throws {
        let configuration = try KVCacheConfiguration(kvHeads: 1, headDim: 8, pageCapacity: 1)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        let row = try Tensor<Float>(zeros: [1, 1, 8])
        try cache.append(key: row.view(), value: row.view(), to: sequence)
        for heads in [2, 1 << 40, Int.max] {
            let attention = try PagedAttention(queryHeads: heads, configuration: configuration)
            expectError(.invalidShape, "query") {
                _ = try attention(query: row, cache: cache, sequences: [sequence])
            }
            expectError(.invalidShape, "query") {
                var output = row
                try attention.run(query: row.view(), cache: cache, sequences: [sequence], output: output.mutableView())
            }
        }
        let attention = try PagedAttention(queryHeads: 1, configuration: configuration)
        expectError(.invalidShape, "query") {
            _ = try attention(query: Tensor<Float>(zeros: [8]), cache: cache, sequences: [sequence])
        }
        let nothing = try attention(query: Tensor<Float>(zeros: [1, 0, 8]), cache: cache, sequences: [])
        #expect(nothing.output.shape == [1, 0, 8] && nothing.logSumExp.shape == [1, 0])
    }

    @Test("wrong sequences and lengths are errors")
    func sequences() throws {
        try expect(.invalidShape, "queryLengths") { $0.queryLengths = [3] }
        try expect(.invalidShape, "queryLengths") { $0.queryLengths = [1, 1, 1] }
        try expect(.invalidShape, "queryLengths[0]") { $0.queryLengths = [41, 1] }
        try expect(.invalidShape, "queryLengths[0]") { $0.queryLengths = [.max, .max] }
        for count in [-1, Int.min, 4] { try expect(.invalidShape, "queryLengths[1]") { $0.queryLengths = [2, count] } }
        try expect(.invalidShape, "query") { $0.queryLengths = [2, 0] }
        // There must be one query per sequence.
        try expect(.invalidShape, "query") { $0.queryLengths = nil }
        try expect(.invalidShape, "query") { ($0.sequences, $0.queryLengths) = ([], nil) }
        try expect(.unknownSequence, "sequence") {
            $0.sequences[1] = fixture.cache.makeSequence()
            try fixture.cache.free($0.sequences[1])
        }
        for layer in [-1, 2, Int.max] { try expect(.invalidArgument, "layer") { $0.layer = layer } }
    }

    @Test("selections that do not fit are errors")
    func selections() throws {
        func selection(
            unit: Int = 16, sequences: Int = 2, heads: Int = 2, _ indices: [Int32] = []
        ) throws -> KVSelection {
            let lists = sequences * heads
            return try KVSelection(
                unit: unit, sequences: sequences, heads: heads,
                offsets: Array(repeating: 0, count: lists) + [indices.count], indices: indices)
        }
        try expect(.invalidShape, "selection.sequences") { $0.selection = try selection(sequences: 1) }
        for heads in [1, 3, 8] { try expect(.invalidShape, "selection.heads") { $0.selection = try selection(heads: heads) } }
        for unit in [2, 8, 32] { try expect(.invalidShape, "selection.unit") { $0.selection = try selection(unit: unit) } }
        // The last list belongs to the second sequence, which has three tokens.
        try expect(.invalidArgument, "selection.indices[1]") { $0.selection = try selection([0, 1]) }
        try expect(.invalidArgument, "selection.indices[2]") { $0.selection = try selection(unit: 1, heads: 4, [0, 2, 3]) }
        try expect(.invalidArgument, "selection.indices[0]") { $0.selection = try selection([.max]) }
        for mask in [KVMask.streaming(sink: 1, window: 2), .window(left: nil, right: 1), .window(left: 2, right: 0)] {
            try expect(.invalidArgument, "selection") { ($0.selection, $0.mask) = (try selection([0]), mask) }
        }
    }

    @Test("attending discarded tokens is an error")
    func discarded() throws {
        try fixture.cache.discard(fixture.sequences[0], tokens: 16..<32)
        try expect(.notFound, "sequences[0]") { _ in }
        try expect(.notFound, "sequences[1]") {
            $0.sequences.reverse()
            $0.queryLengths = [1, 2]
        }
        try expect(.notFound, "sequences[0]") { $0.mask = .streaming(sink: 17, window: 2) }
        var call = call()
        call.mask = .streaming(sink: 16, window: 7)
        _ = try call.run()
    }
}
