import Communication
import SparseKernels

extension RankChecks {
    /// Messages between two ranks.
    static let messages = [
        RankCheck("messages of every rank to every rank, itself too") { (ranks) throws(SparseKernelsError) in
            let size = 1000
            let sent = try MessageBuffer(byteCount: size * ranks.count)
            let received = try MessageBuffer(byteCount: size * ranks.count)
            var transfers: [Transfer] = []
            for peer in 0..<ranks.count {
                let place = size * peer..<size * (peer + 1)
                fill(sent, place, ranks.rank, peer)
                transfers.append(try ranks.receive(into: received, place, from: peer, tag: 7))
                transfers.append(try ranks.send(sent, place, to: peer, tag: 7))
            }
            for transfer in transfers.reversed() { try ranks.wait(for: transfer) }
            return (0..<ranks.count).lazy.compactMap {
                difference(received, size * $0..<size * ($0 + 1), $0, ranks.rank)
            }.first
        },
        RankCheck("many messages in order, three tags, received in another order") { (ranks) throws(SparseKernelsError) in
            try inOrder(ranks, count: 200, tags: [0, 5, 32767], bytes: 24)
        },
        RankCheck("long messages in order, some shorter than their place") { (ranks) throws(SparseKernelsError) in
            try ring(ranks, sizes: [100_000, 0, 1, 99_999, 50_000, 65_536, 5])
        },
        RankCheck("a ring that computes while messages are under way") { (ranks) throws(SparseKernelsError) in
            try overlappedRing(ranks, bytes: 70_000)
        },
    ]

    private static func inOrder(
        _ ranks: any Communicator, count: Int, tags: [Int], bytes: Int
    ) throws(SparseKernelsError) -> String? {
        let next = (ranks.rank + 1) % ranks.count
        let previous = (ranks.rank + ranks.count - 1) % ranks.count
        let sent = try MessageBuffer(byteCount: count * tags.count * bytes)
        let received = try MessageBuffer(byteCount: count * tags.count * bytes)
        var transfers: [Transfer] = []
        for i in 0..<count * tags.count {
            let place = i * bytes..<(i + 1) * bytes
            fill(sent, place, ranks.rank, i)
            transfers.append(try ranks.send(sent, place, to: next, tag: tags[i / count]))
        }
        for (t, tag) in tags.enumerated().reversed() {
            for i in t * count..<(t + 1) * count {
                transfers.append(
                    try ranks.receive(into: received, i * bytes..<(i + 1) * bytes, from: previous, tag: tag))
            }
        }
        for transfer in transfers.reversed() { try ranks.wait(for: transfer) }
        return (0..<count * tags.count).lazy.compactMap {
            difference(received, $0 * bytes..<($0 + 1) * bytes, previous, $0)
        }.first
    }

    /// All are under way at the same time, with one tag; each place has room for the longest.
    private static func ring(_ ranks: any Communicator, sizes: [Int]) throws(SparseKernelsError) -> String? {
        let next = (ranks.rank + 1) % ranks.count
        let previous = (ranks.rank + ranks.count - 1) % ranks.count
        let room = sizes.max()!
        var (sent, received): ([MessageBuffer], [MessageBuffer]) = ([], [])
        var transfers: [Transfer] = []
        for (i, size) in sizes.enumerated() {
            received.append(try MessageBuffer(byteCount: room))
            transfers.append(try ranks.receive(into: received[i], 0..<room, from: previous, tag: 1))
            sent.append(try MessageBuffer(byteCount: size))
            fill(sent[i], 0..<size, ranks.rank, i)
        }
        for i in sizes.indices { transfers.append(try ranks.send(sent[i], sent[i].allBytes, to: next, tag: 1)) }
        for transfer in transfers { try ranks.wait(for: transfer) }
        for (i, size) in sizes.enumerated() {
            if let difference = difference(received[i], 0..<size, previous, i) { return "message \(i): \(difference)" }
            let message = received[i]
            let elements = message.elements(UInt8.self)
            for place in size..<room where elements[place] != 0 {
                return "message \(i): byte \(place) behind its end was written"
            }
        }
        return nil
    }

    private static func overlappedRing(_ ranks: any Communicator, bytes: Int) throws(SparseKernelsError) -> String? {
        let next = (ranks.rank + 1) % ranks.count
        let previous = (ranks.rank + ranks.count - 1) % ranks.count
        var current = try MessageBuffer(byteCount: bytes)
        var coming = try MessageBuffer(byteCount: bytes)
        fill(current, 0..<bytes, ranks.rank, 0)
        for step in 0..<ranks.count {
            let source = (ranks.rank + ranks.count - step) % ranks.count
            let receive = try ranks.receive(into: coming, 0..<bytes, from: previous, tag: step)
            let send = try ranks.send(current, 0..<bytes, to: next, tag: step)
            for part in 0..<16 {
                let range = part * bytes / 16..<(part + 1) * bytes / 16
                let elements = current.elements(UInt8.self)
                for i in range where elements[i] != byte(source, 0, i) {
                    return "byte \(i) of step \(step) is \(elements[i])"
                }
                try ranks.progress()
            }
            try ranks.wait(for: receive)
            try ranks.wait(for: send)
            (current, coming) = (coming, current)
        }
        return difference(current, 0..<bytes, ranks.rank, 0)
    }
}
