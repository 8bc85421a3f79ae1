internal import Foundation
internal import Synchronization

/// What ranks that are threads share: their inboxes, and who has left or failed.
final class LocalWorld: @unchecked Sendable {
    let inboxes: [LocalInbox]
    private let condition = NSCondition()
    private let spins: Bool
    // Most calls need to know no more.
    private let hasFailed = Atomic(false)
    private let hasDepartures = Atomic(false)
    // Guarded by the condition.
    private var nextContext = 1
    private var running: Int
    private var leftWorld: Set<Int> = []
    private var leftContexts: Set<[Int]> = []
    private var firstFailure: (rank: Int, error: SparseKernelsError)?

    init(ranks: Int) {
        inboxes = (0..<ranks).map { _ in LocalInbox() }
        running = ranks
        spins = ranks <= ProcessInfo.processInfo.activeProcessorCount
    }

    private func locked<Result>(_ body: () -> Result) -> Result {
        condition.lock()
        defer { condition.unlock() }
        return body()
    }

    func takeContexts(_ count: Int) -> Int {
        locked {
            defer { nextContext += count }
            return nextContext
        }
    }

    // MARK: - Ranks

    /// Changes something that every rank has to look at.
    private func changeForAll(_ flag: borrowing Atomic<Bool>, _ body: () -> Void) {
        locked {
            body()
            condition.broadcast()
        }
        flag.store(true, ordering: .releasing)
        for inbox in inboxes { inbox.wake() }
    }

    func leave(_ rank: Int) {
        changeForAll(hasDepartures) {
            leftWorld.insert(rank)
            running -= 1
        }
    }

    func leave(_ rank: Int, context: Int) {
        for inbox in inboxes { inbox.withdraw(source: rank, context: context) }
        changeForAll(hasDepartures) { leftContexts.insert([rank, context]) }
    }

    func hasLeft(_ rank: Int, context: Int) -> Bool {
        guard hasDepartures.load(ordering: .acquiring) else { return false }
        return locked { leftWorld.contains(rank) || leftContexts.contains([rank, context]) }
    }

    func fail(rank: Int, _ error: SparseKernelsError) {
        changeForAll(hasFailed) { if firstFailure == nil { firstFailure = (rank, error) } }
    }

    var failure: (rank: Int, error: SparseKernelsError)? {
        guard hasFailed.load(ordering: .acquiring) else { return nil }
        return locked { firstFailure }
    }

    func waitForAll() {
        condition.lock()
        while running > 0 { condition.wait() }
        condition.unlock()
    }

    /// The ranks that are still there and wait for nobody, other than one.
    func absent(other rank: Int) -> [Int] {
        let left = locked { leftWorld }
        return inboxes.indices.filter { $0 != rank && !inboxes[$0].isWaiting && !left.contains($0) }
    }

    // MARK: - Waiting

    /// Waits until something happens to a rank after a generation, or the time is over.
    /// - Parameter deadline: of `WaitClock`.
    func wait(_ rank: Int, for generation: Int, until deadline: Double) {
        let inbox = inboxes[rank]
        if spins {
            // Waking a thread takes as long as some thousand small messages, and a rank has a core of its own.
            let end = min(deadline, WaitClock.now + 1e-3)
            while WaitClock.now < end {
                if inbox.generation != generation { return }
            }
        }
        inbox.sleep(while: generation, until: deadline)
    }
}
