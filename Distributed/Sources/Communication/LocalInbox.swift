internal import Foundation
internal import Synchronization

/// Where messages to a rank queue up, by the communicator, the rank that sends and the tag. Ranks are those of the world.
struct LocalChannel: Hashable, Sendable {
    let context: Int
    let source: Int
    let tag: Int
}

/// A message that a rank has sent. Its bytes stay in the sender's buffer until the receiver has copied them.
final class LocalMessage: @unchecked Sendable {
    let buffer: MessageBuffer
    let bytes: Range<Int>
    private let finished = Atomic(false)

    init(_ buffer: MessageBuffer, _ bytes: Range<Int>) { (self.buffer, self.bytes) = (buffer, bytes) }

    /// Whether the receiver has copied it.
    var isFinished: Bool { finished.load(ordering: .acquiring) }

    func finish() { finished.store(true, ordering: .releasing) }
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

/// The messages to a rank, and the place where it sleeps. Ranks have one each, so that those that have nothing to do with each other
/// do not wait for the same lock.
final class LocalInbox: @unchecked Sendable {
    private let condition = NSCondition()
    private let changes = Atomic(0)
    private let posts = Atomic(0)
    private let pending = Atomic(0)
    private let waits = Atomic(false)
    // Guarded by the condition.
    private var guardedChanges = 0
    private var channels: [LocalChannel: [LocalMessage]] = [:]
    private var isAsleep = false

    /// Changes after something has happened that the rank may wait for.
    var generation: Int { changes.load(ordering: .acquiring) }

    /// Changes whenever a message has come.
    var arrivals: Int { posts.load(ordering: .acquiring) }

    /// Whether the rank waits for another one.
    var isWaiting: Bool {
        get { waits.load(ordering: .relaxed) }
        set { waits.store(newValue, ordering: .relaxed) }
    }

    /// Changes something, and wakes the rank.
    private func change(_ body: () -> Void) {
        condition.lock()
        body()
        guardedChanges += 1
        let isAsleep = isAsleep
        condition.unlock()
        // Not before: a rank that looks for it would find the lock taken, and sleeping for a lock costs microseconds.
        changes.add(1, ordering: .releasing)
        if isAsleep { condition.signal() }
    }

    /// Tells the rank to look again.
    func wake() { change {} }

    func post(_ message: LocalMessage, _ channel: LocalChannel) {
        change {
            channels[channel, default: []].append(message)
            // In this order: who sees the arrival sees that there is something.
            pending.add(1, ordering: .relaxed)
            posts.add(1, ordering: .releasing)
        }
    }

    /// Takes the messages that have come for some receives. Of those with one channel the first gets the first.
    /// - Returns: ascending indices of receives, with their messages.
    func take(_ receives: [LocalReceive]) -> [(index: Int, message: LocalMessage)] {
        if pending.load(ordering: .acquiring) == 0 { return [] }
        condition.lock()
        defer { condition.unlock() }
        var taken: [(index: Int, message: LocalMessage)] = []
        for index in receives.indices {
            let channel = receives[index].channel
            guard var queue = channels.removeValue(forKey: channel) else { continue }
            taken.append((index, queue.removeFirst()))
            if !queue.isEmpty { channels[channel] = queue }
            if channels.isEmpty { break }
        }
        pending.subtract(taken.count, ordering: .relaxed)
        return taken
    }

    /// Removes what a rank has sent.
    func withdraw(source: Int, context: Int) {
        change {
            for (channel, queue) in channels where channel.source == source && channel.context == context {
                channels[channel] = nil
                pending.subtract(queue.count, ordering: .relaxed)
            }
        }
    }

    /// Sleeps until something happens after a generation, or the time is over.
    /// - Parameter deadline: of `WaitClock`.
    func sleep(while generation: Int, until deadline: Double) {
        condition.lock()
        defer { condition.unlock() }
        isAsleep = true
        defer { isAsleep = false }
        while guardedChanges == generation {
            let seconds = deadline - WaitClock.now
            if seconds <= 0 || !condition.wait(until: Date(timeIntervalSinceNow: seconds)) { return }
        }
    }
}
