internal import Foundation

/// What collective calls are made of: messages between two ranks that are known to have the right arguments.
///
/// Collective calls use one tag. Messages between two ranks arrive in order and every rank makes the same calls in the same order,
/// so they cannot be mistaken for those of another call.
package protocol MessageTransport: Communicator {
    /// Starts to send.
    func post(_ message: MessageBuffer, _ bytes: Range<Int>, to peer: Int, tag: Int) throws(SparseKernelsError) -> Transfer

    /// Starts to receive.
    /// - Parameter exactly: whether a shorter message is an error. A longer one always is.
    func expect(
        _ message: MessageBuffer, _ bytes: Range<Int>, from peer: Int, tag: Int, exactly: Bool
    ) throws(SparseKernelsError) -> Transfer

    /// Waits for a transfer until a time of `WaitClock`, and names the operation in errors.
    func finish(_ transfer: Transfer, _ operation: String, until deadline: Double) throws(SparseKernelsError)

    /// Throws when calls are no longer possible, and before anything else.
    func requireUse(_ operation: String) throws(SparseKernelsError)

    /// Adds seconds to `traffic`.
    func countTime(_ seconds: Double)
}

/// Seconds that only go forward.
package enum WaitClock {
    package static var now: Double { Double(DispatchTime.now().uptimeNanoseconds) * 1e-9 }
}

/// Tags of messages that are not of `send` and `receive`, whose tags end at 32767.
package let collectiveTag = 32768

extension MessageTransport {
    // MARK: - Messages

    package func checkedSend(
        _ message: MessageBuffer, _ bytes: Range<Int>, to peer: Int, tag: Int
    ) throws(SparseKernelsError) -> Transfer {
        try check(peer: peer, bytes, of: message, "send")
        try CommunicatorChecks.check(tag: tag, "send")
        return try post(message, bytes, to: peer, tag: tag)
    }

    package func checkedReceive(
        _ message: MessageBuffer, _ bytes: Range<Int>, from peer: Int, tag: Int
    ) throws(SparseKernelsError) -> Transfer {
        try check(peer: peer, bytes, of: message, "receive")
        try CommunicatorChecks.check(tag: tag, "receive")
        return try expect(message, bytes, from: peer, tag: tag, exactly: false)
    }

    // MARK: - Collective calls

    /// In round k rank r tells rank r + 2ᵏ that it and those that told it are here: ⌈log₂ ranks⌉ empty messages per rank.
    package func tellAll(_ operation: String) throws(SparseKernelsError) {
        try requireUse(operation)
        let none = try MessageBuffer(byteCount: 0)
        try waiting(operation) { (deadline) throws(SparseKernelsError) in
            var distance = 1
            while distance < count {
                let came = try expect(
                    none, 0..<0, from: (rank + count - distance) % count, tag: collectiveTag, exactly: true)
                let sent = try post(none, 0..<0, to: (rank + distance) % count, tag: collectiveTag)
                try finish(came, operation, until: deadline)
                try finish(sent, operation, until: deadline)
                distance *= 2
            }
        }
    }

    /// A binomial tree: the root sends to ranks at distances of falling powers of two, and so does each that has received.
    package func sendDownTree(
        _ message: MessageBuffer, _ bytes: Range<Int>, from root: Int
    ) throws(SparseKernelsError) {
        try check(peer: root, bytes, of: message, "broadcast")
        try waiting("broadcast") { (deadline) throws(SparseKernelsError) in
            let place = (rank + count - root) % count
            var distance = 1
            while distance < count, place & distance == 0 { distance *= 2 }
            if place != 0 {
                let parent = (place - distance + root) % count
                let came = try expect(message, bytes, from: parent, tag: collectiveTag, exactly: true)
                try finish(came, "broadcast", until: deadline)
            }
            var transfers: [Transfer] = []
            distance /= 2
            while distance >= 1 {
                if place + distance < count {
                    let child = (place + distance + root) % count
                    transfers.append(try post(message, bytes, to: child, tag: collectiveTag))
                }
                distance /= 2
            }
            for transfer in transfers { try finish(transfer, "broadcast", until: deadline) }
        }
    }

    package func gatherInPlace(_ message: MessageBuffer, counts: [Int]) throws(SparseKernelsError) {
        try requireUse("allGather")
        try CommunicatorChecks.check(counts, message, ranks: count, "counts")
        let starts = Self.starts(counts)
        let own = starts[rank]..<starts[rank] + counts[rank]
        try exchange("allGather") { (peer) in
            (message, own, message, starts[peer]..<starts[peer] + counts[peer])
        }
    }

    package func exchangeAll(
        from sent: MessageBuffer, counts sentCounts: [Int], into received: MessageBuffer, counts receivedCounts: [Int]
    ) throws(SparseKernelsError) {
        try requireUse("allToAll")
        try CommunicatorChecks.check(sentCounts, sent, ranks: count, "sentCounts")
        try CommunicatorChecks.check(receivedCounts, received, ranks: count, "receivedCounts")
        guard sentCounts[rank] == receivedCounts[rank], sent !== received else {
            throw SparseKernelsError(
                .invalidArgument, "receivedCounts[\(rank)]", expected: "\(sentCounts[rank]), in another buffer",
                actual: sent === received ? "the buffer that is sent" : "\(receivedCounts[rank])")
        }
        let (sources, targets) = (Self.starts(sentCounts), Self.starts(receivedCounts))
        (received.address + targets[rank]).copyMemory(
            from: sent.address + sources[rank], byteCount: sentCounts[rank])
        try exchange("allToAll") { (peer) in
            (
                sent, sources[peer]..<sources[peer] + sentCounts[peer],
                received, targets[peer]..<targets[peer] + receivedCounts[peer]
            )
        }
    }

    /// Sends bytes to every other rank and receives some from each. Every rank begins with its neighbour, so that not all send to
    /// the same rank at the same time.
    private func exchange(
        _ operation: String,
        _ bytes: (_ peer: Int) -> (from: MessageBuffer, Range<Int>, into: MessageBuffer, Range<Int>)
    ) throws(SparseKernelsError) {
        try waiting(operation) { (deadline) throws(SparseKernelsError) in
            var transfers: [Transfer] = []
            transfers.reserveCapacity(2 * count)
            for step in 1..<max(1, count) {
                let source = (rank + count - step) % count
                let (_, _, target, place) = bytes(source)
                transfers.append(try expect(target, place, from: source, tag: collectiveTag, exactly: true))
            }
            for step in 1..<max(1, count) {
                let peer = (rank + step) % count
                let (message, part, _, _) = bytes(peer)
                transfers.append(try post(message, part, to: peer, tag: collectiveTag))
            }
            for transfer in transfers { try finish(transfer, operation, until: deadline) }
        }
    }

    /// Where parts begin that lie one behind the other.
    private static func starts(_ counts: [Int]) -> [Int] {
        var (starts, sum): ([Int], Int) = ([], 0)
        starts.reserveCapacity(counts.count)
        for count in counts {
            starts.append(sum)
            sum += count
        }
        return starts
    }

    // MARK: - Time and checks

    /// Does something that may wait until the time limit, and counts the seconds.
    package func waiting(
        _ operation: String, _ body: (_ deadline: Double) throws(SparseKernelsError) -> Void
    ) throws(SparseKernelsError) {
        let start = WaitClock.now
        defer { countTime(WaitClock.now - start) }
        try body(start + timeLimit)
    }

    private func check(
        peer: Int, _ bytes: Range<Int>, of message: MessageBuffer, _ operation: String
    ) throws(SparseKernelsError) {
        try requireUse(operation)
        try CommunicatorChecks.check(peer: peer, of: count, operation)
        try CommunicatorChecks.check(bytes, of: message, operation)
    }
}
