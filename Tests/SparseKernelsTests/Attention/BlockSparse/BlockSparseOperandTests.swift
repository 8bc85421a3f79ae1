import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Operands of block-sparse attention in memory: element types, layouts, strides and bounds.
@Suite("Block-sparse operands")
struct BlockSparseOperandTests {
    typealias Storage = AttentionOperandTests.Storage
    typealias Placement = AttentionOperandTests.Placement

    /// One head of each pattern with ragged ends: widths leave a tail after whole vectors, lengths after whole blocks.
    static func shape() throws -> AttentionShape {
        try AttentionShape(queryLength: 77, keyLength: 150, queryHeads: 4, kvHeads: 2, headDim: 19, valueDim: 21)
    }

    static func patterns(_ shape: AttentionShape) throws -> [HeadPattern] {
        let mask = try BlockMask.random(BlockGrid(shape, blockSize: 16, isCausal: true), density: 0.5, seed: 7)
        // The last block has the last key as a single key.
        let runs = try KeyRuns(
            query: BlockPartition(length: shape.queryLength, blockSize: 40), keyLength: shape.keyLength,
            runOffsets: [0, 2, 3], runs: [3..<20, 60..<111, 30..<100], keyOffsets: [0, 3, 6],
            keys: [0, 25, 112, 2, 29, Int32(shape.keyLength - 1)])
        return [.blockSparse(mask, head: 0), .runs(runs), .streaming(sink: 3, local: 30), .dense]
    }

    static func plan(_ set: InstructionSet) throws -> BlockSparseAttention {
        let shape = try shape()
        return try BlockSparseAttention(shape, heads: patterns(shape), isCausal: true, instructionSet: set)
    }

    // MARK: - Element types

    static func check<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(_: Q.Type, _: K.Type, _: V.Type) throws {
        let shape = try shape()
        let query = try Tensor<Q>.normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 21)
        let key = try Tensor<K>.normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 22)
        let value = try Tensor<V>.normal([shape.kvHeads, shape.keyLength, shape.valueDim], seed: 23)
        let rows = try referenceRows(
            shape, query: query, key: key, value: value, sees: visibility(patterns(shape), shape, isCausal: true))
        for set in InstructionSet.available {
            let attention = try plan(set)
            func expect<O: AttentionElement>(_: O.Type) throws {
                let result = try attend(attention, query: query, key: key, value: value, as: O.self)
                expectMatches(
                    result.output, result.logSumExp, rows, headDim: shape.headDim,
                    "\(set) \(Q.self) \(K.self) \(V.self) → \(O.self)")
            }
            try expect(Float.self)
            try expect(Float16.self)
            try expect(BFloat16.self)
        }
    }

    @Test("all combinations of element types agree with the oracle", arguments: Storage.allCases, Storage.allCases)
    func elementTypes(_ query: Storage, _ key: Storage) throws {
        for value in Storage.allCases { try Self.check(query.type, key.type, value.type) }
    }

    @Test("a staged operand gives the bits that its widened copy gives", arguments: InstructionSet.available)
    func stagingIsExact(_ set: InstructionSet) throws {
        let attention = try Self.plan(set)
        let operands = try BlockSparseOperands(attention.shape)
        let (key, value) = (operands.key.converted(to: BFloat16.self), operands.value.converted(to: Float16.self))
        let staged = try attention(query: operands.query, key: key, value: value)
        let widened = try attention(
            query: operands.query, key: key.converted(to: Float.self), value: value.converted(to: Float.self))
        #expect(staged.output.bits == widened.output.bits && staged.logSumExp.bits == widened.logSumExp.bits)
    }

    // MARK: - Layouts and strides

    @Test("any placement gives the bits of adjacent rows", arguments: InstructionSet.available, Placement.all)
    func placements(_ set: InstructionSet, _ placement: Placement) throws {
        let attention = try Self.plan(set)
        let operands = try BlockSparseOperands(attention.shape)
        try AttentionOperandTests.expectPlacementKeepsBits(
            placement, attention, query: operands.query, key: operands.key, value: operands.value)
    }

    @Test("a reused tensor and a call without LSE get the same output", arguments: InstructionSet.available)
    func reusedOutput(_ set: InstructionSet) throws {
        let attention = try Self.plan(set)
        let operands = try BlockSparseOperands(attention.shape)
        let expected = try attention(query: operands.query, key: operands.key, value: operands.value)
        var output = try Tensor<Float>(expected.output.shape) { _ in .nan }
        try attention.run(query: operands.query, key: operands.key, value: operands.value, into: &output)
        #expect(output.bits == expected.output.bits)
    }

    // MARK: - Borders

    /// Every operand ends or starts at a page that faults when touched. A fault ends the process, so the test runs in its own.
    @Test("nothing outside the operands is touched")
    func bordersAreKept() async {
        await #expect(processExitsWith: .success) {
            for set in InstructionSet.available {
                for fencesEnd in [true, false] {
                    try Self.runBetweenFences(Float.self, set, fencesEnd: fencesEnd)
                    try Self.runBetweenFences(Float16.self, set, fencesEnd: fencesEnd)
                    try Self.runBetweenFences(BFloat16.self, set, fencesEnd: fencesEnd)
                }
            }
        }
    }

    static func runBetweenFences<Element: AttentionElement>(
        _: Element.Type, _ set: InstructionSet, fencesEnd: Bool
    ) throws {
        for (queries, keys, headDim, valueDim) in [(1, 1, 1, 1), (7, 9, 3, 9), (50, 131, 17, 19), (33, 257, 24, 40)] {
            let shape = try AttentionShape(
                queryLength: queries, keyLength: keys, queryHeads: 4, kvHeads: 1, headDim: headDim, valueDim: valueDim)
            // The last block of queries and of keys is short, and its last key is also a single key.
            let mask = try BlockMask(grid: BlockGrid(shape, blockSize: 24, isCausal: true)) { _, row, column in
                (row + column) % 2 == 0 || row == column
            }
            let runs = try KeyRuns(
                query: BlockPartition(length: queries, blockSize: queries), keyLength: keys, runOffsets: [0, 1],
                runs: [0..<max(1, keys / 2)], keyOffsets: [0, keys > 1 ? 1 : 0], keys: keys > 1 ? [Int32(keys - 1)] : [])
            let patterns: [HeadPattern] = [.blockSparse(mask, head: 0), .runs(runs), .streaming(sink: 1, local: 9), .dense]
            let query = try FencedMemory(
                Tensor<Element>.normal([4, queries, headDim], seed: 1).elements, fencesEnd: fencesEnd)
            let key = try FencedMemory(Tensor<Element>.normal([1, keys, headDim], seed: 2).elements, fencesEnd: fencesEnd)
            let value = try FencedMemory(
                Tensor<Element>.normal([1, keys, valueDim], seed: 3).elements, fencesEnd: fencesEnd)
            let output = FencedMemory(Array(repeating: Element.zero, count: 4 * queries * valueDim), fencesEnd: fencesEnd)
            let logSumExp = FencedMemory(Array(repeating: Float.nan, count: 4 * queries), fencesEnd: fencesEnd)
            for pvSkipThreshold: Float? in [nil, 0.5] {
                let attention = try BlockSparseAttention(
                    shape, heads: patterns, isCausal: true, pvSkipThreshold: pvSkipThreshold, instructionSet: set)
                try attention.run(
                    query: TensorView(query.elements.span, heads: 4, tokens: queries, channels: headDim),
                    key: TensorView(key.elements.span, heads: 1, tokens: keys, channels: headDim),
                    value: TensorView(value.elements.span, heads: 1, tokens: keys, channels: valueDim),
                    output: MutableTensorView(output.elements.mutableSpan, heads: 4, tokens: queries, channels: valueDim),
                    logSumExp: logSumExp.elements.mutableSpan)
                #expect(logSumExp.elements.allSatisfy { !$0.isNaN }, "\(set)")
            }
        }
    }
}
