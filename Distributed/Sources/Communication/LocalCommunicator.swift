internal import Foundation

/// Ranks that are threads of one process, for tests, for one machine, and to try programs that run over MPI elsewhere.
///
/// The bytes of a message are copied once, by the thread of the rank that receives them, when both sides have started the transfer.
/// Collective calls are made of such messages.
///
/// Ranks are threads of their own. Give each a ``WorkerPool`` of its own, of cores / ranks threads.
public final class LocalCommunicator: Communicator {
    public let rank: Int
    public let name: String
    public let timeLimit: Double
    public private(set) var traffic = MessageTraffic()
    /// The members, as ranks of the world.
    private let members: [Int]
    private let context: Int
    private let world: LocalWorld
    private var isFree = false

    /// Transfers that were started and not waited for. Receives match messages in the order in which they were started.
    private var sends: [Int: LocalMessage] = [:]
    private var receives: [LocalReceive] = []
    private var transferCount = 0
    private var collectiveCount = 0

    public var count: Int { members.count }

    private init(_ world: LocalWorld, context: Int, members: [Int], rank: Int, name: String, timeLimit: Double) {
        (self.world, self.context, self.members, self.rank) = (world, context, members, rank)
        (self.name, self.timeLimit) = (name, timeLimit)
    }

    // MARK: - Running

    /// Runs the same code on some ranks, a thread each, and returns when all are done.
    ///
    /// - Parameters:
    ///   - ranks: the number of threads, at least 1.
    ///   - timeLimit: seconds that a rank waits for another one.
    ///   - body: the code. Errors that it throws end the other ranks' calls, too.
    /// - Returns: what the ranks return, in their order.
    /// - Throws: the error of the rank that failed first; `.invalidArgument` for less than one rank, or a limit that is not above 0.
    public static func run<Result: Sendable>(
        ranks: Int, timeLimit: Double = 300,
        _ body: @escaping @Sendable (LocalCommunicator) throws(SparseKernelsError) -> Result
    ) throws(SparseKernelsError) -> [Result] {
        guard ranks >= 1 else {
            throw SparseKernelsError(.invalidArgument, "ranks", expected: "at least 1", actual: "\(ranks)")
        }
        guard timeLimit > 0 else {
            throw SparseKernelsError(.invalidArgument, "timeLimit", expected: "above 0 seconds", actual: "\(timeLimit)")
        }
        let world = LocalWorld(ranks: ranks)
        let results = ResultBox<Result>(count: ranks)
        for rank in 0..<ranks {
            let thread = Thread {
                let communicator = LocalCommunicator(
                    world, context: 0, members: Array(0..<ranks), rank: rank, name: "world", timeLimit: timeLimit)
                do throws(SparseKernelsError) {
                    results.set(try body(communicator), at: rank)
                } catch {
                    communicator.fail(error)
                }
                world.leave(rank)
            }
            thread.stackSize = 8 << 20
            thread.start()
        }
        world.waitForAll()
        if let failure = world.failure { throw failure.error }
        return results.take()
    }

    // MARK: - Messages

    public func send(
        _ message: MessageBuffer, _ bytes: Range<Int>, to peer: Int, tag: Int
    ) throws(SparseKernelsError) -> Transfer {
        try check(peer: peer, bytes, of: message, "send")
        try check(tag: tag, "send")
        return post(message, bytes, to: peer, tag: tag)
    }

    public func receive(
        into message: MessageBuffer, _ bytes: Range<Int>, from peer: Int, tag: Int
    ) throws(SparseKernelsError) -> Transfer {
        try check(peer: peer, bytes, of: message, "receive")
        try check(tag: tag, "receive")
        return expect(message, bytes, from: peer, tag: tag)
    }

    public func progress() throws(SparseKernelsError) {
        try requireUse("progress")
        try timed { () throws(SparseKernelsError) in try advance("progress") }
    }

    public func wait(for transfer: Transfer) throws(SparseKernelsError) {
        try requireUse("wait")
        try timed { () throws(SparseKernelsError) in try finish(transfer, "wait") }
    }

    // MARK: - Collective calls

    public func barrier() throws(SparseKernelsError) {
        let none = try MessageBuffer(byteCount: 0)
        let counts = Array(repeating: 0, count: count)
        try exchange(from: none, counts, into: none, counts, "barrier")
    }

    public func broadcast(_ message: MessageBuffer, _ bytes: Range<Int>, from root: Int) throws(SparseKernelsError) {
        try check(peer: root, bytes, of: message, "broadcast")
        let tag = takeCollectiveTag()
        try timed { () throws(SparseKernelsError) in
            if rank != root {
                try finish(expect(message, bytes, from: root, tag: tag), "broadcast")
                return
            }
            let transfers = (0..<count).filter { $0 != root }.map { post(message, bytes, to: $0, tag: tag) }
            for transfer in transfers { try finish(transfer, "broadcast") }
        }
    }

    public func allGather(_ message: MessageBuffer, counts: [Int]) throws(SparseKernelsError) {
        try check(counts, message, "counts", "allGather")
        let tag = takeCollectiveTag()
        try timed { () throws(SparseKernelsError) in
            var transfers: [Transfer] = []
            let start = counts[..<rank].reduce(0, +)
            var place = 0
            for peer in 0..<count {
                if peer != rank {
                    transfers.append(expect(message, place..<place + counts[peer], from: peer, tag: tag))
                    transfers.append(post(message, start..<start + counts[rank], to: peer, tag: tag))
                }
                place += counts[peer]
            }
            for transfer in transfers { try finish(transfer, "allGather") }
        }
    }

    public func allToAll(
        from sent: MessageBuffer, counts sentCounts: [Int], into received: MessageBuffer, counts receivedCounts: [Int]
    ) throws(SparseKernelsError) {
        try check(sentCounts, sent, "sentCounts", "allToAll")
        try check(receivedCounts, received, "receivedCounts", "allToAll")
        guard sentCounts[rank] == receivedCounts[rank], sent !== received else {
            throw SparseKernelsError(
                .invalidArgument, "receivedCounts[\(rank)]", expected: "\(sentCounts[rank]), in another buffer",
                actual: "\(receivedCounts[rank])")
        }
        try exchange(from: sent, sentCounts, into: received, receivedCounts, "allToAll")
    }

    private func exchange(
        from sent: MessageBuffer, _ sentCounts: [Int], into received: MessageBuffer, _ receivedCounts: [Int],
        _ operation: String
    ) throws(SparseKernelsError) {
        try requireUse(operation)
        let tag = takeCollectiveTag()
        try timed { () throws(SparseKernelsError) in
            var transfers: [Transfer] = []
            var (source, target) = (0, 0)
            for peer in 0..<count {
                let (from, into) = (source..<source + sentCounts[peer], target..<target + receivedCounts[peer])
                if peer == rank {
                    (received.address + into.lowerBound).copyMemory(
                        from: sent.address + from.lowerBound, byteCount: from.count)
                } else {
                    transfers.append(expect(received, into, from: peer, tag: tag))
                    transfers.append(post(sent, from, to: peer, tag: tag))
                }
                (source, target) = (from.upperBound, into.upperBound)
            }
            for transfer in transfers { try finish(transfer, operation) }
        }
    }

    public func split(color: Int?, key: Int, name: String) throws(SparseKernelsError) -> (any Communicator)? {
        try requireUse("split")
        let first = rank == 0 ? world.takeContexts(count) : 0
        let answers = try gather([color ?? -1, key, first])
        guard let color else { return nil }
        guard color >= 0 else {
            throw SparseKernelsError(.invalidArgument, "color", expected: "0 or more", actual: "\(color)")
        }
        let group = answers.indices.filter { answers[$0][0] == color }
        let order = group.sorted { (answers[$0][1], $0) < (answers[$1][1], $1) }
        // A context per color: that of its lowest rank.
        return LocalCommunicator(
            world, context: answers[0][2] + group[0], members: order.map { members[$0] },
            rank: order.firstIndex(of: rank)!, name: "\(self.name).\(name)", timeLimit: timeLimit)
    }

    public func fail(_ error: SparseKernelsError) {
        world.fail(rank: members[rank], error)
    }

    public func free() {
        isFree = true
        sends = [:]
        receives = []
        world.leave(members[rank], context: context)
    }

    // MARK: - Transfers

    private func post(_ message: MessageBuffer, _ bytes: Range<Int>, to peer: Int, tag: Int) -> Transfer {
        let posted = LocalMessage(message, bytes)
        traffic.sentBytes += bytes.count
        traffic.sentMessages += 1
        let transfer = takeTransfer(peer)
        sends[transfer.number] = posted
        world.post(posted, channel(from: rank, to: peer, tag: tag))
        return transfer
    }

    private func expect(_ message: MessageBuffer, _ bytes: Range<Int>, from peer: Int, tag: Int) -> Transfer {
        let transfer = takeTransfer(peer)
        receives.append(
            LocalReceive(
                transfer: transfer, channel: channel(from: peer, to: rank, tag: tag), buffer: message, bytes: bytes))
        return transfer
    }

    /// Copies what has come for transfers that were started.
    private func advance(_ operation: String) throws(SparseKernelsError) {
        var index = 0
        // Later receives on a channel wait for earlier ones.
        var blocked: Set<LocalChannel> = []
        while index < receives.count {
            let receive = receives[index]
            guard !blocked.contains(receive.channel), let message = world.take(receive.channel) else {
                blocked.insert(receive.channel)
                index += 1
                continue
            }
            let room = receive.bytes.count
            guard message.bytes.count <= room else {
                let error = SparseKernelsError(
                    .communication, "\(operation) of \(name)",
                    expected: "a message of at most \(room) bytes from rank \(receive.transfer.peer)",
                    actual: "\(message.bytes.count) bytes")
                fail(error)
                throw error
            }
            (receive.buffer.address + receive.bytes.lowerBound).copyMemory(
                from: message.buffer.address + message.bytes.lowerBound, byteCount: message.bytes.count)
            traffic.receivedBytes += message.bytes.count
            traffic.receivedMessages += 1
            receives.remove(at: index)
            world.finish(message)
        }
    }

    private func finish(_ transfer: Transfer, _ operation: String) throws(SparseKernelsError) {
        let deadline = Date().addingTimeInterval(timeLimit)
        while true {
            let generation = world.generation
            try advance(operation)
            if let message = sends[transfer.number] {
                if world.isFinished(message) {
                    sends[transfer.number] = nil
                    return
                }
            } else if !receives.contains(where: { $0.transfer == transfer }) {
                return
            }
            try world.check(
                waitingFor: members[transfer.peer], context: context, "rank \(transfer.peer) of \(name)",
                since: generation, operation)
            if !world.wait(for: generation, until: deadline) {
                throw SparseKernelsError(
                    .communication, "\(operation) of \(name)",
                    expected: "an answer of rank \(transfer.peer) within \(timeLimit) s", actual: "none")
            }
        }
    }

    private func takeTransfer(_ peer: Int) -> Transfer {
        transferCount += 1
        return Transfer(number: transferCount, peer: peer)
    }

    /// Tags of collective calls are negative, and no two calls have the same.
    private func takeCollectiveTag() -> Int {
        collectiveCount += 1
        return -collectiveCount
    }

    private func channel(from source: Int, to target: Int, tag: Int) -> LocalChannel {
        LocalChannel(context: context, source: members[source], target: members[target], tag: tag)
    }

    private func timed(_ body: () throws(SparseKernelsError) -> Void) throws(SparseKernelsError) {
        let start = DispatchTime.now().uptimeNanoseconds
        defer { traffic.seconds += Double(DispatchTime.now().uptimeNanoseconds - start) * 1e-9 }
        try body()
    }

    // MARK: - Checks

    private func requireUse(_ operation: String) throws(SparseKernelsError) {
        if isFree {
            throw SparseKernelsError(
                .communication, "\(operation) of \(name)", expected: "called before the communicator is freed",
                actual: "a call of rank \(rank) afterwards")
        }
        try world.checkFailure(operation)
    }

    private func check(
        peer: Int, _ bytes: Range<Int>, of message: MessageBuffer, _ operation: String
    ) throws(SparseKernelsError) {
        try requireUse(operation)
        try CommunicatorChecks.check(peer: peer, of: count, operation)
        try CommunicatorChecks.check(bytes, of: message, operation)
    }

    private func check(tag: Int, _ operation: String) throws(SparseKernelsError) {
        try CommunicatorChecks.check(tag: tag, operation)
    }

    private func check(
        _ counts: [Int], _ message: MessageBuffer, _ name: String, _ operation: String
    ) throws(SparseKernelsError) {
        try requireUse(operation)
        try CommunicatorChecks.check(counts, message, ranks: count, name)
    }
}

/// What ranks return, set by their threads.
private final class ResultBox<Result: Sendable>: @unchecked Sendable {
    private let lock = NSLock()
    private var results: [Result?]

    init(count: Int) { results = Array(repeating: nil, count: count) }

    func set(_ result: Result, at rank: Int) { lock.withLock { results[rank] = result } }

    func take() -> [Result] { lock.withLock { results.map { $0! } } }
}
