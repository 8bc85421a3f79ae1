import SparseKernels
import SparseKernelsReference
import Testing

/// NaN and infinities in keys and values affect the queries that see them, and change no bit of other queries.
@Suite("Paged attention: values that are not finite")
struct PagedAttentionNonFiniteTests {
    /// Attends with the last `queries` of `length` tokens, of which one token is poisoned.
    private func rows(
        _ format: KVFormat, length: Int, queries: Int, spoiled: (token: Int, key: Float?, value: Float?)?, queryHeads: Int,
        _ set: InstructionSet, threads: Int = 1
    ) throws -> [[UInt32]] {
        let configuration = try KVCacheConfiguration(
            kvHeads: 2, headDim: 8, valueDim: 21, pageSize: 16, pageCapacity: length / 16 + 2, format: format)
        let cache = try PagedKVCache(configuration, instructionSet: set)
        let sequence = cache.makeSequence()
        let key = try Tensor<Float>.normal([2, length, 8], seed: 1)
        let value = try Tensor<Float>.normal([2, length, 21], seed: 2)
        let badKey = try Tensor<Float>([2, length, 8]) {
            $0 / 8 % length == spoiled?.token && $0 % 8 == 3 ? spoiled?.key ?? key[flat: $0] : key[flat: $0]
        }
        let badValue = try Tensor<Float>([2, length, 21]) {
            $0 / 21 % length == spoiled?.token && $0 % 21 == 20 ? spoiled?.value ?? value[flat: $0] : value[flat: $0]
        }
        try cache.append(key: badKey.view(), value: badValue.view(), to: sequence)
        let attention = try PagedAttention(
            queryHeads: queryHeads, configuration: configuration, instructionSet: set)
        let state = try attention(
            query: Tensor<Float>.normal([queryHeads, queries, 8], seed: 3), cache: cache, sequences: [sequence],
            queryLengths: [queries],
            on: WorkerPool(threads: threads))
        return bits(state)
    }

    @Test("queries before a token keep their bits", arguments: [KVFormat.float32, .float16, .bfloat16])
    func earlierQueries(_ format: KVFormat) throws {
        // The cases are drafts within a step and across two steps, and prompts within and beyond a chunk.
        for (length, queries) in [(3, 3), (40, 7), (130, 5), (300, 300), (1030, 9)] {
            for set in InstructionSet.available {
                for heads in [2, 6] {
                    let clean = try rows(format, length: length, queries: queries, spoiled: nil, queryHeads: heads, set)
                    for token in Set([length - 1, length - queries / 2 - 1, length - queries]).sorted() {
                        let bad: [(Float?, Float?)] = [(nil, .nan), (nil, .infinity), (.nan, nil), (-.infinity, -.infinity)]
                        for (k, v) in length > 200 ? [bad[0]] : bad {
                            let spoiled = try rows(
                                format, length: length, queries: queries, spoiled: (token, k, v), queryHeads: heads, set)
                            for row in clean.indices where length - queries + row % queries < token {
                                #expect(spoiled[row] == clean[row], "\(set), \(length), token \(token), row \(row)")
                            }
                            // Rows that see a NaN value have it in their output.
                            if v?.isNaN == true {
                                for row in clean.indices where length - queries + row % queries >= token {
                                    #expect(Float(bitPattern: spoiled[row][20]).isNaN)
                                    // Only the value's own channel is affected.
                                    #expect(spoiled[row].dropLast(2) == clean[row].dropLast(2))
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    @Test("the bits do not depend on threads")
    func threads() throws {
        let spoiled: (Int, Float?, Float?) = (290, nil, .nan)
        let serial = try rows(.float16, length: 300, queries: 200, spoiled: spoiled, queryHeads: 4, .portable)
        for threads in [2, 7] {
            let parallel = try rows(
                .float16, length: 300, queries: 200, spoiled: spoiled, queryHeads: 4, .portable, threads: threads)
            #expect(parallel == serial)
        }
    }
}
