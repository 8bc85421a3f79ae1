import SparseKernels
import TestSupport
import Testing

@Suite("Block partitions")
struct BlockPartitionTests {
    static let cuts: [GridCase.Cut] = [
        .uniform(1, 1), .uniform(1, 7), .uniform(7, 3), .uniform(12, 4), .uniform(13, 4), .uniform(100, 1), .sizes([5]),
        .sizes([0, 3, 0, 0, 2, 0]), .sizes([1, 1, 1]), .sizes([4, 4, 3]),
    ]

    @Test("blocks follow each other and every token finds its own", arguments: cuts)
    func blocks(_ cut: GridCase.Cut) throws {
        let partition = try cut.partition()
        #expect(partition.sizes == cut.sizes && partition.count == cut.sizes.count)
        #expect(partition.length == cut.sizes.reduce(0, +))
        var next = 0
        for block in 0..<partition.count {
            #expect(partition[block] == next..<next + cut.sizes[block])
            next = partition[block].upperBound
        }
        #expect((0..<partition.length).map { partition.block(of: $0) } == cut.blocks)
        #expect(partition.block(of: -1) == cut.blocks.first && partition.block(of: .min) == cut.blocks.first)
        #expect(partition.block(of: partition.length) == cut.blocks.last && partition.block(of: .max) == cut.blocks.last)
    }

    @Test("partitions are equal when their blocks are")
    func equality() throws {
        let uniform = try BlockPartition(length: 11, blockSize: 4)
        for equal in try [BlockPartition(sizes: [4, 4, 3]), BlockPartition(length: 11, blockSize: 4)] {
            #expect(uniform == equal && equal == uniform && uniform.hashValue == equal.hashValue)
        }
        for other in try [
            BlockPartition(length: 11, blockSize: 5), BlockPartition(length: 12, blockSize: 4),
            BlockPartition(sizes: [4, 3, 4]), BlockPartition(sizes: [4, 4, 3, 0]), BlockPartition(sizes: [11]),
        ] {
            #expect(uniform != other && other != uniform)
        }
        let whole = try [
            BlockPartition(length: 5, blockSize: 5), BlockPartition(length: 5, blockSize: 64), BlockPartition(sizes: [5]),
        ]
        #expect(Set(whole).count == 1)
        #expect(whole.map(\.blockSize) == [5, 64, nil])
    }

    @Test("the largest partitions do not overflow")
    func largest() throws {
        let limit = 1 << 60
        let partition = try BlockPartition(length: limit - 1, blockSize: limit - 1)
        #expect(partition[0] == 0..<limit - 1)
        let halves = try BlockPartition(length: limit - 1, blockSize: limit / 2)
        #expect(halves.count == 2 && halves[1] == limit / 2..<limit - 1)
    }

    @Test("invalid partitions are refused")
    func errors() {
        let limit = 1 << 60
        for extent in [0, -1, .min, limit, .max] {
            if extent != 0 {
                expectError(.invalidShape, "length", containing: "\(extent)") {
                    _ = try BlockPartition(length: extent, blockSize: 1)
                }
            }
            expectError(.invalidShape, "blockSize", containing: "\(extent)") {
                _ = try BlockPartition(length: 1, blockSize: extent)
            }
        }
        expectError(.invalidShape, "sizes[2]", containing: "-1") { _ = try BlockPartition(sizes: [1, 2, -1]) }
        expectError(.invalidShape, "sizes") { _ = try BlockPartition(sizes: [1, .max]) }
        expectError(.invalidShape, "sizes") { _ = try BlockPartition(sizes: [limit / 2, limit / 2]) }
    }

    @Test("a block outside the partition traps")
    func outside() async {
        await #expect(processExitsWith: .failure) { _ = try BlockPartition(length: 4, blockSize: 2)[2] }
    }
}
