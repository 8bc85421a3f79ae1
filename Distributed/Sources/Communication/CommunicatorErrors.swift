/// The errors of waiting for other ranks, which all communicators say in the same words. Each names the operation, the communicator
/// and a rank.
package enum CommunicatorErrors {
    /// A rank called `fail`, or its process found that it cannot go on.
    package static func failed(
        _ operation: String, _ name: String, worldRank: Int, _ reason: String
    ) -> SparseKernelsError {
        SparseKernelsError(
            .communication, "\(operation) of \(name)", expected: "answered by all ranks",
            actual: "rank \(worldRank) of world failed: \(reason)")
    }

    package static func left(_ operation: String, _ name: String, peer: Int) -> SparseKernelsError {
        SparseKernelsError(
            .communication, "\(operation) of \(name)", expected: "answered by rank \(peer)",
            actual: "rank \(peer) has left the communicator")
    }

    package static func died(
        _ operation: String, _ name: String, worldRank: Int, process: Int
    ) -> SparseKernelsError {
        SparseKernelsError(
            .communication, "\(operation) of \(name)", expected: "answered by all ranks",
            actual: "rank \(worldRank) of world, process \(process), has died")
    }

    /// - Parameter absent: ranks of the world that are in no call, where that is known.
    package static func late(
        _ operation: String, _ name: String, peer: Int, timeLimit: Double, absent: [Int]
    ) -> SparseKernelsError {
        let list = absent.map(String.init).joined(separator: ", ")
        return SparseKernelsError(
            .communication, "\(operation) of \(name)", expected: "answered by rank \(peer) within \(timeLimit) s",
            actual: absent.isEmpty ? "no answer" : "no answer; in no call are ranks of world: \(list)")
    }

    /// - Parameter exactly: whether a shorter message would be wrong, too.
    package static func length(
        _ operation: String, _ name: String, peer: Int, room: Int, exactly: Bool, bytes: String
    ) -> SparseKernelsError {
        SparseKernelsError(
            .communication, "\(operation) of \(name)",
            expected: "a message of \(exactly ? "exactly" : "at most") \(room) bytes from rank \(peer)",
            actual: "\(bytes) bytes")
    }

    package static func freed(_ operation: String, _ name: String, rank: Int) -> SparseKernelsError {
        SparseKernelsError(
            .communication, "\(operation) of \(name)", expected: "called before the communicator is freed",
            actual: "a call of rank \(rank) afterwards")
    }

    package static func thread(_ operation: String, _ name: String, rank: Int) -> SparseKernelsError {
        SparseKernelsError(
            .invalidArgument, "\(operation) of \(name)", expected: "called by the thread that got the communicator",
            actual: "a call of another thread of rank \(rank)")
    }
}
