import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Queries over a prefix and keys of their own, which are those of attention over both, one after the other.
@Suite("Attention after a prefix")
struct PrefixAttentionTests {
    /// Operands, and the same with both spans in one tensor.
    struct Scene {
        let shape: AttentionShape
        let prefixLength: Int
        let query: Tensor<Float>
        let prefixKey: Tensor<Float>
        let prefixValue: Tensor<Float>
        let key: Tensor<Float>
        let value: Tensor<Float>

        init(
            queries: Int, prefix: Int, keys: Int, heads: Int = 2, kvHeads: Int = 1, headDim: Int = 16, valueDim: Int? = nil,
            scale: Float = 1
        ) throws {
            shape = try AttentionShape(
                queryLength: queries, keyLength: keys, queryHeads: heads, kvHeads: kvHeads, headDim: headDim,
                valueDim: valueDim)
            prefixLength = prefix
            query = try .normal([heads, queries, headDim], seed: 1, scale: scale)
            prefixKey = try .normal([kvHeads, prefix, headDim], seed: 2)
            prefixValue = try .normal([kvHeads, prefix, shape.valueDim], seed: 3)
            key = try .normal([kvHeads, keys, headDim], seed: 4)
            value = try .normal([kvHeads, keys, shape.valueDim], seed: 5)
        }

        func plan(_ set: InstructionSet) throws -> PrefixAttention {
            try PrefixAttention(shape, prefixLength: prefixLength, instructionSet: set)
        }

        func run(_ set: InstructionSet, on pool: WorkerPool = .shared) throws -> AttentionState {
            try plan(set)(
                query: query, prefixKey: prefixKey, prefixValue: prefixValue, key: key, value: value, on: pool)
        }

        /// The rows of one head of both spans.
        private func joined(_ first: Tensor<Float>, _ second: Tensor<Float>) throws -> Tensor<Float> {
            let (heads, channels) = (first.shape[0], first.shape[2])
            let (a, b) = (first.shape[1] * channels, second.shape[1] * channels)
            return try Tensor([heads, first.shape[1] + second.shape[1], channels]) {
                let (head, offset) = $0.quotientAndRemainder(dividingBy: max(1, a + b))
                return offset < a ? first[flat: head * a + offset] : second[flat: head * b + offset - a]
            }
        }

        func rows() throws -> [ReferenceAttention.Row] {
            let whole = try AttentionShape(
                queryLength: shape.queryLength, keyLength: prefixLength + shape.keyLength, queryHeads: shape.queryHeads,
                kvHeads: shape.kvHeads, headDim: shape.headDim, valueDim: shape.valueDim)
            return try referenceRows(
                ReferenceAttention(whole), query: query, key: joined(prefixKey, key), value: joined(prefixValue, value))
        }

        /// The bound of one merge, which `AttentionStateTests.Scene.expectMatch` derives.
        func expectMatch(_ state: AttentionState, _ label: String) throws {
            let u = AttentionErrorBound.unitRoundoff
            let largest = (prefixValue.elements + value.elements).reduce(0) { max($0, abs(Double($1))) }
            for (index, row) in try rows().enumerated() {
                let bound = AttentionErrorBound(row, headDim: shape.headDim)
                let output = 2 * bound.output + (2 * bound.logSumExp + 4 * u) * largest
                let actual = Double(state.logSumExp[flat: index])
                if row.logSumExp == -.infinity {
                    #expect(actual == -.infinity, "\(label), LSE of row \(index)")
                } else {
                    #expect(
                        abs(actual - row.logSumExp) <= 2 * bound.logSumExp + u * abs(row.logSumExp),
                        "\(label), LSE of row \(index)")
                }
                for (channel, expected) in row.output.enumerated() {
                    let value = Double(state.output[flat: index * shape.valueDim + channel])
                    if !(abs(value - expected) <= output) {
                        Issue.record("\(label): row \(index), channel \(channel) is \(value), expected \(expected) ± \(output)")
                        return
                    }
                }
            }
        }
    }

    /// Queries, keys of the prefix, own keys: off the edges of tiles, panels and steps, and either span empty.
    static let sizes = [
        (1, 1, 1), (1, 50, 1), (23, 81, 23), (3, 0, 7), (7, 5, 0), (2, 0, 0), (97, 129, 97), (200, 27, 200), (49, 255, 130),
    ]

    @Test("agrees with the oracle over both spans", arguments: InstructionSet.available, sizes)
    func matchesReference(_ set: InstructionSet, _ size: (Int, Int, Int)) throws {
        let scene = try Scene(queries: size.0, prefix: size.1, keys: size.2)
        try scene.expectMatch(scene.run(set), "\(set), \(size)")
    }

    @Test("agrees with the oracle for other heads and widths", arguments: InstructionSet.available)
    func widths(_ set: InstructionSet) throws {
        for (heads, kvHeads, headDim, valueDim) in [(3, 3, 72, 72), (4, 2, 5, 9), (1, 1, 255, 1), (6, 1, 8, 24)] {
            for scale in [Float(1), 5] {
                let scene = try Scene(
                    queries: 30, prefix: 70, keys: 41, heads: heads, kvHeads: kvHeads, headDim: headDim, valueDim: valueDim,
                    scale: scale)
                try scene.expectMatch(scene.run(set), "\(set), \(heads)/\(kvHeads) heads of \(headDim)→\(valueDim)")
            }
        }
    }

    @Test("threads do not change bits", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let scene = try Scene(queries: 400, prefix: 90, keys: 400, heads: 4, kvHeads: 2)
        let first = try scene.run(set, on: .serial)
        for threads in [2, 7] { #expect(try scene.run(set, on: WorkerPool(threads: threads)) == first, "\(set)") }
    }

    @Test("any layout, a prefix of 16 bits, and an output of 16 bits", arguments: InstructionSet.available)
    func layouts(_ set: InstructionSet) throws {
        let scene = try Scene(queries: 37, prefix: 60, keys: 37, heads: 3, kvHeads: 3, headDim: 10)
        let expected = try scene.run(set)
        // Token-major rows with queries, keys and values side by side, as a projection writes them.
        let projected = try Tensor<Float>([37, 9, 10]) {
            let (token, head, channel) = ($0 / 90, $0 / 10 % 9, $0 % 10)
            return [scene.query, scene.key, scene.value][head / 3][head % 3, token, channel]
        }
        let all = try projected.view(layout: .nhd)
        var output = try Tensor<Float>(zeros: [37, 3, 10])
        let (prefixKey, prefixValue) = (try scene.prefixKey.view(), try scene.prefixValue.view())
        try scene.plan(set).run(
            query: all.heads(0..<3), prefixKey: prefixKey, prefixValue: prefixValue, key: all.heads(3..<6),
            value: all.heads(6..<9), output: output.mutableView(layout: .nhd))
        for token in 0..<37 {
            for head in 0..<3 {
                for channel in 0..<10 {
                    #expect(output[token, head, channel] == expected.output[head, token, channel])
                }
            }
        }
        let halves = (scene.prefixKey.converted(to: Float16.self), scene.prefixValue.converted(to: Float16.self))
        let rounded = (
            try Tensor<Float>([3, 60, 10]) { Float(halves.0[flat: $0]) },
            try Tensor<Float>([3, 60, 10]) { Float(halves.1[flat: $0]) }
        )
        let plan = try scene.plan(set)
        let narrow = try plan(
            query: scene.query, prefixKey: halves.0, prefixValue: halves.1, key: scene.key, value: scene.value)
        let wide = try plan(
            query: scene.query, prefixKey: rounded.0, prefixValue: rounded.1, key: scene.key, value: scene.value)
        #expect(narrow == wide)
        var small = try Tensor<BFloat16>(zeros: [3, 37, 10])
        try plan.run(
            query: scene.query, prefixKey: halves.0, prefixValue: halves.1, key: scene.key, value: scene.value, into: &small)
        #expect((0..<small.count).allSatisfy { small[flat: $0] == BFloat16(wide.output[flat: $0]) })
    }

    @Test("NaN in a query stays in its row, in keys in their head", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let scene = try Scene(queries: 60, prefix: 40, keys: 60, heads: 2, kvHeads: 2)
        let clean = try scene.run(set)
        let plan = try scene.plan(set)
        var query = scene.query
        query[1, 7, 3] = .nan
        var state = try plan(
            query: query, prefixKey: scene.prefixKey, prefixValue: scene.prefixValue, key: scene.key, value: scene.value)
        #expect(state.logSumExp[1, 7].isNaN && state.output[1, 7, 0].isNaN)
        for row in 0..<120 where row != 67 {
            #expect(state.logSumExp[flat: row].bitPattern == clean.logSumExp[flat: row].bitPattern)
            #expect((0..<16).allSatisfy { state.output[flat: row * 16 + $0] == clean.output[flat: row * 16 + $0] })
        }
        var prefix = scene.prefixKey
        prefix[0, 5, 2] = .nan
        state = try plan(
            query: scene.query, prefixKey: prefix, prefixValue: scene.prefixValue, key: scene.key, value: scene.value)
        for row in 0..<60 { #expect(state.logSumExp[flat: row].isNaN && state.output[flat: row * 16].isNaN) }
        for row in 60..<120 { #expect(state.logSumExp[flat: row] == clean.logSumExp[flat: row]) }
    }

    @Test("operands of other sizes are refused, and nothing is written")
    func errors() throws {
        let scene = try Scene(queries: 5, prefix: 4, keys: 6)
        let plan = try scene.plan(.portable)
        var output = try Tensor<Float>([2, 5, 16]) { _ in 7 }
        let wrong = try Tensor<Float>(zeros: [1, 3, 16])
        expectError(.invalidShape, "prefixKey", containing: "4", "3") {
            try plan.run(
                query: scene.query, prefixKey: wrong, prefixValue: scene.prefixValue, key: scene.key, value: scene.value,
                into: &output)
        }
        expectError(.invalidShape, "prefixValue", containing: "4", "3") {
            try plan.run(
                query: scene.query, prefixKey: scene.prefixKey, prefixValue: wrong, key: scene.key, value: scene.value,
                into: &output)
        }
        expectError(.invalidShape, "key", containing: "6", "3") {
            try plan.run(
                query: scene.query, prefixKey: scene.prefixKey, prefixValue: scene.prefixValue, key: wrong,
                value: scene.value, into: &output)
        }
        #expect(output.elements.allSatisfy { $0 == 7 })
        expectError(.invalidArgument, "prefixLength", containing: "-1") {
            _ = try PrefixAttention(scene.shape, prefixLength: -1)
        }
        expectError(.invalidShape, "prefixLength", containing: "\(Int.max)") {
            _ = try PrefixAttention(scene.shape, prefixLength: .max)
        }
        expectError(.invalidShape, "shape", containing: "2⁶⁰") { _ = try PrefixAttention(scene.shape, prefixLength: 1 << 55) }
        expectError(.invalidArgument, "softmaxScale", containing: "inf") {
            _ = try PrefixAttention(scene.shape, prefixLength: 1, softmaxScale: .infinity)
        }
    }
}

#if os(Linux) && canImport(Glibc)
    @Suite("Allocations of attention after a prefix")
    struct PrefixAttentionAllocationTests {
        @Test("it allocates nothing after the first calls")
        func prefix() async {
            await #expect(processExitsWith: .success) {
                let scene = try PrefixAttentionTests.Scene(queries: 130, prefix: 90, keys: 130)
                var output = try Tensor<Float>(zeros: [2, 130, 16])
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let attention = try scene.plan(set)
                        AllocationTests.warmUp(pool, scratchByteCount: attention.scratchByteCount)
                        var allocated = 0
                        for call in 0..<12 {
                            let (q, k, v) = try (scene.query.view(), scene.key.view(), scene.value.view())
                            let (pk, pv) = try (scene.prefixKey.view(), scene.prefixValue.view())
                            let o = try output.mutableView()
                            let before = AllocationCounter.count
                            try attention.run(query: q, prefixKey: pk, prefixValue: pv, key: k, value: v, output: o, on: pool)
                            if call >= 2 { allocated += AllocationCounter.count - before }
                        }
                        #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations in 10 calls")
                    }
                }
            }
        }
    }
#endif
