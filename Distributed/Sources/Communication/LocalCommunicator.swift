internal import Foundation

/// Ranks that are threads of one process, for tests, for one machine, and to try programs that run over MPI elsewhere.
///
/// The bytes of a message are copied once, by the thread of the rank that receives them, when both sides have started the transfer.
/// Collective calls are made of such messages.
///
/// Ranks are threads of their own. Give each a ``WorkerPool`` of its own, of cores / ranks threads. A program that needs only one
/// rank gets it from ``alone()``, without a thread.
public final class LocalCommunicator: MessageTransport {
    public let rank: Int
    public let name: String
    public let timeLimit: Double
    public private(set) var traffic = MessageTraffic()
    /// The members, as ranks of the world.
    private let members: [Int]
    private let context: Int
    private let world: LocalWorld
    private let inbox: LocalInbox
    private var isFree = false

    /// Transfers that were started and not waited for. Receives match messages in the order in which they were started.
    private var sends: [Int: LocalMessage] = [:]
    private var receives: [LocalReceive] = []
    /// The arrivals after which no message was there for any of the receives.
    private var searchedArrivals = -1
    private var numbers = TransferNumbers()
    private let thread = pthread_self()

    public var count: Int { members.count }

    private init(_ world: LocalWorld, context: Int, members: [Int], rank: Int, name: String, timeLimit: Double) {
        (self.world, self.context, self.members, self.rank) = (world, context, members, rank)
        (self.name, self.timeLimit) = (name, timeLimit)
        inbox = world.inboxes[members[rank]]
    }

    // MARK: - Running

    /// One rank, for programs that run on one as on several. It may be called from any thread, one at a time.
    public static func alone() -> LocalCommunicator {
        LocalCommunicator(LocalWorld(ranks: 1), context: 0, members: [0], rank: 0, name: "world", timeLimit: 300)
    }

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
        try CommunicatorChecks.check(timeLimit: timeLimit)
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
        try checkedSend(message, bytes, to: peer, tag: tag)
    }

    public func receive(
        into message: MessageBuffer, _ bytes: Range<Int>, from peer: Int, tag: Int
    ) throws(SparseKernelsError) -> Transfer {
        try checkedReceive(message, bytes, from: peer, tag: tag)
    }

    public func progress() throws(SparseKernelsError) {
        try requireUse("progress")
        try waiting("progress") { (_) throws(SparseKernelsError) in try advance("progress") }
    }

    public func wait(for transfer: Transfer) throws(SparseKernelsError) {
        try requireUse("wait")
        try numbers.check(transfer, "wait", name)
        try waiting("wait") { (deadline) throws(SparseKernelsError) in
            try finish(transfer, "wait", until: deadline)
        }
    }

    // MARK: - Collective calls

    public func barrier() throws(SparseKernelsError) { try tellAll("barrier") }

    public func broadcast(_ message: MessageBuffer, _ bytes: Range<Int>, from root: Int) throws(SparseKernelsError) {
        try sendDownTree(message, bytes, from: root)
    }

    public func allGather(_ message: MessageBuffer, counts: [Int]) throws(SparseKernelsError) {
        try gatherInPlace(message, counts: counts)
    }

    public func allToAll(
        from sent: MessageBuffer, counts sentCounts: [Int], into received: MessageBuffer, counts receivedCounts: [Int]
    ) throws(SparseKernelsError) {
        try exchangeAll(from: sent, counts: sentCounts, into: received, counts: receivedCounts)
    }

    public func split(color: Int?, key: Int, name: String) throws(SparseKernelsError) -> (any Communicator)? {
        try requireUse("split")
        try CommunicatorChecks.check(color: color)
        let first = rank == 0 ? world.takeContexts(count) : 0
        let answers = try gather([color ?? -1, key, first])
        guard let color else { return nil }
        let group = CommunicatorChecks.group(answers, color)
        // A context per color: that of its lowest rank.
        return LocalCommunicator(
            world, context: answers[0][2] + group.min()!, members: group.map { members[$0] },
            rank: group.firstIndex(of: rank)!, name: "\(self.name).\(name)", timeLimit: timeLimit)
    }

    public func fail(_ error: SparseKernelsError) { world.fail(rank: members[rank], error) }

    public func free() {
        if isFree { return }
        isFree = true
        sends = [:]
        receives = []
        world.leave(members[rank], context: context)
    }

    // MARK: - Transfers

    package func post(_ message: MessageBuffer, _ bytes: Range<Int>, to peer: Int, tag: Int) -> Transfer {
        let posted = LocalMessage(message, bytes)
        traffic.sentBytes += bytes.count
        traffic.sentMessages += 1
        let transfer = numbers.next(peer)
        sends[transfer.number] = posted
        world.inboxes[members[peer]].post(posted, channel(from: rank, tag: tag))
        return transfer
    }

    package func expect(
        _ message: MessageBuffer, _ bytes: Range<Int>, from peer: Int, tag: Int, exactly: Bool
    ) -> Transfer {
        let transfer = numbers.next(peer)
        searchedArrivals = -1
        receives.append(
            LocalReceive(
                transfer: transfer, channel: channel(from: peer, tag: tag), buffer: message, bytes: bytes,
                exactly: exactly))
        return transfer
    }

    /// Copies what has come for transfers that were started.
    private func advance(_ operation: String) throws(SparseKernelsError) {
        let arrivals = inbox.arrivals
        if receives.isEmpty || arrivals == searchedArrivals { return }
        searchedArrivals = arrivals
        let taken = inbox.take(receives)
        for (index, message) in taken {
            let receive = receives[index]
            let (room, count) = (receive.bytes.count, message.bytes.count)
            guard count == room || (count < room && !receive.exactly) else {
                throw failing(
                    CommunicatorErrors.length(
                        operation, name, peer: receive.transfer.peer, room: room, exactly: receive.exactly,
                        bytes: "\(count)"))
            }
            (receive.buffer.address + receive.bytes.lowerBound).copyMemory(
                from: message.buffer.address + message.bytes.lowerBound, byteCount: count)
            traffic.receivedBytes += count
            traffic.receivedMessages += 1
            message.finish()
            world.inboxes[receive.channel.source].wake()
        }
        for (index, _) in taken.reversed() { receives.remove(at: index) }
    }

    package func finish(_ transfer: Transfer, _ operation: String, until deadline: Double) throws(SparseKernelsError) {
        defer { inbox.isWaiting = false }
        while true {
            // From before anything is looked at: what changes afterwards is looked at again.
            let generation = inbox.generation
            try advance(operation)
            if let message = sends[transfer.number] {
                if message.isFinished {
                    sends[transfer.number] = nil
                    return
                }
            } else if !receives.contains(where: { $0.transfer == transfer }) {
                return
            }
            try checkFailure(operation)
            if world.hasLeft(members[transfer.peer], context: context), inbox.generation == generation {
                throw failing(CommunicatorErrors.left(operation, name, peer: transfer.peer))
            }
            if WaitClock.now >= deadline {
                throw failing(
                    CommunicatorErrors.late(
                        operation, name, peer: transfer.peer, timeLimit: timeLimit,
                        absent: world.absent(other: members[rank])))
            }
            inbox.isWaiting = true
            world.wait(members[rank], for: generation, until: deadline)
        }
    }

    private func channel(from source: Int, tag: Int) -> LocalChannel {
        LocalChannel(context: context, source: members[source], tag: tag)
    }

    package func countTime(_ seconds: Double) { traffic.seconds += seconds }

    // MARK: - Failures

    /// Ends the calls of all ranks by an error.
    private func failing(_ error: SparseKernelsError) -> SparseKernelsError {
        fail(error)
        return error
    }

    package func requireUse(_ operation: String) throws(SparseKernelsError) {
        if count > 1, pthread_equal(thread, pthread_self()) == 0 {
            throw CommunicatorErrors.thread(operation, name, rank: rank)
        }
        if isFree { throw CommunicatorErrors.freed(operation, name, rank: rank) }
        try checkFailure(operation)
    }

    private func checkFailure(_ operation: String) throws(SparseKernelsError) {
        guard let failure = world.failure else { return }
        throw CommunicatorErrors.failed(operation, name, worldRank: failure.rank, "\(failure.error)")
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
