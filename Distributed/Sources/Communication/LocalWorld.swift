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
    /// Whether a shorter message is wrong.
    let exactly: Bool
}

/// What ranks that are threads share: queues of messages, and who has left or failed.
final class LocalWorld: @unchecked Sendable {
    private let condition = NSCondition()
    private let changes = Atomic<Int>(0)
    private var channels: [LocalChannel: [LocalMessage]] = [:]
    private var nextContext = 1
    private var running: Int
    private var isWaiting: [Bool]
    private var leftWorld: Set<Int> = []
    private var leftContexts: Set<[Int]> = []
    private var failed: (rank: Int, error: SparseKernelsError)?
    private let spins: Bool

    init(ranks: Int) {
        running = ranks
        isWaiting = Array(repeating: false, count: ranks)
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

    /// Removes the messages of a rank that nobody has taken.
    func withdraw(_ rank: Int, context: Int) {
        change { channels = channels.filter { $0.key.source != rank || $0.key.context != context } }
    }

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

    func hasLeft(_ rank: Int, context: Int) -> Bool {
        locked { leftWorld.contains(rank) || leftContexts.contains([rank, context]) }
    }

    /// The ranks that are still there and wait for nobody, other than one.
    func absent(other rank: Int) -> [Int] {
        locked { isWaiting.indices.filter { $0 != rank && !isWaiting[$0] && !leftWorld.contains($0) } }
    }

    func endWait(_ rank: Int) { locked { isWaiting[rank] = false } }

    /// Waits until something happens after a generation, or the time is over. Then the rank counts as waiting, until `endWait`.
    /// - Parameter deadline: of `WaitClock`.
    func wait(_ rank: Int, for generation: Int, until deadline: Double) {
        if spins {
            // Waking a thread takes as long as some thousand small messages.
            let end = min(deadline, WaitClock.now + 50e-6)
            while WaitClock.now < end {
                if self.generation != generation { return }
            }
        }
        condition.lock()
        defer { condition.unlock() }
        isWaiting[rank] = true
        while self.generation == generation {
            let seconds = deadline - WaitClock.now
            if seconds <= 0 || !condition.wait(until: Date(timeIntervalSinceNow: seconds)) { return }
        }
    }
}
