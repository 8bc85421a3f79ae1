import SparseKernels
import TestSupport
import Testing

/// Subsets of channels: lists, counts, choices by score, and their combinations.
@Suite("Channel subsets")
struct ChannelSubsetTests {
    @Test("a subset has the channels that it was given")
    func lists() throws {
        let subset = try ChannelSubset([0, 3, 4, 9], of: 10)
        #expect(subset.indices == [0, 3, 4, 9] && subset.count == 4 && subset.width == 10 && !subset.isAll)
        #expect(subset.density == 0.4)
        #expect(try ChannelSubset([], of: 10).density == 0)
        #expect(try ChannelSubset([], of: 0).isAll)
        #expect(ChannelSubset(all: 3).indices == [0, 1, 2] && ChannelSubset(all: 3).isAll)
        #expect(try ChannelSubset([0, 1, 2], of: 3) == ChannelSubset(all: 3))
        #expect(ChannelSubset(all: 0).count == 0 && ChannelSubset(all: 0).density == 1)
    }

    @Test("lists that are unsorted, repeated or out of range are refused, naming the position and both channels")
    func badLists() {
        expectError(.invalidArgument, "indices[2]", containing: "greater than 5", "got 4") {
            _ = try ChannelSubset([1, 5, 4], of: 9)
        }
        expectError(.invalidArgument, "indices[1]", containing: "greater than 5", "got 5") {
            _ = try ChannelSubset([5, 5], of: 9)
        }
        expectError(.invalidArgument, "indices[1]", containing: "0 to 8", "got 9") { _ = try ChannelSubset([5, 9], of: 9) }
        expectError(.invalidArgument, "indices[0]", containing: "0 to 8", "got -1") { _ = try ChannelSubset([-1, 3], of: 9) }
        expectError(.invalidArgument, "indices[0]", containing: "got 0") { _ = try ChannelSubset([0], of: 0) }
        expectError(.invalidShape, "width", containing: "got -2") { _ = try ChannelSubset([], of: -2) }
        expectError(.invalidShape, "width", containing: "2³¹") { _ = try ChannelSubset([], of: 1 << 31) }
    }

    @Test("counts are those of the released code, in double arithmetic")
    func counts() throws {
        for (width, sparsity, count) in [
            (160, 0.9, 15), (5120, 0.9, 511), (5120, 0.8, 1023), (100, 0.91, 8), (14336, 0.97, 430), (14336, 0.99, 143),
            (7, 0, 7),
            (0, 0.5, 0), (10, 0.999, 0),
        ] {
            #expect(try ChannelSubset.count(ofWidth: width, sparsity: sparsity) == count, "\(width), \(sparsity)")
        }
        for sparsity in [1, 1.5, -0.1, .nan, .infinity, -.infinity] {
            expectError(.invalidArgument, "sparsity", containing: "below 1", "\(sparsity)") {
                _ = try ChannelSubset.count(ofWidth: 10, sparsity: sparsity)
            }
        }
        expectError(.invalidShape, "width", containing: "-1") { _ = try ChannelSubset.count(ofWidth: -1, sparsity: 0) }
    }

    @Test("the strongest channels are those that a stable sort puts first")
    func strongest() throws {
        var generator = SplitMix64(seed: 5)
        for width in [1, 2, 7, 64, 301] {
            for levels in [2, 5, 100_000] {
                // Few levels make many ties.
                var scores = (0..<width).map { _ in Float(Int(generator.next() % UInt64(levels))) - Float(levels / 2) }
                scores[0] = width % 2 == 0 ? -0.0 : 0
                scores[width / 2] = .infinity
                scores[width - 1] = width > 5 ? -.infinity : 3
                let order = (0..<width).sorted { scores[$0] != scores[$1] ? scores[$0] > scores[$1] : $0 < $1 }
                for count in Set([0, 1, width / 3, width / 2, width - 1, width]) {
                    let expected = order.prefix(count).sorted().map { Int32($0) }
                    #expect(
                        try ChannelSubset.strongest(scores, count: count).indices == expected, "\(width), \(levels), \(count)")
                }
            }
        }
        #expect(try ChannelSubset.strongest([-0.0, 0, -1], count: 1).indices == [0])
        #expect(try ChannelSubset.strongest([], count: 0).width == 0)
    }

    @Test("NaN scores and impossible counts are refused")
    func badScores() {
        expectError(.invalidArgument, "scores[2]", containing: "nan") {
            _ = try ChannelSubset.strongest([1, 2, .nan, .nan], count: 1)
        }
        expectError(.invalidArgument, "count", containing: "0 to 3", "got 4") {
            _ = try ChannelSubset.strongest([1, 2, 3], count: 4)
        }
        expectError(.invalidArgument, "count", containing: "got -1") { _ = try ChannelSubset.strongest([1], count: -1) }
    }

    @Test("unions are those of sets")
    func unions() throws {
        var generator = SplitMix64(seed: 8)
        for width in [0, 1, 5, 100] {
            for _ in 0..<8 {
                func draw() -> [Int32] { (0..<Int32(width)).filter { _ in generator.next() % 3 == 0 } }
                let (a, b) = (draw(), draw())
                let union = try ChannelSubset(a, of: width).union(ChannelSubset(b, of: width))
                #expect(union.indices == Set(a).union(b).sorted() && union.width == width)
            }
        }
        expectError(.invalidShape, "other", containing: "4 channels", "got 5") {
            _ = try ChannelSubset(all: 4).union(ChannelSubset(all: 5))
        }
    }

    @Test("blocks are all channels of the picked heads")
    func blocks() throws {
        let heads = try ChannelSubset([0, 2], of: 4)
        #expect(try heads.blocks(of: 3) == ChannelSubset([0, 1, 2, 6, 7, 8], of: 12))
        #expect(heads.blocks(of: 1) == heads)
        #expect(try ChannelSubset([], of: 4).blocks(of: 5).width == 20)
        #expect(ChannelSubset(all: 4).blocks(of: 5).isAll)
    }
}
