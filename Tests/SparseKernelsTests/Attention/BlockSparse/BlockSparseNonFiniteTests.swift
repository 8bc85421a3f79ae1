import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Under every pattern, NaN and infinities in keys and values affect the rows that see them, and change no bit of other rows.
@Suite("Block-sparse attention of non-finite input")
struct BlockSparseNonFiniteTests {
    /// A clean run of four heads with four patterns, two per KV head.
    struct Scene {
        let attention: BlockSparseAttention
        let sees: Visibility
        var query: Tensor<Float>
        var key: Tensor<Float>
        var value: Tensor<Float>
        let clean: AttentionState

        init(_ set: InstructionSet, isCausal: Bool) throws {
            let shape = try AttentionShape(
                queryLength: 110, keyLength: 150, queryHeads: 4, kvHeads: 2, headDim: 10, valueDim: 13)
            let query = try BlockPartition(sizes: [10, 0, 60, 40])
            let clusters = try BlockGrid(query: query, key: BlockPartition(sizes: [30, 0, 70, 50]), isCausal: isCausal)
            let blocks = try BlockMask.random(
                BlockGrid(shape, blockSize: 24, isCausal: isCausal), density: 0.5, seed: 31)
            let runs = try KeyRuns.random(query: query, keyLength: 150, longest: 30, seed: 33)
            let patterns: [HeadPattern] = [
                .blockSparse(blocks, head: 0), isCausal ? .streaming(sink: 5, local: 20) : .dense, .runs(runs),
                .blockSparse(try BlockMask.random(clusters, density: 0.5, seed: 35), head: 0),
            ]
            attention = try BlockSparseAttention(shape, heads: patterns, isCausal: isCausal, instructionSet: set)
            sees = visibility(patterns, shape, isCausal: isCausal)
            let operands = try BlockSparseOperands(shape, seed: 51)
            (self.query, key, value) = (operands.query, operands.key, operands.value)
            clean = try attention(query: operands.query, key: operands.key, value: operands.value)
        }

        func run() throws -> AttentionState { try attention(query: query, key: key, value: value) }

        /// Whether row `row` of all heads reads key `token` of KV head `kvHead`.
        func reads(row: Int, kvHead: Int, token: Int) -> Bool {
            row / 110 / 2 == kvHead && sees(row / 110, row % 110, token)
        }
    }

    static let poisons: [Float] = [.nan, .infinity, -.infinity]
    /// Keys at the edges of blocks, clusters, steps and windows.
    static let tokens = [0, 1, 4, 5, 23, 24, 30, 41, 77, 100, 127, 128, 139, 140, 149]

    @Test("a NaN key spoils exactly the rows that see it", arguments: InstructionSet.available, [true, false])
    func poisonedKey(_ set: InstructionSet, _ isCausal: Bool) throws {
        let scene = try Scene(set, isCausal: isCausal)
        let (cleanOutput, cleanLSE) = (scene.clean.output.bits, scene.clean.logSumExp.bits)
        for token in Self.tokens {
            for kvHead in 0..<2 {
                var poisoned = scene
                poisoned.key[flat: (kvHead * 150 + token) * 10 + 9] = .nan
                let state = try poisoned.run()
                let (output, lse) = (state.output.elements, state.logSumExp.elements)
                let wrong = (0..<440).first { row in
                    let channels = row * 13..<(row + 1) * 13
                    return scene.reads(row: row, kvHead: kvHead, token: token)
                        ? !lse[row].isNaN || !output[channels].allSatisfy(\.isNaN)
                        : lse[row].bitPattern != cleanLSE[row]
                            || output[channels].map(\.bitPattern) != Array(cleanOutput[channels])
                }
                #expect(wrong == nil, "\(set): key \(token) of head \(kvHead)")
            }
        }
    }

    @Test(
        "a poisoned value spoils its channel in exactly the rows that see it", arguments: InstructionSet.available,
        [true, false])
    func poisonedValue(_ set: InstructionSet, _ isCausal: Bool) throws {
        let scene = try Scene(set, isCausal: isCausal)
        for poison in Self.poisons {
            for token in poison.isNaN ? Self.tokens : [1, 30, 127, 149] {
                for (kvHead, channel) in [(0, 0), (1, 12)] {
                    var poisoned = scene
                    poisoned.value[flat: (kvHead * 150 + token) * 13 + channel] = poison
                    let state = try poisoned.run()
                    // Weights of finite scores are positive, so an infinity keeps its sign.
                    var expected = scene.clean.output.elements
                    for row in 0..<440 where scene.reads(row: row, kvHead: kvHead, token: token) {
                        expected[row * 13 + channel] = poison
                    }
                    let wrong = zip(state.output.elements, expected).enumerated().first { _, pair in
                        pair.0.bitPattern != pair.1.bitPattern && !(pair.0.isNaN && pair.1.isNaN)
                    }
                    #expect(wrong == nil, "\(set): \(poison) at token \(token)")
                    #expect(state.logSumExp.bits == scene.clean.logSumExp.bits, "values have no part in the LSE")
                }
            }
        }
    }

    @Test("16-bit keys and values behave the same", arguments: InstructionSet.available, [true, false])
    func poisonedStaged(_ set: InstructionSet, _ isCausal: Bool) throws {
        let scene = try Scene(set, isCausal: isCausal)
        let (key, value) = (scene.key.converted(to: BFloat16.self), scene.value.converted(to: Float16.self))
        let clean = try attend(scene.attention, query: scene.query, key: key, value: value, as: BFloat16.self).output.bits
        for token in Self.tokens {
            var (poisonedKey, poisonedValue) = (key, value)
            poisonedKey[flat: token * 10] = BFloat16(Float.nan)
            poisonedValue[flat: (150 + token) * 13 + 5] = .nan
            let output = try attend(
                scene.attention, query: scene.query, key: poisonedKey, value: poisonedValue, as: BFloat16.self
            ).output.elements.map(\.floatValue)
            let wrong = output.indices.first { index in
                let isTouched =
                    scene.reads(row: index / 13, kvHead: 0, token: token)
                    || index % 13 == 5 && scene.reads(row: index / 13, kvHead: 1, token: token)
                return isTouched ? !output[index].isNaN : output[index].bitPattern != clean[index]
            }
            #expect(wrong == nil, "\(set): token \(token)")
        }
    }

    @Test("keys that no query sees may have any value", arguments: InstructionSet.available, [true, false])
    func unseenKeys(_ set: InstructionSet, _ isCausal: Bool) throws {
        let scene = try Scene(set, isCausal: isCausal)
        // There is one head per KV head, so that no row sees keys outside its pattern.
        let shape = try AttentionShape(queryLength: 110, keyLength: 150, queryHeads: 2, kvHeads: 2, headDim: 10, valueDim: 13)
        let query = try BlockPartition(length: 110, blockSize: 110)
        let patterns: [HeadPattern] = try [
            .runs(
                KeyRuns(
                    query: query, keyLength: 150, runOffsets: [0, 2], runs: [20..<33, 50..<90], keyOffsets: [0, 3],
                    keys: [3, 17, 149])),
            .blockSparse(
                BlockMask(grid: BlockGrid(shape, blockSize: 20, isCausal: isCausal)) { _, _, column in column % 3 == 1 },
                head: 0),
        ]
        let attention = try BlockSparseAttention(shape, heads: patterns, isCausal: isCausal, instructionSet: set)
        let sees = visibility(patterns, shape, isCausal: isCausal)
        let rows = try Tensor<Float>.normal([2, 110, 10], seed: 3)
        let clean = try attention(query: rows, key: scene.key, value: scene.value)
        for poison in Self.poisons {
            var (key, value) = (scene.key, scene.value)
            for head in 0..<2 {
                for token in 0..<150 where !(0..<110).contains(where: { sees(head, $0, token) }) {
                    for channel in 0..<10 { key[flat: (head * 150 + token) * 10 + channel] = poison }
                    for channel in 0..<13 { value[flat: (head * 150 + token) * 13 + channel] = poison }
                }
            }
            let state = try attention(query: rows, key: key, value: value)
            #expect(state.output.bits == clean.output.bits && state.logSumExp.bits == clean.logSumExp.bits, "\(set)")
        }
    }
}
