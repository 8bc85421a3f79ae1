import SequenceParallel
import Testing

@Suite("TwoStageSharding")
struct TwoStageShardingTests {
    @Test("frames go by quotient and remainder, with the text from each rank's first frame on")
    func frames() throws {
        let stages = try TwoStageSharding(
            promptLength: 20, placeholders: [4, 5, 6, 12, 13], frameTokens: [3, 3, 3, 3, 5], ulysses: 2, ring: 2)
        #expect(stages.frames == [0..<2, 2..<3, 3..<4, 4..<5])
        #expect(stages.prompt == [0..<6, 6..<12, 12..<13, 13..<20])
        // The prompt's tokens, and those that each frame has beyond its placeholder.
        #expect((0..<4).map(stages.encoded.count) == [6 + 4, 6 + 2, 1 + 2, 7 + 4])
        #expect(stages.model == (try TokenShards.zigzag(length: 32, ulysses: 2, ring: 2)))
    }

    @Test("queries that see all keys get shards in order")
    func full() throws {
        let stages = try TwoStageSharding(
            promptLength: 7, placeholders: [3], frameTokens: [60], ulysses: 1, ring: 3, isCausal: false, alignment: 16)
        #expect(stages.model == (try TokenShards.contiguous(length: 66, ranks: 3, alignment: 16)))
        #expect(stages.model.ranges == [[0..<32], [32..<64], [64..<66]])
    }

    @Test("without frames the first rank embeds the text, and with few the last ranks have nothing to encode")
    func fewFrames() throws {
        let text = try TwoStageSharding(promptLength: 9, placeholders: [], frameTokens: [], ulysses: 1, ring: 3)
        #expect(text.encoded.ranges == [[0..<9], [], []])
        let one = try TwoStageSharding(promptLength: 3, placeholders: [1], frameTokens: [0], ulysses: 3, ring: 1)
        #expect(one.frames == [0..<1, 1..<1, 1..<1] && one.encoded.ranges == [[0..<2], [], []])
        let none = try TwoStageSharding(promptLength: 0, placeholders: [], frameTokens: [], ulysses: 1, ring: 2)
        #expect(none.model.length == 0)
    }

    @Test(
        "rows arrive where the model's shards have them, with nothing else on the way",
        arguments: [(1, 1), (1, 4), (4, 1), (2, 3)])
    func exchange(_ ulysses: Int, _ ring: Int) throws {
        let ranks = ulysses * ring
        let stages = try TwoStageSharding(
            promptLength: 23, placeholders: [2, 3, 9, 10, 20], frameTokens: [7, 0, 31, 4, 11], ulysses: ulysses, ring: ring)
        let results = try LocalCommunicator.run(ranks: ranks, timeLimit: 60) { (ranks) throws(SparseKernelsError) in
            let exchange = try stages.exchange(rowByteCount: 12, on: ranks)
            let own = stages.encoded.positions(of: ranks.rank)
            let before = ranks.traffic
            let moved = try exchange(Tensor([own.count, 3], own.flatMap { [Float($0), -Float($0), 0.5] }))
            let sent = ranks.traffic - before
            return ((0..<moved.count).map { moved[flat: $0] }, sent.sentBytes, exchange.sentBytes)
        }
        for rank in 0..<ranks {
            #expect(results[rank].0 == stages.model.positions(of: rank).flatMap { [Float($0), -Float($0), 0.5] })
            #expect(results[rank].1 == results[rank].2)
        }
        // Every row that changes its rank is sent once.
        let changing = (0..<stages.model.length).filter { stages.model.owner(of: $0) != stages.encoded.owner(of: $0) }
        #expect(results.reduce(0) { $0 + $1.1 } == changing.count * 12)
    }

    @Test("pages of a cache, one by one over the ranks, go there and back")
    func cyclic() throws {
        let results = try LocalCommunicator.run(ranks: 3, timeLimit: 60) { (ranks) throws(SparseKernelsError) in
            let pages = stride(from: 0, to: 100, by: 8).map { $0..<min(100, $0 + 8) }
            let cyclic = try TokenShards(
                length: 100, ranges: (0..<3).map { rank in pages.indices.filter { $0 % 3 == rank }.map { pages[$0] } })
            let ordered = try TokenShards.zigzag(length: 100, ulysses: 1, ring: 3)
            let there = try TokenExchange(from: ordered, to: cyclic, rowByteCount: 4, on: ranks)
            let back = try TokenExchange(from: cyclic, to: ordered, rowByteCount: 4, on: ranks)
            let own = ordered.positions(of: ranks.rank).map { Int32($0) }
            let moved = try there(Tensor([own.count, 1], own))
            let returned = try back(moved)
            return (0..<moved.count).map { Int(moved[flat: $0]) } == cyclic.positions(of: ranks.rank)
                && (0..<returned.count).map { returned[flat: $0] } == own
        }
        #expect(results == [true, true, true])
    }

    @Test("ranks that disagree, and rows of another shape, are errors before anything is sent")
    func exchangeErrors() throws {
        let shards = try TokenShards.contiguous(length: 6, ranks: 2)
        func error<Result: Sendable>(
            _ body: @escaping @Sendable (LocalCommunicator) throws(SparseKernelsError) -> Result
        ) -> SparseKernelsError? {
            do throws(SparseKernelsError) {
                _ = try LocalCommunicator.run(ranks: 2, timeLimit: 20, body)
                return nil
            } catch { return error }
        }
        let disagreement = error { (ranks) throws(SparseKernelsError) in
            _ = try TokenExchange(from: shards, to: shards, rowByteCount: 4 + 4 * ranks.rank, on: ranks)
        }
        #expect(disagreement?.code == .communication && disagreement?.actual.contains("rows of 8 bytes") == true)
        let length = error { (ranks) throws(SparseKernelsError) in
            _ = try TokenExchange(from: shards, to: .contiguous(length: 7, ranks: 2), rowByteCount: 4, on: ranks)
        }
        #expect(length?.argument == "target" && length?.actual == "7")
        let count = error { (ranks) throws(SparseKernelsError) in
            let three = try TokenShards.contiguous(length: 6, ranks: 3)
            _ = try TokenExchange(from: three, to: three, rowByteCount: 4, on: ranks)
        }
        #expect(count?.argument == "source" && count?.expected == "of 2 ranks")
        let size = error { (ranks) throws(SparseKernelsError) in
            _ = try TokenExchange(from: shards, to: shards, rowByteCount: .max, on: ranks)
        }
        #expect(size?.argument == "rowByteCount")
        let rows = error { (ranks) throws(SparseKernelsError) in
            _ = try TokenExchange(from: shards, to: shards, rowByteCount: 4, on: ranks)(
                Tensor<Float>([3, 2], [1, 2, 3, 4, 5, 6]))
        }
        #expect(rows?.code == .invalidShape && rows?.argument == "rows")
        let buffer = error { (ranks) throws(SparseKernelsError) in
            let (small, enough) = (try MessageBuffer(byteCount: 11), try MessageBuffer(byteCount: 12))
            try TokenExchange(from: shards, to: shards, rowByteCount: 4, on: ranks).run(enough, into: small)
        }
        #expect(buffer?.argument == "received" && buffer?.actual == "11")
    }

    @Test("arguments out of range are errors that name them")
    func errors() throws {
        func argument(_ length: Int, _ places: [Int], _ tokens: [Int], _ ulysses: Int = 1, _ ring: Int = 2) -> String? {
            do throws(SparseKernelsError) {
                _ = try TwoStageSharding(
                    promptLength: length, placeholders: places, frameTokens: tokens, ulysses: ulysses, ring: ring)
                return nil
            } catch { return error.argument }
        }
        #expect(argument(-1, [], []) == "promptLength")
        #expect(argument(5, [1, 1], [2, 2]) == "placeholders[1]")
        #expect(argument(5, [5], [2]) == "placeholders[0]")
        #expect(argument(5, [1, 2], [2]) == "frameTokens")
        #expect(argument(5, [1, 2], [2, -1]) == "frameTokens[1]")
        #expect(argument(5, [1], [.max]) == "frameTokens[0]")
        #expect(argument(5, [1], [2], 0) == "ulysses")
        #expect(argument(5, [1], [2], 1, 1 << 20) == "ring")
    }
}
