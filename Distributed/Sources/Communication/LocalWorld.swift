internal import Foundation
internal import Synchronization

/// Where messages between two ranks with a tag queue up. Ranks are those of the world.
struct LocalChannel: Hashable, Sendable {
    let context: Int
    let source: Int
    let target: Int
    let tag: Int
}

/// A message that a rank has sent. Its bytes stay in the sender's buffer until the receiver has copied them.
final class LocalMessage: @unchecked Sendable {
    let buffer: MessageBuffer
    let bytes: Range<Int>
    /// Guarded by the lock of the world.
    fileprivate var isFinished = false

    init(_ buffer: MessageBuffer, _ bytes: Range<Int>) { (self.buffer, self.bytes) = (buffer, bytes) }
}

/// A message that a rank wants.
struct LocalReceive {
    let transfer: Transfer
    let channel: LocalChannel
    let buffer: MessageBuffer
    let bytes: Range<Int>
}

/// What ranks that are threads share: queues of messages, and who has left or failed.
final class LocalWorld: @unchecked Sendable {
    private let condition = NSCondition()
    private let changes = Atomic<Int>(0)
    private var channels: [LocalChannel: [LocalMessage]] = [:]
    private var nextContext = 1
    private var running: Int
    private var leftWorld: Set<Int> = []
    private var leftContexts: Set<[Int]> = []
    private var failed: (rank: Int, error: SparseKernelsError)?
    private let spins: Bool

    init(ranks: Int) {
        running = ranks
        spins = ranks <= ProcessInfo.processInfo.activeProcessorCount
    }

    /// Changes whenever something happens that a rank may wait for.
    var generation: Int { changes.load(ordering: .acquiring) }

    var failure: (rank: Int, error: SparseKernelsError)? { locked { failed } }

    private func locked<Result>(_ body: () -> Result) -> Result {
        condition.lock()
        defer { condition.unlock() }
        return body()
    }

    /// Changes something, and wakes those who wait.
    private func change(_ body: () -> Void) {
        locked {
            body()
            changes.add(1, ordering: .releasing)
            condition.broadcast()
        }
    }

    // MARK: - Messages

    func post(_ message: LocalMessage, _ channel: LocalChannel) { change { channels[channel, default: []].append(message) } }

    func take(_ channel: LocalChannel) -> LocalMessage? {
        locked {
            guard var queue = channels.removeValue(forKey: channel) else { return nil }
            let message = queue.removeFirst()
            if !queue.isEmpty { channels[channel] = queue }
            return message
        }
    }

    func finish(_ message: LocalMessage) { change { message.isFinished = true } }

    func isFinished(_ message: LocalMessage) -> Bool { locked { message.isFinished } }

    func takeContexts(_ count: Int) -> Int {
        locked {
            defer { nextContext += count }
            return nextContext
        }
    }

    // MARK: - Ranks

    func leave(_ rank: Int) {
        change {
            leftWorld.insert(rank)
            running -= 1
        }
    }

    func leave(_ rank: Int, context: Int) { change { leftContexts.insert([rank, context]) } }

    func fail(rank: Int, _ error: SparseKernelsError) {
        change { if failed == nil { failed = (rank, error) } }
    }

    func waitForAll() {
        condition.lock()
        while running > 0 { condition.wait() }
        condition.unlock()
    }

    func checkFailure(_ operation: String) throws(SparseKernelsError) {
        guard let failure else { return }
        throw SparseKernelsError(
            .communication, operation, expected: "answered by all ranks",
            actual: "rank \(failure.rank) failed: \(failure.error)")
    }

    /// Throws when a message of a rank will never come: some rank failed, or this one left. `generation` is from before the caller
    /// looked for the message, so that it looks again when something has happened since.
    func check(
        waitingFor rank: Int, context: Int, _ peer: String, since generation: Int, _ operation: String
    ) throws(SparseKernelsError) {
        try checkFailure(operation)
        let hasLeft = locked { leftWorld.contains(rank) || leftContexts.contains([rank, context]) }
        guard hasLeft, self.generation == generation else { return }
        throw SparseKernelsError(.communication, operation, expected: "answered by \(peer)", actual: "it has left")
    }

    /// Waits until something happens after a generation.
    /// - Returns: false when the time is over.
    func wait(for generation: Int, until deadline: Date) -> Bool {
        if spins {
            // Waking a thread takes as long as some thousand small messages.
            let end = DispatchTime.now().uptimeNanoseconds + 50_000
            while DispatchTime.now().uptimeNanoseconds < end {
                if self.generation != generation { return true }
            }
        }
        condition.lock()
        defer { condition.unlock() }
        while self.generation == generation {
            if !condition.wait(until: deadline) { return self.generation != generation }
        }
        return true
    }
}
