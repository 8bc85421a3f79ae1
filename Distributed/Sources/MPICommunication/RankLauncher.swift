public import Communication
public import SparseKernels

/// Ranks for a command: the processes that a launcher of MPI has started, or threads of this process.
public enum RankLauncher {
    /// Whether ranks can be processes: whether the package was built with the trait `MPI`.
    public static var hasMPI: Bool {
        #if MPI
            true
        #else
            false
        #endif
    }

    /// Runs the same code on every rank.
    ///
    /// - Parameters:
    ///   - local: threads of this process. With nil ranks are the processes that a launcher such as `mpirun` has started, or this
    ///     process is the only one, on the calling thread.
    ///   - timeLimit: seconds that a rank waits for another one.
    ///   - body: the code. Errors that it throws end the other ranks' calls, too.
    /// - Returns: what the body returns on rank 0; nil in processes that are another rank.
    /// - Throws: what the body throws; `.communication` when a launcher has started several processes and the package was built
    ///   without the trait `MPI`; `.invalidArgument` when they are to have threads as ranks.
    public static func run<Result: Sendable>(
        local: Int? = nil, timeLimit: Double = 300,
        _ body: @escaping @Sendable (any Communicator) throws(SparseKernelsError) -> Result
    ) throws(SparseKernelsError) -> Result? {
        let launch = MPILaunch.detect() ?? MPILaunch(rank: 0, count: 1)
        if let local {
            guard launch.count == 1 else {
                throw SparseKernelsError(
                    .invalidArgument, "local ranks", expected: "none in processes that a launcher of MPI has started",
                    actual: "\(local) in rank \(launch.rank) of \(launch.count)")
            }
            return try LocalCommunicator.run(ranks: local, timeLimit: timeLimit) { (ranks) throws(SparseKernelsError) in
                try body(ranks)
            }[0]
        }
        if launch.count == 1 { return try body(LocalCommunicator.alone()) }
        #if MPI
            let result = try MPICommunicator.run(timeLimit: timeLimit) { (ranks) throws(SparseKernelsError) in try body(ranks) }
            return launch.rank == 0 ? result : nil
        #else
            throw SparseKernelsError(
                .communication, "MPI", expected: "available: built with --traits MPI",
                actual: "a program without it, started as rank \(launch.rank) of \(launch.count)")
        #endif
    }
}
