import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Attention of tokens in another order.
@Suite("Permuted attention")
struct PermutedAttentionTests {
    static func random(heads: Int, length: Int, seed: UInt64) throws -> Permutation {
        var generator = SplitMix64(seed: seed)
        return try Permutation((0..<heads).map { _ in (0..<Int32(length)).shuffled(using: &generator) })
    }

    /// Two KV heads of two query heads each, with a pattern of each kind per query head.
    static func patterns(_ shape: AttentionShape) throws -> [HeadPattern] {
        let grid = try BlockGrid(
            query: BlockPartition(sizes: [40, 0, 77, 33]), key: BlockPartition(sizes: [10, 90, 0, 61, 19]), isCausal: false)
        let mask = try BlockMask.random(grid, density: 0.5, seed: 3)
        let runs = try KeyRuns.random(
            query: BlockPartition(length: shape.queryLength, blockSize: 50), keyLength: shape.keyLength, longest: 20, seed: 4)
        return [
            .blockSparse(mask, head: 0), .runs(runs), .dense,
            .band(AttentionBand(left: 20, right: 25, globalKeys: [5..<9], globalQueries: [0..<3])),
        ]
    }

    @Test("equals attention of the pattern between places of the orders", arguments: InstructionSet.available)
    func oracle(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 150, keyLength: 180, queryHeads: 4, kvHeads: 2, headDim: 16, valueDim: 9)
        let operands = try BlockSparseOperands(shape)
        let patterns = try Self.patterns(shape)
        let plan = try BlockSparseAttention(shape, heads: patterns, isCausal: false, instructionSet: set)
        let placed = visibility(patterns, shape, isCausal: false)
        let orders: [(query: Permutation?, key: Permutation?)] = try [
            (Self.random(heads: 4, length: 150, seed: 1), Self.random(heads: 2, length: 180, seed: 2)),
            (Self.random(heads: 1, length: 150, seed: 5), Self.random(heads: 1, length: 180, seed: 6)),
            (Self.random(heads: 4, length: 150, seed: 7), nil), (nil, Self.random(heads: 2, length: 180, seed: 8)), (nil, nil),
        ]
        for (query, key) in orders {
            let (queryPlaces, keyPlaces) = (query?.inverse, key?.inverse)
            let sees: Visibility = { head, i, j in
                placed(
                    head, queryPlaces.map { Int($0.order(head: head)[offset: i]) } ?? i,
                    keyPlaces.map { Int($0.order(head: head / 2)[offset: j]) } ?? j)
            }
            let rows = try referenceRows(
                shape, query: operands.query, key: operands.key, value: operands.value, sees: sees)
            for limit in [1, PermutedAttention.copiedByteLimit] {
                let permuted = try PermutedAttention(plan, query: query, key: key, copiedByteLimit: limit)
                let result = try attend(permuted, query: operands.query, key: operands.key, value: operands.value)
                expectMatches(result.output, result.logSumExp, rows, headDim: 16, "\(set), \(limit) bytes")
                #expect(permuted.density == plan.density)
            }
        }
    }

    @Test("types, layouts, passes and threads do not change what is computed", arguments: InstructionSet.available)
    func operands(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 150, keyLength: 180, queryHeads: 4, kvHeads: 2, headDim: 16, valueDim: 9)
        let operands = try BlockSparseOperands(shape)
        let (query, key) = (operands.query.converted(to: Float16.self), operands.key.converted(to: BFloat16.self))
        let plan = try BlockSparseAttention(shape, heads: Self.patterns(shape), isCausal: false, instructionSet: set)
        let orders = try (Self.random(heads: 4, length: 150, seed: 1), Self.random(heads: 2, length: 180, seed: 2))
        let permuted = try PermutedAttention(plan, query: orders.0, key: orders.1)
        let expected = try attend(permuted, query: query, key: key, value: operands.value, on: .serial)
        for threads in [1, 2, 7] {
            for limit in [1, PermutedAttention.copiedByteLimit] {
                let other = try PermutedAttention(plan, query: orders.0, key: orders.1, copiedByteLimit: limit)
                let result = try attend(
                    other, query: query, key: key, value: operands.value, on: WorkerPool(threads: threads))
                #expect(result.output.bits == expected.output.bits && result.logSumExp.bits == expected.logSumExp.bits)
            }
        }
        // A 16-bit output is the rounded single-precision one.
        let half = try attend(permuted, query: query, key: key, value: operands.value, as: Float16.self)
        #expect(half.output.bits == expected.output.converted(to: Float16.self).bits)
        let brain = try attend(permuted, query: query, key: key, value: operands.value, as: BFloat16.self)
        #expect(brain.output.bits == expected.output.converted(to: BFloat16.self).bits)
        // The heads of a token adjacent, and an output with gaps that stay as they are.
        let wide = try Tensor<Float16>([150, 4, 16]) { index in
            let (token, rest) = index.quotientAndRemainder(dividingBy: 64)
            return query[flat: (rest / 16 * 150 + token) * 16 + rest % 16]
        }
        var output = try Tensor<Float>([150, 4, 12]) { _ in 7 }
        let geometry = try TensorGeometry(heads: 4, tokens: 150, channels: 9, headStride: 12, tokenStride: 48)
        let (k, v) = try (key.view(), operands.value.view())
        try permuted.run(
            query: wide.view(layout: .nhd), key: k, value: v,
            output: MutableTensorView(output.mutableSpan, geometry: geometry))
        for head in 0..<4 {
            for token in 0..<150 {
                let row = Array(output.elements[(token * 4 + head) * 12..<(token * 4 + head) * 12 + 12])
                #expect(
                    Array(row[0..<9])
                        == Array(expected.output.elements[(head * 150 + token) * 9..<(head * 150 + token) * 9 + 9]))
                #expect(row[9...].allSatisfy { $0 == 7 })
            }
        }
    }

    @Test("empty sides give what plans give")
    func empty() throws {
        for (queries, keys) in [(0, 5), (5, 0), (0, 0)] {
            let shape = try AttentionShape(queryLength: queries, keyLength: keys, queryHeads: 2, kvHeads: 1, headDim: 4)
            let plan = try BlockSparseAttention(shape, heads: [.dense], isCausal: false)
            let operands = try BlockSparseOperands(shape)
            let permuted = try PermutedAttention(
                plan, query: Self.random(heads: 2, length: queries, seed: 1), key: Self.random(heads: 1, length: keys, seed: 2))
            let result = try attend(permuted, query: operands.query, key: operands.key, value: operands.value)
            #expect(result.output.elements.allSatisfy { $0 == 0 } && result.logSumExp.elements.allSatisfy { $0 == -.infinity })
        }
    }

    @Test("orders that do not fit are errors that name the side")
    func errors() throws {
        let shape = try AttentionShape(queryLength: 20, keyLength: 30, queryHeads: 4, kvHeads: 2, headDim: 4)
        let plan = try BlockSparseAttention(shape, heads: [.dense], isCausal: false)
        expectError(.invalidShape, "query", containing: "1 or 4 orders of queryLength (20) tokens", "2 of 20") {
            _ = try PermutedAttention(plan, query: Self.random(heads: 2, length: 20, seed: 1), key: nil)
        }
        expectError(.invalidShape, "key", containing: "1 of 20") {
            _ = try PermutedAttention(plan, query: nil, key: Self.random(heads: 1, length: 20, seed: 1))
        }
        let permuted = try PermutedAttention(plan, query: nil, key: nil)
        let operands = try BlockSparseOperands(shape)
        expectError(.invalidShape, "value") {
            _ = try permuted(query: operands.query, key: operands.key, value: Tensor<Float>(zeros: [2, 29, 4]))
        }
    }
}

extension ArraySlice {
    fileprivate subscript(offset offset: Int) -> Element { self[startIndex + offset] }
}
