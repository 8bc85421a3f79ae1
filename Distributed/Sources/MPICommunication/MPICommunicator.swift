#if MPI
    internal import CMPI
    public import Communication
    internal import Foundation
    public import SparseKernels
    internal import Synchronization

    /// Ranks that are processes of one or several machines, over the system's MPI: Open MPI or MPICH.
    ///
    /// ```swift
    /// let sums = try MPICommunicator.run { (ranks) throws(SparseKernelsError) in
    ///     try ranks.gather([ranks.rank])
    /// }
    /// ```
    ///
    /// A launcher starts the program once per rank: `mpirun -n 4 program`. Only the thread that has started MPI calls it
    /// (`MPI_THREAD_FUNNELED`). Operators run on threads as they do elsewhere.
    ///
    /// Messages are sent from their buffers and received into them; nothing is copied here. All calls are made of transfers that do not
    /// block and are asked for until the time limit. Meanwhile, ranks of the same host see whether the processes of the others live,
    /// and all ranks hear of failures. Ranks that die on other hosts are found by MPI itself or by the time limit.
    ///
    /// What a launcher does when a rank dies is its own affair. By default they end all ranks at once, which then cannot say what they
    /// waited for; `Scripts/mpirun-ranks` has the options that leave it to the ranks.
    public final class MPICommunicator: MessageTransport {
        public let rank: Int
        public let count: Int
        public let name: String
        public private(set) var traffic = MessageTraffic()
        private var comm: sparse_mpi_comm
        private let world: MPIWorld
        /// The members, as ranks of the world.
        private let members: [Int]
        /// The same on all members, and on no other communicator.
        private let context: String
        private let thread = pthread_self()
        private var isFree = false

        private var numbers = TransferNumbers()
        private var splits = 0
        private var operations: [Int: MPIOperation] = [:]
        /// Receives of long messages, and those of the same rank and tag behind them.
        private var queue: [MPIOperation] = []

        public var timeLimit: Double { world.timeLimit }
        /// The implementation of MPI and its version, as it calls itself.
        public var library: String { world.library }

        private init(_ comm: sparse_mpi_comm, _ world: MPIWorld, members: [Int], name: String, context: String) {
            (self.comm, self.world, self.members, self.name, self.context) = (comm, world, members, name, context)
            (rank, count) = (Int(sparse_mpi_rank(comm)), Int(sparse_mpi_size(comm)))
        }

        deinit { MPIWorld.abandon(operations.values) }

        // MARK: - Starting and ending

        private static let hasStarted = Atomic(false)

        /// Runs code on all ranks of the launcher, and ends MPI afterwards.
        ///
        /// - Parameters:
        ///   - timeLimit: seconds that a rank waits for another one.
        ///   - body: the code. Errors that it throws end the other ranks' calls, too.
        /// - Returns: what this rank returns.
        /// - Throws: what `body` throws, or `.communication` when another rank failed.
        public static func run<Result>(
            timeLimit: Double = 300, _ body: (MPICommunicator) throws(SparseKernelsError) -> Result
        ) throws(SparseKernelsError) -> Result {
            let ranks = try world(timeLimit: timeLimit)
            let result: Result
            do throws(SparseKernelsError) { result = try body(ranks) } catch {
                ranks.fail(error)
                try? ranks.finalize()
                throw error
            }
            try ranks.finalize()
            return result
        }

        /// Starts MPI, which a process can do once. The ranks agree on the version of this package.
        ///
        /// Whoever calls this ends by ``finalize()``, and before it says by ``fail(_:)`` if something went wrong. ``run(timeLimit:_:)``
        /// does both.
        ///
        /// - Parameter timeLimit: seconds that a rank waits for another one.
        /// - Throws: `.invalidArgument` when it was started before, `.communication` when MPI does not start, has no threads, or a rank
        ///   has another version.
        public static func world(timeLimit: Double = 300) throws(SparseKernelsError) -> MPICommunicator {
            try world(timeLimit: timeLimit, pieceBytes: 1 << 30, version: PackageVersion.text)
        }

        /// - Parameter pieceBytes: longer messages travel in pieces: counts of MPI are below 2³¹.
        package static func world(
            timeLimit: Double, pieceBytes: Int, version: String
        ) throws(SparseKernelsError) -> MPICommunicator {
            try CommunicatorChecks.check(timeLimit: timeLimit)
            guard pieceBytes >= 1 && pieceBytes < 1 << 31 else {
                throw SparseKernelsError(.invalidArgument, "pieceBytes", expected: "1 to 2³¹ − 1", actual: "\(pieceBytes)")
            }
            guard !hasStarted.exchange(true, ordering: .relaxed), sparse_mpi_is_finalized() == 0 else {
                throw SparseKernelsError(
                    .invalidArgument, "MPI", expected: "started once by a process", actual: "another start")
            }
            // MPICH's launcher tells by this signal that a rank has died, and it would end the process.
            let handler = signal(SIGUSR1, SIG_IGN)
            var (data, control, level) = (sparse_mpi_comm(), sparse_mpi_comm(), Int32(0))
            let code = MPIWatchdog.guarding("start of world", seconds: MPIWatchdog.limit(timeLimit), []) { () -> Int32 in
                var code = sparse_mpi_initialize(&level)
                if code == 0 { code = sparse_mpi_duplicate_world(&data) }
                if code == 0 { code = sparse_mpi_duplicate_world(&control) }
                return code
            }
            if let handler, unsafeBitCast(handler, to: Int.self) != 0 { signal(SIGUSR1, handler) }
            guard code == 0, sparse_mpi_allows_funnelled(level) != 0, sparse_mpi_tags() >= collectiveTag else {
                throw SparseKernelsError(
                    .communication, "start of world", expected: "MPI with MPI_THREAD_FUNNELED and tags to \(collectiveTag)",
                    actual: code == 0 ? "level \(level), tags to \(sparse_mpi_tags())" : text(of: code))
            }
            let world = MPIWorld(control: control, timeLimit: timeLimit, pieceBytes: pieceBytes, library: libraryText())
            let ranks = MPICommunicator(
                data, world, members: Array(0..<world.count), name: "world", context: "world")
            do throws(SparseKernelsError) {
                let order = 1.littleEndian == 1 ? "little-endian" : "big-endian"
                try ranks.agree(
                    on: "\(version), \(order), messages in pieces of \(pieceBytes) bytes", "version of SparseKernels")
                try world.setProcesses(try ranks.gather(MPIProcess.own().text))
            } catch {
                ranks.fail(error)
                try? ranks.finalize()
                throw error
            }
            return ranks
        }

        /// Ends this process's use of MPI, of all its communicators. Only the world has it. Returns when all ranks have called it.
        ///
        /// - Throws: `.communication` when a rank failed. Then MPI itself is not ended, because it would wait for ranks that died. All
        ///   ranks that live have learned of the failure when this returns, or 30 seconds are over; the process should exit.
        public func finalize() throws(SparseKernelsError) {
            guard name == "world" else {
                throw SparseKernelsError(.invalidArgument, "finalize", expected: "called on the world", actual: "on \(name)")
            }
            guard pthread_equal(thread, pthread_self()) != 0 else {
                throw CommunicatorErrors.thread("finalize", name, rank: rank)
            }
            if world.isOver { return }
            do throws(SparseKernelsError) {
                try tellAll("finalize")
                isFree = true
                world.finalize()
            } catch {
                isFree = true
                world.fail(error)
                world.leaveAfterFailure()
                throw error
            }
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
            let start = WaitClock.now
            defer { countTime(WaitClock.now - start) }
            try world.poll(start, "progress", name)
            for operation in Array(operations.values) where operation.hasStarted { try advance(operation, "progress") }
            try startQueued("progress")
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
            let answers = try gather([color ?? -1, key])
            splits += 1
            let group = color.map { CommunicatorChecks.group(answers, $0) } ?? []
            // MPI's colours and keys have 32 bits: ranks serve as both.
            let (number, place) = (group.min() ?? -1, group.firstIndex(of: rank) ?? 0)
            var new = sparse_mpi_comm()
            let own = comm
            let code = MPIWatchdog.guarding(
                "split of \(self.name)", seconds: MPIWatchdog.limit(timeLimit), world.neighbours
            ) {
                sparse_mpi_split(own, Int32(number), Int32(place), &new)
            }
            if code != 0 { throw failing(code, "split", peer: nil) }
            guard color != nil else { return nil }
            return MPICommunicator(
                new, world, members: group.map { members[$0] }, name: "\(self.name).\(name)",
                context: "\(context)/\(splits).\(number)")
        }

        public func fail(_ error: SparseKernelsError) { world.fail(error) }

        public func free() {
            if isFree || world.isOver { return }
            isFree = true
            world.tellOthers(MPIControl(.freed, context))
            // MPI ends a communicator when its last transfer has ended, so one with transfers is left to the end of the process.
            if operations.isEmpty, world.failure == nil { _ = sparse_mpi_free(&comm) }
        }

        // MARK: - Transfers

        package func post(
            _ message: MessageBuffer, _ bytes: Range<Int>, to peer: Int, tag: Int
        ) throws(SparseKernelsError) -> Transfer {
            let operation = MPIOperation(
                comm, numbers.next(peer), isReceive: false, tag: tag, message, bytes, exactly: true,
                pieceBytes: world.pieceBytes)
            operations[operation.transfer.number] = operation
            traffic.sentBytes += bytes.count
            traffic.sentMessages += 1
            let code = operation.start()
            if code != 0 { throw failing(code, "send", peer: peer) }
            return operation.transfer
        }

        package func expect(
            _ message: MessageBuffer, _ bytes: Range<Int>, from peer: Int, tag: Int, exactly: Bool
        ) throws(SparseKernelsError) -> Transfer {
            let operation = MPIOperation(
                comm, numbers.next(peer), isReceive: true, tag: tag, message, bytes, exactly: exactly,
                pieceBytes: world.pieceBytes)
            operations[operation.transfer.number] = operation
            if operation.isLongReceive || queue.contains(where: { $0.transfer.peer == peer && $0.tag == tag }) {
                queue.append(operation)
                try startQueued("receive")
            } else {
                let code = operation.start()
                if code != 0 { throw failing(code, "receive", peer: peer) }
            }
            return operation.transfer
        }

        /// Starts receives that no longer wait for an earlier one.
        private func startQueued(_ operation: String) throws(SparseKernelsError) {
            var index = 0
            while index < queue.count {
                let next = queue[index]
                let isFirst = !queue[..<index].contains { $0.transfer.peer == next.transfer.peer && $0.tag == next.tag }
                guard isFirst else {
                    index += 1
                    continue
                }
                if !next.hasStarted {
                    let code = next.start()
                    if code != 0 { throw failing(code, operation, peer: next.transfer.peer) }
                }
                // One that is not long cannot be mistaken for a part of those behind it.
                if !next.isLongReceive || operations[next.transfer.number] == nil {
                    queue.remove(at: index)
                } else {
                    index += 1
                }
            }
        }

        /// Asks whether a transfer has finished.
        private func advance(_ operation: MPIOperation, _ call: String) throws(SparseKernelsError) {
            let (isFinished, code) = operation.test()
            let (room, peer) = (operation.bytes.count, operation.transfer.peer)
            if code != 0, operation.isReceive, sparse_mpi_is_truncation(code) != 0 {
                throw failing(
                    CommunicatorErrors.length(
                        call, name, peer: peer, room: room, exactly: operation.exactly, bytes: "more than \(room)"))
            }
            if code != 0 { throw failing(code, call, peer: peer) }
            guard isFinished else { return }
            operations[operation.transfer.number] = nil
            guard operation.isReceive else { return }
            if operation.exactly, operation.receivedBytes != room {
                throw failing(
                    CommunicatorErrors.length(
                        call, name, peer: peer, room: room, exactly: true, bytes: "\(operation.receivedBytes)"))
            }
            traffic.receivedBytes += operation.receivedBytes
            traffic.receivedMessages += 1
        }

        package func finish(_ transfer: Transfer, _ call: String, until deadline: Double) throws(SparseKernelsError) {
            guard let operation = operations[transfer.number] else { return }
            let start = WaitClock.now
            var goodbye: Double?
            while true {
                if operation.hasStarted { try advance(operation, call) }
                if operations[transfer.number] == nil { break }
                if !queue.isEmpty {
                    for other in queue where other.hasStarted && operations[other.transfer.number] != nil {
                        try advance(other, call)
                    }
                    try startQueued(call)
                }
                let now = WaitClock.now
                try world.poll(now, call, name)
                if world.hasLeft(members[transfer.peer], context: context) {
                    // What it sent before may still be on its way.
                    goodbye = goodbye ?? now
                    if now - goodbye! > 0.05 { throw failing(CommunicatorErrors.left(call, name, peer: transfer.peer)) }
                }
                if now >= deadline {
                    let absent = try world.absentRanks(call, name)
                    throw failing(
                        CommunicatorErrors.late(call, name, peer: transfer.peer, timeLimit: timeLimit, absent: absent))
                }
                world.idle(now - start)
            }
            if !queue.isEmpty { try startQueued(call) }
        }

        package func countTime(_ seconds: Double) { traffic.seconds += seconds }

        // MARK: - Failures

        package func requireUse(_ operation: String) throws(SparseKernelsError) {
            if pthread_equal(thread, pthread_self()) == 0 {
                throw CommunicatorErrors.thread(operation, name, rank: rank)
            }
            if isFree || world.isOver { throw CommunicatorErrors.freed(operation, name, rank: rank) }
            try world.checkFailure(operation, name)
        }

        /// Ends the calls of all ranks by an error.
        private func failing(_ error: SparseKernelsError) -> SparseKernelsError {
            fail(error)
            return error
        }

        private func failing(_ code: Int32, _ operation: String, peer: Int?) -> SparseKernelsError {
            failing(
                SparseKernelsError(
                    .communication, "\(operation) of \(name)",
                    expected: peer.map { "answered by rank \($0)" } ?? "answered by all ranks", actual: Self.text(of: code)))
        }

        private static func text(of code: Int32) -> String {
            withUnsafeTemporaryAllocation(of: CChar.self, capacity: Int(sparse_mpi_text_size())) { text in
                sparse_mpi_error_text(code, text.baseAddress!)
                return "MPI's error \(code): \(String(cString: text.baseAddress!))"
            }
        }

        private static func libraryText() -> String {
            withUnsafeTemporaryAllocation(of: CChar.self, capacity: Int(sparse_mpi_text_size())) { text in
                sparse_mpi_library_text(text.baseAddress!)
                let lines = String(cString: text.baseAddress!).split(separator: "\n")
                return lines.first.map { String($0.prefix { $0 != "," }) } ?? "MPI"
            }
        }
    }
#endif
