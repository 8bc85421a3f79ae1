import ArgumentParser
import Communication
import Foundation
import SparseKernels

#if MPI
    import MPICommunication
#endif

/// How many ranks run a model together: processes that `mpirun` has started, or threads of this one.
struct RankOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Ranks that run the model together, as threads of this process.",
            discussion:
                "They share prompts and cache, and each has its part of the threads. Under mpirun the ranks are its processes, and this is not given."
        ))
    var ranks: Int?

    @Option(help: ArgumentHelp("Seconds that a rank waits for another one.", valueName: "seconds"))
    var rankTimeLimit = 300.0

    func validate() throws {
        if let ranks, ranks < 1 { throw ValidationError("--ranks takes 1 or more, got \(ranks)") }
        guard rankTimeLimit > 0, rankTimeLimit.isFinite else {
            throw ValidationError("--rank-time-limit takes a number above 0, got \(rankTimeLimit)")
        }
    }

    /// Runs the code of a command with the ranks that there are. When it throws, the other processes are told so.
    ///
    /// - Parameter environment: the variables of the process, from which the number of processes is read.
    func withRanks(
        environment: [String: String] = ProcessInfo.processInfo.environment, _ body: (Ranks) throws -> Void
    ) throws {
        guard let processes = MPILaunch.detect(in: environment)?.count, processes > 1 else {
            return try body(.threads(ranks ?? 1, timeLimit: rankTimeLimit))
        }
        if let ranks {
            throw ValidationError("--ranks \(ranks) is for one process, and mpirun has started \(processes)")
        }
        #if MPI
            let world = try MPICommunicator.world(timeLimit: rankTimeLimit)
            do {
                try body(.process(world, onThisHost: Self.processesOnThisHost(environment)))
            } catch {
                world.fail(Ranks.shared(error))
                try? world.finalize()
                throw error
            }
            try world.finalize()
        #else
            throw ValidationError(
                "mpirun has started \(processes) processes, and this program was built without MPI: build it with "
                    + "swift build --traits MPI, or use --ranks \(processes)")
        #endif
    }

    /// Throws for a command that several processes would run as often, each alone.
    static func requireOneProcess(
        _ command: String, environment: [String: String] = ProcessInfo.processInfo.environment
    ) throws {
        guard let launch = MPILaunch.detect(in: environment), launch.count > 1 else { return }
        throw ValidationError("\(command) runs in one process, and mpirun has started \(launch.count)")
    }

    /// The processes of this job on this machine; 1 if the launcher does not say.
    static func processesOnThisHost(_ environment: [String: String]) -> Int {
        for name in ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"] {
            if let count = environment[name].flatMap({ Int($0) }) { return max(1, count) }
        }
        return 1
    }
}

/// The ranks that a command runs a model with.
enum Ranks {
    /// Threads of this process; one runs without messages.
    case threads(Int, timeLimit: Double)
    /// A process of MPI, which is one rank of several.
    case process(any Communicator, onThisHost: Int)

    var count: Int {
        switch self {
        case .threads(let count, _): count
        case .process(let communicator, _): communicator.count
        }
    }

    /// Whether this process speaks for all.
    var speaks: Bool {
        switch self {
        case .threads: true
        case .process(let communicator, _): communicator.rank == 0
        }
    }

    /// Runs the same code on every rank of this process.
    ///
    /// - Parameters:
    ///   - pool: the threads of the process. Ranks that are threads have a part of them each, and so have processes of one machine
    ///     that each may use all of it.
    ///   - body: the code, which several threads run at the same time.
    func run(on pool: WorkerPool, _ body: @escaping (Rank) throws -> Void) throws {
        switch self {
        case .threads(1, _):
            try body(Rank(communicator: nil, pool: pool))
        case .threads(let count, let timeLimit):
            let threads = max(1, pool.threads / count)
            // Ranks share what the closure captures: those that do not speak only read it.
            nonisolated(unsafe) let body = body
            let failure = OtherFailure()
            do {
                _ = try LocalCommunicator.run(ranks: count, timeLimit: timeLimit) {
                    (communicator) throws(SparseKernelsError) in
                    do {
                        try body(Rank(communicator: communicator, pool: WorkerPool(threads: threads)))
                    } catch {
                        failure.note(error)
                        throw Ranks.shared(error)
                    }
                }
            } catch { throw failure.error ?? error }
        case .process(let communicator, let processes):
            let sharesMachine = processes > 1 && pool.threads >= ProcessInfo.processInfo.processorCount
            let own = sharesMachine ? WorkerPool(threads: max(1, pool.threads / processes)) : pool
            try body(Rank(communicator: communicator, pool: own))
        }
    }

    /// An error as other ranks are told of it.
    static func shared(_ error: any Error) -> SparseKernelsError {
        error as? SparseKernelsError
            ?? SparseKernelsError(.communication, "rank", expected: "one that goes on", actual: "\(error)")
    }
}

/// One rank of a command.
struct Rank {
    /// The other ranks; nil for one alone.
    let communicator: (any Communicator)?
    let pool: WorkerPool

    /// Whether it prints what all have computed.
    var speaks: Bool { communicator?.rank ?? 0 == 0 }
}

/// The first error of a rank that is none of the library.
private final class OtherFailure: @unchecked Sendable {
    private let lock = NSLock()
    private var first: (any Error)?

    var error: (any Error)? { lock.withLock { first } }

    func note(_ error: any Error) {
        if error is SparseKernelsError { return }
        lock.withLock { first = first ?? error }
    }
}
