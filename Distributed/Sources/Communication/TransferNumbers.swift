internal import Synchronization

/// Numbers of transfers. Those of two communicators of a process differ, so that a transfer of another one is found out.
package struct TransferNumbers {
    private static let communicators = Atomic<Int>(0)
    private let first: Int
    private var last: Int

    package init() {
        first = Self.communicators.add(1, ordering: .relaxed).newValue << 40
        last = first
    }

    package mutating func next(_ peer: Int) -> Transfer {
        last += 1
        return Transfer(number: last, peer: peer)
    }

    package func check(_ transfer: Transfer, _ operation: String, _ name: String) throws(SparseKernelsError) {
        guard transfer.number > first && transfer.number <= last else {
            throw SparseKernelsError(
                .invalidArgument, "transfer of \(operation)", expected: "one that \(name) has started",
                actual: "transfer \(transfer.number), of another communicator")
        }
    }
}
