import SparseKernels
import SparseKernelsReference
import Testing

@Suite("Paged attention: streaming masks")
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

    @Test("pages that no query sees may be gone", arguments: [KVFormat.bfloat16, .int8])
    func discarded(_ format: KVFormat) throws {
        let fixture = try PagedAttentionFixture(format, lengths: [2000, 200])
        let query = try PagedAttentionTests.query(heads: 4, [5, 1])
        let attention = try fixture.attention(queryHeads: 4, mask: .streaming(sink: 20, window: 100))
        func state(_ attention: PagedAttention) throws -> AttentionState {
            try attention(query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [5, 1])
        }
        let before = try state(attention)
        // The first of five queries stands at 1995 and sees from 1896 on.
        try fixture.cache.discard(fixture.sequences[0], tokens: 20..<1896)
        #expect(try fixture.cache.pageTable(of: fixture.sequences[0]).filter { $0 == -1 }.count == 1888 / 16 - 2)
        #expect(bits(try state(attention)) == bits(before))

        func expectGone(_ mask: KVMask) {
            AttentionErrorsTests.expectError(.notFound, "sequences[0]") {
                _ = try state(fixture.attention(queryHeads: 4, mask: mask))
            }
        }
        expectGone(.causal)
        expectGone(.streaming(sink: 33, window: 100))
        // The page of 1872 is gone, and the first query sees it.
        expectGone(.streaming(sink: 20, window: 109))
        _ = try state(fixture.attention(queryHeads: 4, mask: .streaming(sink: 32, window: 108)))
    }
}
