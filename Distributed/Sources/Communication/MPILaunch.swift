public import Foundation

/// What a launcher of MPI, such as `mpirun`, tells its processes: how many there are. It is found without MPI, so that a program
/// that was built without it can refuse to run many times as one rank.
public struct MPILaunch: Hashable, Sendable {
    public let rank: Int
    public let count: Int

    public init(rank: Int, count: Int) { (self.rank, self.count) = (rank, count) }

    /// - Parameter environment: variables of the process.
    /// - Returns: nil for a process that no launcher started.
    public static func detect(
        in environment: [String: String] = ProcessInfo.processInfo.environment
    ) -> MPILaunch? {
        // Open MPI; MPICH and those that come from it; Slurm with PMIx.
        let variables = [
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"), ("PMIX_RANK", "SLURM_NTASKS"),
        ]
        for (rankName, countName) in variables {
            guard let rank = environment[rankName].flatMap({ Int($0) }),
                let count = environment[countName].flatMap({ Int($0) }), count >= 1, (0..<count).contains(rank)
            else { continue }
            return MPILaunch(rank: rank, count: count)
        }
        return nil
    }
}
