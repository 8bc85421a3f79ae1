import Communication
import Testing

@Suite("LocalCommunicator")
struct LocalCommunicatorTests {
    @Test("every rank gets the values of all", arguments: [1, 2, 3, 7])
    func gathering(_ ranks: Int) throws {
        let lists = try LocalCommunicator.run(ranks: ranks) { (ranks) throws(SparseKernelsError) in
            try ranks.gather(Array(repeating: ranks.rank, count: ranks.rank))
        }
        let expected = (0..<ranks).map { Array(repeating: $0, count: $0) }
        #expect(lists == Array(repeating: expected, count: ranks))
    }

    @Test("parts of different lengths arrive in the order of the ranks")
    func exchange() throws {
        let received = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            // Rank r sends r + p bytes of value 10·r + p to rank p.
            let sentCounts = (0..<3).map { ranks.rank + $0 }
            let sent = try MessageBuffer(byteCount: sentCounts.reduce(0, +))
            let received = try MessageBuffer(byteCount: sentCounts.reduce(0, +))
            var place = 0
            var bytes = sent.mutableElements(UInt8.self)
            for peer in 0..<3 {
                for _ in 0..<sentCounts[peer] {
                    bytes[place] = UInt8(10 * ranks.rank + peer)
                    place += 1
                }
            }
            try ranks.allToAll(from: sent, counts: sentCounts, into: received, counts: sentCounts)
            let elements = received.elements(UInt8.self)
            return elements.indices.map { Int(elements[$0]) }
        }
        for rank in 0..<3 {
            #expect(received[rank] == (0..<3).flatMap { Array(repeating: 10 * $0 + rank, count: $0 + rank) })
        }
    }

    @Test("a rank that fails ends the calls of the others with its error")
    func failure() throws {
        let broken = SparseKernelsError(.invalidArgument, "x", expected: "1", actual: "2")
        #expect(throws: broken) {
            try LocalCommunicator.run(ranks: 3, timeLimit: 20) { (ranks) throws(SparseKernelsError) in
                if ranks.rank == 1 { throw broken }
                try ranks.barrier()
            }
        }
    }
}
