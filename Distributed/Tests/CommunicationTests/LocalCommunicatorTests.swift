import Communication
import Testing

@Suite("LocalCommunicator")
struct LocalCommunicatorTests {
    @Test("every rank gets the values of all", arguments: [1, 2, 3, 4, 5, 6, 7, 8])
    func gathering(_ ranks: Int) throws {
        let lists = try LocalCommunicator.run(ranks: ranks) { (ranks) throws(SparseKernelsError) in
            try ranks.gather(Array(repeating: ranks.rank, count: ranks.rank))
        }
        let expected = (0..<ranks).map { Array(repeating: $0, count: $0) }
        #expect(lists == Array(repeating: expected, count: ranks))
    }

    @Test("texts arrive as they are, empty ones too")
    func texts() throws {
        let lists = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            try ranks.gather(["", "β = 2⁻¹", "x"][ranks.rank])
        }
        #expect(lists == Array(repeating: ["", "β = 2⁻¹", "x"], count: 3))
    }

    @Test("every root's bytes arrive everywhere", arguments: [1, 2, 3, 4, 5, 6, 7, 8])
    func broadcasting(_ ranks: Int) throws {
        let lists = try LocalCommunicator.run(ranks: ranks) { (ranks) throws(SparseKernelsError) in
            var received: [[Int]] = []
            for root in 0..<ranks.count {
                let own = ranks.rank == root ? [root, -root, 7] : [0, 0, 0]
                received.append(try ranks.broadcast(own, from: root))
            }
            return received
        }
        let expected = (0..<ranks).map { [$0, -$0, 7] }
        #expect(lists == Array(repeating: expected, count: ranks))
    }

    @Test("parts of different lengths arrive in the order of the ranks", arguments: [1, 2, 3, 5, 8])
    func exchange(_ ranks: Int) throws {
        let received = try LocalCommunicator.run(ranks: ranks) { (ranks) throws(SparseKernelsError) in
            // Rank r sends (r + p) % 4 bytes of value 10·r + p to rank p: none to some.
            let counts = (0..<ranks.count).map { (ranks.rank + $0) % 4 }
            let sent = try MessageBuffer(byteCount: counts.reduce(0, +))
            let received = try MessageBuffer(byteCount: counts.reduce(0, +))
            fill(sent, counts.indices.flatMap { Array(repeating: UInt8(10 * ranks.rank + $0), count: counts[$0]) })
            try ranks.allToAll(from: sent, counts: counts, into: received, counts: counts)
            return bytes(received)
        }
        for rank in 0..<ranks {
            let expected = (0..<ranks).flatMap { Array(repeating: UInt8(10 * $0 + rank), count: ($0 + rank) % 4) }
            #expect(received[rank] == expected)
        }
    }

    @Test("nobody leaves a barrier before all have come", arguments: [2, 3, 4, 7, 8])
    func barrier(_ ranks: Int) throws {
        let arrived = Counter()
        let seen = try LocalCommunicator.run(ranks: ranks) { (ranks) throws(SparseKernelsError) in
            var seen: [Int] = []
            for round in 1...20 {
                arrived.add()
                try ranks.barrier()
                // Others may already be on their way to the next barrier, but not through it.
                seen.append(arrived.value - round * ranks.count)
                try ranks.barrier()
            }
            return seen
        }
        for list in seen { #expect(list.allSatisfy { $0 == 0 }) }
    }

    @Test("messages of a tag arrive in order, and tags do not mix", arguments: [2, 3, 7])
    func manyMessages(_ ranks: Int) throws {
        let sums = try LocalCommunicator.run(ranks: ranks) { (ranks) throws(SparseKernelsError) in
            let (count, tags) = (100, [0, 5, 32767])
            let next = (ranks.rank + 1) % ranks.count
            let previous = (ranks.rank + ranks.count - 1) % ranks.count
            let sent = try MessageBuffer(of: Int.self, count: count * tags.count)
            let received = try MessageBuffer(of: Int.self, count: count * tags.count)
            var values = sent.mutableElements(Int.self)
            for i in 0..<count * tags.count { values[i] = 1000 * ranks.rank + i }
            var transfers: [Transfer] = []
            for (t, tag) in tags.enumerated() {
                for i in 0..<count {
                    let place = 8 * (t * count + i)
                    transfers.append(try ranks.send(sent, place..<place + 8, to: next, tag: tag))
                }
            }
            // The other way round: the last tag first.
            for (t, tag) in tags.enumerated().reversed() {
                for i in 0..<count {
                    let place = 8 * (t * count + i)
                    transfers.append(try ranks.receive(into: received, place..<place + 8, from: previous, tag: tag))
                }
            }
            try ranks.progress()
            for transfer in transfers.reversed() { try ranks.wait(for: transfer) }
            for transfer in transfers { try ranks.wait(for: transfer) }
            let came = received.elements(Int.self)
            return came.indices.allSatisfy { came[$0] == 1000 * previous + $0 }
        }
        #expect(sums == Array(repeating: true, count: ranks))
    }

    @Test("a rank may send to itself, and a message may be shorter than its place")
    func selfAndShorter() throws {
        let results = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let sent = try MessageBuffer(byteCount: 3)
            let received = try MessageBuffer(byteCount: 8)
            fill(sent, [1, 2, 3])
            let coming = try ranks.receive(into: received, 1..<8, from: ranks.rank, tag: 1)
            let going = try ranks.send(sent, 1..<3, to: ranks.rank, tag: 1)
            try ranks.wait(for: going)
            try ranks.wait(for: coming)
            return (bytes(received), ranks.traffic)
        }
        for (received, traffic) in results {
            #expect(received == [0, 2, 3, 0, 0, 0, 0, 0])
            #expect(
                [traffic.sentBytes, traffic.receivedBytes, traffic.sentMessages, traffic.receivedMessages] == [2, 2, 1, 1])
        }
    }

    @Test("groups are ordered by key, and their messages do not mix")
    func splitting() throws {
        let results = try LocalCommunicator.run(ranks: 7) { (ranks) throws(SparseKernelsError) in
            // Even and odd ranks, the even ones backwards; rank 6 is in no group.
            let color = ranks.rank == 6 ? nil : ranks.rank % 2
            guard let group = try ranks.split(color: color, key: color == 0 ? -ranks.rank : 0, name: "half") else {
                return ["alone"]
            }
            let members = try group.gather([ranks.rank]).map { $0[0] }
            guard let pair = try group.split(color: group.rank / 2, key: 0, name: "pair") else { return [] }
            defer { pair.free() }
            let partners = try pair.gather([ranks.rank]).map { $0[0] }
            return ["\(members)", "\(partners)", group.name, pair.name]
        }
        #expect(results[0] == ["[4, 2, 0]", "[0]", "world.half", "world.half.pair"])
        #expect(results[2] == ["[4, 2, 0]", "[4, 2]", "world.half", "world.half.pair"])
        #expect(results[4] == results[2])
        #expect(results[1] == ["[1, 3, 5]", "[1, 3]", "world.half", "world.half.pair"])
        #expect(results[3] == results[1])
        #expect(results[5] == ["[1, 3, 5]", "[5]", "world.half", "world.half.pair"])
        #expect(results[6] == ["alone"])
    }

    @Test("a broadcast sends the bytes to each other rank once; the other collective calls send each part once")
    func traffic() throws {
        let traffic = try LocalCommunicator.run(ranks: 5) { (ranks) throws(SparseKernelsError) in
            var counts: [Int] = []
            func note(_ start: MessageTraffic) {
                let difference = ranks.traffic - start
                counts += [difference.sentBytes, difference.receivedBytes]
            }
            var start = ranks.traffic
            let message = try MessageBuffer(byteCount: 50)
            try ranks.broadcast(message, 0..<50, from: 3)
            note(start)
            start = ranks.traffic
            try ranks.allGather(message, counts: [10, 0, 10, 20, 10])
            note(start)
            start = ranks.traffic
            let received = try MessageBuffer(byteCount: 50)
            try ranks.allToAll(
                from: message, counts: Array(repeating: 10, count: 5), into: received,
                counts: Array(repeating: 10, count: 5))
            note(start)
            return counts
        }
        #expect(traffic.map { $0[0] }.reduce(0, +) == 4 * 50)
        #expect(traffic.map { $0[1] } == [50, 50, 50, 0, 50])
        #expect(traffic.map { $0[2] } == [40, 0, 40, 80, 40])
        #expect(traffic.map { $0[3] } == [40, 50, 40, 30, 40])
        #expect(traffic.map { $0[4] } == Array(repeating: 40, count: 5))
        #expect(traffic.map { $0[5] } == Array(repeating: 40, count: 5))
    }

    @Test("one rank needs no thread, and calls from any")
    func alone() async throws {
        let ranks = LocalCommunicator.alone()
        #expect(try ranks.gather([4]) == [[4]])
        try ranks.barrier()
        #expect(try ranks.broadcast([1, 2], from: 0) == [1, 2])
        let group = try #require(try ranks.split(color: 3, key: 0, name: "group"))
        #expect(group.count == 1)
        ranks.free()
        #expect(throws: SparseKernelsError.self) { try ranks.barrier() }
    }

    @Test("ranks that agree go on")
    func agreement() throws {
        let results = try LocalCommunicator.run(ranks: 3) { (ranks) throws(SparseKernelsError) in
            try ranks.agree(on: "8 heads", "shape")
            return true
        }
        #expect(results == [true, true, true])
    }
}

func fill(_ message: MessageBuffer, _ values: [UInt8]) {
    var elements = message.mutableElements(UInt8.self)
    for i in values.indices { elements[i] = values[i] }
}

func bytes(_ message: MessageBuffer) -> [UInt8] {
    let elements = message.elements(UInt8.self)
    return elements.indices.map { elements[$0] }
}
