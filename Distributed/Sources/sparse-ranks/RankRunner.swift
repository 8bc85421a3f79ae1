import Foundation
import MPICommunication
import SequenceParallel

/// Ranks for a command: threads of this process, or the processes that mpirun has started.
enum RankRunner {
    /// The name of this host.
    static var host: String { ProcessInfo.processInfo.hostName }

    /// Runs the same code on every rank.
    /// - Parameter local: threads of this process; nil means one.
    /// - Returns: what rank 0 returns.
    static func run<Result: Sendable>(
        local: Int?, _ body: @escaping @Sendable (any Communicator) throws(SparseKernelsError) -> Result
    ) throws -> Result? {
        try LocalCommunicator.run(ranks: local ?? 1) { (ranks) throws(SparseKernelsError) in try body(ranks) }.first
    }
}
