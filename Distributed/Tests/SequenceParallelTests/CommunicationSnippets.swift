import MPICommunication
import SequenceParallel
import Testing

@Suite("Snippets of the guide to messages")
struct CommunicationSnippets {
    @Test func threads() throws {
        let sums = try LocalCommunicator.run(ranks: 4) { (ranks) throws(SparseKernelsError) in
            let values = try ranks.gather([ranks.rank])  // [[0], [1], [2], [3]] on every rank
            return values.reduce(0) { $0 + $1[0] }
        }
        print(sums)  // [6, 6, 6, 6]

        #expect(sums == [6, 6, 6, 6])
    }

    @Test func launched() throws {
        let lines = try RankLauncher.run { (ranks) throws(SparseKernelsError) in
            try ranks.gather("rank \(ranks.rank) of \(ranks.count)")
        }
        // What rank 0 returns; nil in the processes of other ranks.
        lines?.forEach { print($0) }

        #expect(lines == ["rank 0 of 1"])
    }

    /// A step of a ring: sends a block on while it is computed with, and gives the one that comes.
    static func step(
        _ ranks: any Communicator, _ current: MessageBuffer, _ coming: MessageBuffer,
        compute: (Range<Int>) throws(SparseKernelsError) -> Void
    ) throws(SparseKernelsError) {
        let parts = (0..<4).map { $0 * current.byteCount / 4..<($0 + 1) * current.byteCount / 4 }
        let (next, previous) = ((ranks.rank + 1) % ranks.count, (ranks.rank + ranks.count - 1) % ranks.count)
        let received = try ranks.receive(into: coming, coming.allBytes, from: previous, tag: 0)
        let sent = try ranks.send(current, current.allBytes, to: next, tag: 0)
        for part in parts {
            try compute(part)  // reads `current`, which is being sent
            try ranks.progress()
        }
        try ranks.wait(for: received)
        try ranks.wait(for: sent)
    }

    @Test func ring() throws {
        let first = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let (current, coming) = (try MessageBuffer(of: Int.self, count: 8), try MessageBuffer(of: Int.self, count: 8))
            var own = current.mutableElements(Int.self)
            for i in 0..<8 { own[i] = ranks.rank }
            var computed = 0
            try Self.step(ranks, current, coming) { (part) throws(SparseKernelsError) in computed += part.count }
            return [coming.elements(Int.self)[7], computed]
        }
        #expect(first == [[2, 64], [0, 64], [1, 64]])
    }

    @Test func groups() throws {
        let names = try LocalCommunicator.run(ranks: 4) { (ranks) throws(SparseKernelsError) in
            // Rows and columns of a grid of 2 × 2 ranks.
            let row = try ranks.split(color: ranks.rank / 2, key: ranks.rank, name: "row")!
            let column = try ranks.split(color: ranks.rank % 2, key: ranks.rank, name: "column")!
            let others = [try row.gather([ranks.rank]), try column.gather([ranks.rank])].map { $0.map { $0[0] } }
            row.free()
            column.free()
            return others
        }
        print(names[3])  // [[2, 3], [1, 3]]

        #expect(names[3] == [[2, 3], [1, 3]])
    }

    @Test func failures() throws {
        do throws(SparseKernelsError) {
            _ = try LocalCommunicator.run(ranks: 2, timeLimit: 5) { (ranks) throws(SparseKernelsError) in
                try ranks.agree(on: ranks.rank == 0 ? "8 heads" : "4 heads", "shape of the plan")
            }
        } catch {
            print(error)  // … of the plan must be the same on all ranks …, as on rank 0: 8 heads, got on rank 1: 4 heads
        }

        #expect(throws: SparseKernelsError.self) {
            _ = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
                try ranks.agree(on: "\(ranks.rank)", "shape of the plan")
            }
        }
    }
}
