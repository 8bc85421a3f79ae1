#if MPI
    internal import CMPI
    internal import Foundation

    /// A rank of the world that has freed a communicator.
    private struct Departure: Hashable {
        let rank: Int
        let context: String
    }

    /// What all communicators of the process share: who the ranks are, who has left, died or failed, and how one learns of it.
    final class MPIWorld {
        let rank: Int
        let count: Int
        let timeLimit: Double
        /// Longer messages travel in pieces.
        let pieceBytes: Int
        let library: String
        private let control: MPIControlChannel
        /// Processes by rank, once the ranks have told each other.
        private var processes: [MPIProcess] = []
        /// Whether there are more ranks on this host than cores.
        private var isCrowded = true
        private(set) var failure: (rank: Int, reason: String)?
        private(set) var isOver = false
        private var left: Set<Int> = []
        private var freed: Set<Departure> = []
        private var seenDead: [Int: Double] = [:]
        private var answers: Set<Int>?
        private var (lastControl, lastWatch) = (0.0, 0.0)

        init(control: sparse_mpi_comm, timeLimit: Double, pieceBytes: Int, library: String) {
            (rank, count) = (Int(sparse_mpi_rank(control)), Int(sparse_mpi_size(control)))
            (self.timeLimit, self.pieceBytes, self.library) = (timeLimit, pieceBytes, library)
            self.control = MPIControlChannel(control)
        }

        func setProcesses(_ texts: [String]) throws(SparseKernelsError) {
            var list: [MPIProcess] = []
            for (rank, text) in texts.enumerated() {
                guard let process = MPIProcess(text: text) else {
                    throw SparseKernelsError(
                        .communication, "process of rank \(rank) of world", expected: "number, start and host", actual: text)
                }
                list.append(process)
            }
            processes = list
            let neighbours = list.count { $0.host == list[rank].host }
            isCrowded = neighbours > ProcessInfo.processInfo.activeProcessorCount
        }

        /// The other ranks of this host that have not left.
        var neighbours: [(rank: Int, process: MPIProcess)] {
            guard !processes.isEmpty else { return [] }
            return (0..<count).filter { $0 != rank && !left.contains($0) && processes[$0].host == processes[rank].host }
                .map { ($0, processes[$0]) }
        }

        // MARK: - Failures

        func fail(_ error: SparseKernelsError) {
            if failure != nil || isOver { return }
            failure = (rank, "\(error)")
            tellOthers(MPIControl(.failed, "\(error)"))
            push(seconds: 1)
        }

        func tellOthers(_ message: MPIControl) {
            for other in 0..<count where other != rank && !left.contains(other) { control.send(message, to: other) }
        }

        /// Helps control messages on their way.
        private func push(seconds: Double) {
            let end = WaitClock.now + seconds
            while !control.flush(), WaitClock.now < end { sched_yield() }
        }

        func checkFailure(_ operation: String, _ name: String) throws(SparseKernelsError) {
            guard let failure else { return }
            throw CommunicatorErrors.failed(operation, name, worldRank: failure.rank, failure.reason)
        }

        func hasLeft(_ rank: Int, context: String) -> Bool {
            if left.isEmpty && freed.isEmpty { return false }
            return left.contains(rank) || freed.contains(Departure(rank: rank, context: context))
        }

        /// Looks for control messages every millisecond, and for ranks that died ten times a second.
        /// - Throws: when a rank has failed or died.
        func poll(_ now: Double, _ operation: String, _ name: String) throws(SparseKernelsError) {
            if now - lastControl >= 1e-3 {
                lastControl = now
                hear()
            }
            try checkFailure(operation, name)
            guard now - lastWatch >= 0.1 else { return }
            lastWatch = now
            guard let dead = findDead(now) else { return }
            let error = CommunicatorErrors.died(operation, name, worldRank: dead, process: processes[dead].number)
            fail(error)
            throw error
        }

        private func hear() {
            _ = control.flush()
            while let (source, message) = control.take() {
                switch message.kind {
                case .failed: if failure == nil { failure = (source, message.text) }
                case .left: left.insert(source)
                case .freed: freed.insert(Departure(rank: source, context: message.text))
                case .rollCall: control.send(MPIControl(.here), to: source)
                case .here: answers?.insert(source)
                }
            }
        }

        /// A rank of this host that has died. What it said before is heard first: that it was leaving, or why.
        private func findDead(_ now: Double) -> Int? {
            for (rank, process) in neighbours where !process.isAlive {
                let since = seenDead[rank, default: now]
                seenDead[rank] = since
                if now - since >= 0.15 { return rank }
            }
            return nil
        }

        /// The ranks that are in no call, because they do not answer a question that calls answer.
        func absentRanks(_ operation: String, _ name: String) throws(SparseKernelsError) -> [Int] {
            answers = []
            defer { answers = nil }
            tellOthers(MPIControl(.rollCall))
            let end = WaitClock.now + 1
            while WaitClock.now < end {
                hear()
                try checkFailure(operation, name)
                usleep(500)
            }
            return (0..<count).filter { $0 != rank && !left.contains($0) && !answers!.contains($0) }
        }

        // MARK: - Waiting

        /// Lets others work while nothing comes. MPI moves bytes inside of its calls only, so that a rank with a core of its own does not
        /// leave it for the length of a long message.
        func idle(_ seconds: Double) {
            if isCrowded {
                if seconds < 200e-6 { sched_yield() } else { usleep(50) }
            } else if seconds > 0.2 {
                sched_yield()
            }
        }

        /// Keeps the memory of transfers that were given up: MPI may still write to it, for ever.
        static func abandon(_ operations: some Sequence<MPIOperation>) {
            for operation in operations { _ = Unmanaged.passRetained(operation) }
        }

        // MARK: - The end

        /// Ends the use of MPI after all ranks have said that they are ready.
        func finalize() {
            isOver = true
            // Also those that have said it before: they wait for this one's.
            for other in 0..<count where other != rank { control.send(MPIControl(.left), to: other) }
            // What others have said before they leave is taken, so that MPI ends without messages under way. A rank that ends first is
            // not mistaken for one that died.
            let end = WaitClock.now + 5
            while left.count < count - 1, WaitClock.now < end, failure == nil {
                hear()
                idle(1e-3)
            }
            push(seconds: 1)
            _ = MPIWatchdog.guarding("finalize of world", seconds: MPIWatchdog.limit(timeLimit), neighbours) {
                sparse_mpi_finalize()
            }
        }

        /// Ends the use of MPI after a failure. MPI itself is not ended, because it would wait for dead ranks; this rank waits until the
        /// others have learned of the failure, because launchers end them when it exits.
        func leaveAfterFailure() {
            isOver = true
            tellOthers(MPIControl(.left))
            let end = WaitClock.now + min(max(timeLimit, 5), 30)
            while WaitClock.now < end {
                hear()
                let missing = (0..<count).contains { other in
                    other != rank && !left.contains(other)
                        && (processes.isEmpty || processes[other].host != processes[rank].host || processes[other].isAlive)
                }
                if !missing, control.flush() { return }
                usleep(1000)
            }
        }
    }
#endif
