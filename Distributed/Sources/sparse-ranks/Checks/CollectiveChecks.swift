import Communication
import SparseKernels

extension RankChecks {
    /// Calls of all ranks.
    static let collectives = [
        RankCheck("broadcasts of every rank, of 0 to 70 000 bytes") { (ranks) throws(SparseKernelsError) in
            for size in [0, 1, 70_000] {
                for root in 0..<ranks.count {
                    let message = try MessageBuffer(byteCount: size + 2)
                    if ranks.rank == root { fill(message, 1..<size + 1, root, size) }
                    try ranks.broadcast(message, 1..<size + 1, from: root)
                    if let difference = difference(message, 1..<size + 1, root, size) { return difference }
                }
            }
            return nil
        },
        RankCheck("parts of all ranks, of different lengths") { (ranks) throws(SparseKernelsError) in
            // Some ranks have nothing, and the last one has the most.
            let counts = (0..<ranks.count).map { $0 % 3 == 1 ? 0 : 1000 * $0 + 1 }
            let message = try MessageBuffer(byteCount: counts.reduce(0, +))
            let own = counts[..<ranks.rank].reduce(0, +)
            fill(message, own..<own + counts[ranks.rank], ranks.rank, 0)
            try ranks.allGather(message, counts: counts)
            var start = 0
            for (rank, count) in counts.enumerated() {
                if let difference = difference(message, start..<start + count, rank, 0) { return difference }
                start += count
            }
            return nil
        },
        RankCheck("an exchange of all with all, of different lengths") { (ranks) throws(SparseKernelsError) in
            func count(_ source: Int, _ target: Int) -> Int { (source + 2 * target) % 4 * 4321 }
            let sentCounts = (0..<ranks.count).map { count(ranks.rank, $0) }
            let receivedCounts = (0..<ranks.count).map { count($0, ranks.rank) }
            let sent = try MessageBuffer(byteCount: sentCounts.reduce(0, +))
            let received = try MessageBuffer(byteCount: receivedCounts.reduce(0, +))
            var start = 0
            for (peer, count) in sentCounts.enumerated() {
                fill(sent, start..<start + count, ranks.rank, peer)
                start += count
            }
            try ranks.allToAll(from: sent, counts: sentCounts, into: received, counts: receivedCounts)
            start = 0
            for (peer, count) in receivedCounts.enumerated() {
                if let difference = difference(received, start..<start + count, peer, ranks.rank) { return difference }
                start += count
            }
            return nil
        },
        RankCheck("a hundred barriers, and bytes as counted") { (ranks) throws(SparseKernelsError) in
            let start = ranks.traffic
            for _ in 0..<100 { try ranks.barrier() }
            let message = try MessageBuffer(byteCount: 10 * ranks.count)
            try ranks.allGather(message, counts: Array(repeating: 10, count: ranks.count))
            let traffic = ranks.traffic - start
            let expected = 10 * (ranks.count - 1)
            guard traffic.sentBytes == expected && traffic.receivedBytes == expected else {
                return "sent \(traffic.sentBytes) and received \(traffic.receivedBytes) bytes, not \(expected)"
            }
            return nil
        },
        RankCheck("small values: lists, texts, agreement") { (ranks) throws(SparseKernelsError) in
            let lists = try ranks.gather(Array(repeating: -ranks.rank, count: ranks.rank))
            let texts = try ranks.gather("β\(ranks.rank)")
            try ranks.agree(on: "the same", "check")
            for rank in 0..<ranks.count where lists[rank] != Array(repeating: -rank, count: rank) || texts[rank] != "β\(rank)" {
                return "rank \(rank) has \(lists[rank]) and \(texts[rank])"
            }
            return nil
        },
    ]

    /// Communicators of some ranks.
    static let groups = [
        RankCheck("groups of a grid, and their messages do not mix") { (ranks) throws(SparseKernelsError) in
            let width = ranks.count % 2 == 0 ? 2 : 1
            let row = try ranks.split(color: ranks.rank / width, key: ranks.rank, name: "row")!
            // The other way round.
            let column = try ranks.split(color: ranks.rank % width, key: -ranks.rank, name: "column")!
            defer {
                row.free()
                column.free()
            }
            for round in 0..<3 {
                let inRow = try row.gather([ranks.rank, round]).map { $0[0] }
                let inColumn = try column.gather([ranks.rank, round]).map { $0[0] }
                let first = ranks.rank / width * width
                guard inRow == Array(first..<first + width) else { return "row \(inRow)" }
                let expected = (0..<ranks.count).filter { $0 % width == ranks.rank % width }
                guard inColumn == expected.reversed() else { return "column \(inColumn)" }
            }
            return nil
        },
        RankCheck("a group that some ranks are not in, again and again") { (ranks) throws(SparseKernelsError) in
            for _ in 0..<20 {
                let group = try ranks.split(color: ranks.rank == 0 ? nil : 5, key: 0, name: "others")
                if (group == nil) != (ranks.rank == 0) { return "wrong members" }
                if let group {
                    guard group.count == ranks.count - 1, group.rank == ranks.rank - 1 else { return "wrong ranks" }
                    try group.barrier()
                    group.free()
                }
            }
            return nil
        },
    ]
}
