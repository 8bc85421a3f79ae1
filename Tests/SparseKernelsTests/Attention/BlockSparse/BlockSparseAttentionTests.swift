import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// One block mask against the oracle.
struct BlockSparseCase: Sendable, CustomTestStringConvertible {
    var queryLength = 150
    var keyLength = 210
    var queryBlockSize = 64
    var keyBlockSize = 64
    var queryHeads = 2
    var kvHeads = 1
    var maskHeads = 1
    var headDim = 16
    var valueDim: Int?
    var isCausal = true
    var density: Float = 0.5
    var modifiers = ScoreModifiers()

    var testDescription: String {
        "\(queryHeads)/\(kvHeads)/\(maskHeads) heads, \(queryLength)×\(keyLength)×\(headDim)→\(valueDim ?? headDim), "
            + "blocks \(queryBlockSize)×\(keyBlockSize), \(isCausal ? "causal" : "full"), density \(density)"
            + "\(modifiers.logitsSoftCap.map { " cap \($0)" } ?? "")\(modifiers.aliBiSlopes == nil ? "" : " alibi")"
    }

    func check(seed: UInt64 = 11) throws {
        let shape = try AttentionShape(
            queryLength: queryLength, keyLength: keyLength, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim,
            valueDim: valueDim)
        let grid = try BlockGrid(
            queryLength: queryLength, keyLength: keyLength, queryBlockSize: queryBlockSize, keyBlockSize: keyBlockSize,
            isCausal: isCausal)
        let mask = try BlockMask.random(grid, heads: maskHeads, density: density, seed: seed)
        try expectMatches(
            shape, (0..<maskHeads).map { .blockSparse(mask, head: $0) }, isCausal: isCausal, modifiers: modifiers,
            testDescription)
        let plan = try BlockSparseAttention(shape, mask: mask, modifiers: modifiers)
        #expect(plan.visiblePairs == mask.visiblePairs * queryHeads / maskHeads)
    }

    static let blockSizes = [1, 4, 16, 24, 64, 100, 128, 200, 256]

    /// Equal query and key blocks of every size. With lengths of 150 and 210, all have ragged blocks or only one block.
    static let sizes = blockSizes.flatMap { size in
        [true, false].map {
            BlockSparseCase(queryBlockSize: size, keyBlockSize: size, isCausal: $0, density: size <= 4 ? 0.2 : 0.6)
        }
    }

    static let unequalSizes = [(1, 128), (128, 1), (16, 64), (64, 16), (24, 100), (100, 24), (128, 64), (200, 4), (3, 7)]
        .flatMap { query, key in
            [true, false].map {
                BlockSparseCase(queryBlockSize: query, keyBlockSize: key, isCausal: $0, density: 0.4)
            }
        }

    /// Awkward lengths: 1, 3, 7, queries as long as the keys and much shorter, and several tasks per block.
    static let lengths = [(1, 1), (1, 210), (3, 7), (7, 130), (24, 128), (129, 129), (193, 260), (200, 200)].flatMap { q, k in
        [16, 128, 256].map { BlockSparseCase(queryLength: q, keyLength: k, queryBlockSize: $0, keyBlockSize: $0, density: 0.7) }
    }

    static let others: [BlockSparseCase] = {
        var cases: [BlockSparseCase] = []
        for density: Float in [0, 0.02, 0.1, 0.9, 1] {
            for isCausal in [true, false] {
                cases.append(BlockSparseCase(queryBlockSize: 16, keyBlockSize: 16, isCausal: isCausal, density: density))
            }
        }
        // More queries than keys are possible only without a diagonal.
        cases.append(BlockSparseCase(queryLength: 210, keyLength: 60, isCausal: false))
        for (heads, kvHeads, maskHeads) in [(1, 1, 1), (4, 4, 4), (6, 2, 1), (6, 2, 2), (6, 2, 6), (8, 1, 8)] {
            cases.append(
                BlockSparseCase(
                    queryLength: 70, keyLength: 90, queryBlockSize: 32, keyBlockSize: 16, queryHeads: heads,
                    kvHeads: kvHeads, maskHeads: maskHeads))
        }
        for (d, dv) in [(1, 1), (3, 5), (64, 64), (80, 80), (128, 48), (40, 128), (256, 256)] {
            cases.append(BlockSparseCase(queryLength: 70, keyLength: 140, headDim: d, valueDim: dv, density: 0.7))
        }
        for isCausal in [true, false] {
            for modifiers in [
                ScoreModifiers(logitsSoftCap: 3), ScoreModifiers(aliBiSlopes: [0.25, -0.125]),
                ScoreModifiers(softmaxScale: 0.7, logitsSoftCap: 5, aliBiSlopes: [0.5, 0]),
            ] {
                cases.append(
                    BlockSparseCase(
                        queryLength: 70, queryBlockSize: 16, keyBlockSize: 24, isCausal: isCausal, modifiers: modifiers))
            }
        }
        return cases
    }()
}

@Suite("Block-sparse attention")
struct BlockSparseAttentionTests {
    @Test("agrees with the oracle at every block size", arguments: BlockSparseCase.sizes)
    func blockSizes(_ test: BlockSparseCase) throws { try test.check() }

    @Test("agrees with the oracle when blocks are not square", arguments: BlockSparseCase.unequalSizes)
    func unequalBlockSizes(_ test: BlockSparseCase) throws { try test.check() }

    @Test("agrees with the oracle at awkward lengths", arguments: BlockSparseCase.lengths)
    func lengths(_ test: BlockSparseCase) throws { try test.check() }

    @Test("agrees with the oracle at all densities, heads, widths and scorings", arguments: BlockSparseCase.others)
    func others(_ test: BlockSparseCase) throws { try test.check() }

    @Test("a mask that keeps nothing gives output 0 and LSE −∞, whatever memory held", arguments: InstructionSet.available)
    func emptyMask(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 30, keyLength: 40, queryHeads: 2, kvHeads: 1, headDim: 8)
        let mask = try BlockMask(grid: BlockGrid(shape, blockSize: 16, isCausal: true)) { _, _, _ in false }
        let attention = try BlockSparseAttention(shape, mask: mask, instructionSet: set)
        #expect(attention.visiblePairs == 0)
        let nan = try Tensor<Float>([2, 30, 8]) { _ in .nan }
        let nanKey = try Tensor<Float>([1, 40, 8]) { _ in .nan }
        var output = nan
        var logSumExp = [Float](repeating: .nan, count: 60)
        try attention.run(
            query: nan.view(), key: nanKey.view(), value: nanKey.view(), output: output.mutableView(),
            logSumExp: logSumExp.mutableSpan)
        #expect(output.elements.allSatisfy { $0.bitPattern == 0 })
        #expect(logSumExp.allSatisfy { $0 == -.infinity })
    }

    @Test("listed blocks that the diagonal hides change nothing", arguments: InstructionSet.available)
    func unreachableBlocks(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 150, keyLength: 180, queryHeads: 2, kvHeads: 1, headDim: 16)
        let grid = try BlockGrid(shape, blockSize: 32, isCausal: true)
        let kept = try BlockMask(grid: grid) { _, row, column in (row + column) % 2 == 0 }
        var offsets = [0]
        var columns: [Int32] = []
        for row in 0..<grid.blockRows {
            columns += kept.columns(head: 0, row: row)
            let reachable = grid.reachableColumns(ofRow: row).upperBound
            columns += (reachable..<grid.blockColumns).map { Int32($0) }
            offsets.append(columns.count)
        }
        let listed = try BlockMask(grid: grid, heads: 1, rowOffsets: offsets, columnIndices: columns)
        #expect(listed.columnIndices.count > kept.columnIndices.count)
        let operands = try BlockSparseOperands(shape)
        let plans = try [kept, listed].map { try BlockSparseAttention(shape, mask: $0, instructionSet: set) }
        #expect(plans[0].visiblePairs == plans[1].visiblePairs)
        let states = try plans.map { try $0(query: operands.query, key: operands.key, value: operands.value) }
        #expect(states[0].output.bits == states[1].output.bits && states[0].logSumExp.bits == states[1].logSumExp.bits)
    }

    /// The keys of a row are cut into the same steps of 128 keys, and lanes do not depend on other lanes.
    @Test("keeping everything has the bits of dense attention", arguments: InstructionSet.available, [true, false])
    func fullMaskIsDense(_ set: InstructionSet, _ isCausal: Bool) throws {
        for (queries, keys) in [(1, 1), (7, 130), (150, 150), (200, 390)] {
            let shape = try AttentionShape(queryLength: queries, keyLength: keys, queryHeads: 4, kvHeads: 2, headDim: 24)
            let operands = try BlockSparseOperands(shape)
            let dense = try DenseAttention(shape, mask: isCausal ? .causal : .full, instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value)
            var plans = [try BlockSparseAttention(shape, heads: [.dense], isCausal: isCausal, instructionSet: set)]
            for size in [16, 100, 128] {
                let grid = try BlockGrid(shape, blockSize: size, isCausal: isCausal)
                let mask = try BlockMask(grid: grid) { _, _, _ in true }
                plans.append(try BlockSparseAttention(shape, mask: mask, instructionSet: set))
            }
            for plan in plans {
                let state = try plan(query: operands.query, key: operands.key, value: operands.value)
                #expect(state.output.bits == dense.output.bits, "\(queries)×\(keys)")
                #expect(state.logSumExp.bits == dense.logSumExp.bits, "\(queries)×\(keys)")
            }
        }
    }

    /// The bound is that of one merge in `AttentionStateTests.expectMatch`: parts share the errors of the whole, and merging
    /// adds a few roundings of the largest value.
    @Test("a mask and its complement merge into dense attention", arguments: InstructionSet.available, [true, false])
    func complementsMerge(_ set: InstructionSet, _ isCausal: Bool) throws {
        let shape = try AttentionShape(queryLength: 90, keyLength: 120, queryHeads: 2, kvHeads: 1, headDim: 16, valueDim: 9)
        let operands = try BlockSparseOperands(shape)
        let grid = try BlockGrid(shape, blockSize: 16, isCausal: isCausal)
        let mask = try BlockMask.random(grid, heads: 2, density: 0.4, seed: 5)
        let complement = try BlockMask(grid: grid, heads: 2) { head, row, column in !mask[head, row, column] }
        var state = try BlockSparseAttention(shape, mask: mask, instructionSet: set)(
            query: operands.query, key: operands.key, value: operands.value)
        try state.merge(
            BlockSparseAttention(shape, mask: complement, instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value))
        let rows = try referenceRows(
            ReferenceAttention(shape, mask: isCausal ? .causal : .full), query: operands.query, key: operands.key,
            value: operands.value)
        let u = AttentionErrorBound.unitRoundoff
        let largest = operands.value.elements.reduce(0) { max($0, abs(Double($1))) }
        for (index, row) in rows.enumerated() {
            let bound = AttentionErrorBound(row, headDim: shape.headDim)
            let output = 2 * bound.output + (2 * bound.logSumExp + 4 * u) * largest
            let lse = 2 * bound.logSumExp + u * abs(row.logSumExp)
            #expect(abs(Double(state.logSumExp[flat: index]) - row.logSumExp) <= lse, "\(set), row \(index)")
            for (channel, expected) in row.output.enumerated() {
                let actual = Double(state.output[flat: index * 9 + channel])
                if !(abs(actual - expected) <= output) { Issue.record("\(set): row \(index), channel \(channel)") }
            }
        }
    }
}
